"""The IOAPIC (82093AA data sheet, order number 290566): 24 pins, each with a message to send.

A redirection entry is that message, with the mask in bit 16 and remote IRR in bit 14 ("a local
APIC has taken this level, and has not ended it").

The pins here are asserted or not: the polarity bit is kept, and means nothing. An edge on a
masked pin is lost, as the data sheet says. A level is sent again as long as it lasts, each time
when the local APIC's end of interrupt has cleared remote IRR.
"""

from __future__ import annotations

from collections.abc import Callable

from vmm.interrupts.message import (
    ACTIVE_LOW,
    DESTINATION_SHIFT,
    FIXED,
    LEVEL,
    LOGICAL,
    LOWEST,
    MASKED,
    MODE,
    VECTOR,
)
from vmm.regmap import Register, RegisterMap

PINS = 24
SIZE = 0x1000

IOREGSEL, IOWIN = 0x00, 0x10
ID, VERSION, ARBITRATION, REDIRECTION = 0x00, 0x01, 0x02, 0x10
ID_WRITABLE = 0x0F00_0000
# Version 0x11 has no EOI register: Linux makes do by turning an entry to edge and back.
VERSION_82093AA = 0x11

REMOTE_IRR = 1 << 14
# Busy (delivery status) is never set, for a message takes no time.
WRITABLE = 0xFF << DESTINATION_SHIFT | MASKED | LEVEL | ACTIVE_LOW | LOGICAL | MODE | VECTOR


class IoApic(RegisterMap):
    """``send(message)`` delivers a message to the local APICs, and says whether one took it."""

    def __init__(self, send: Callable[[int], bool]) -> None:
        super().__init__(
            [
                Register(IOREGSEL, 4, "IOREGSEL", lambda: self._selected, self._select),
                Register(IOWIN, 4, "IOWIN", self._read, self._write),
            ]
        )
        self._send = send
        self._selected = 0
        self._id = 0
        self._lines = 0
        self._entries = [MASKED] * PINS

    def set_line(self, pin: int, level: bool) -> None:
        """Drive a pin."""
        bit = 1 << pin
        rises = level and not self._lines & bit
        self._lines = self._lines | bit if level else self._lines & ~bit
        entry = self._entries[pin]
        if not level or entry & MASKED:
            return
        if _is_level(entry):
            self._send_level(pin)
        elif rises:
            self._send(entry & ~LEVEL)

    def end_of_interrupt(self, vector: int) -> None:
        """The local APIC has ended a level-triggered interrupt of this vector."""
        for pin, entry in enumerate(self._entries):
            if entry & VECTOR == vector and entry & REMOTE_IRR:
                self._entries[pin] &= ~REMOTE_IRR
                self._send_level(pin)

    def retry(self) -> None:
        """The local APIC may take now what it has refused: levels are still there, edges not."""
        for pin in range(PINS):
            self._send_level(pin)

    def _send_level(self, pin: int) -> None:
        entry = self._entries[pin]
        is_due = self._lines >> pin & 1 and not entry & (MASKED | REMOTE_IRR)
        if is_due and _is_level(entry) and self._send(entry):
            self._entries[pin] |= REMOTE_IRR

    # The registers behind IOWIN

    def _select(self, value: int, mask: int) -> None:
        # The register has eight bits; a write of its upper bytes only is none.
        if mask & 0xFF:
            self._selected = value & 0xFF

    def _read(self) -> int:
        if self._selected in (ID, ARBITRATION):
            return self._id
        if self._selected == VERSION:
            return PINS - 1 << 16 | VERSION_82093AA
        pin, shift = self._place()
        return self._entries[pin] >> shift & 0xFFFF_FFFF if 0 <= pin < PINS else 0

    def _write(self, value: int, mask: int) -> None:
        if self._selected == ID:
            self._id = (self._id & ~mask | value) & ID_WRITABLE
            return
        pin, shift = self._place()
        if not 0 <= pin < PINS:
            return
        writable = mask << shift & WRITABLE
        entry = self._entries[pin] & ~writable | value << shift & writable
        if not entry & LEVEL:
            # Linux ends an interrupt so, on a version without EOI register; KVM does the same.
            entry &= ~REMOTE_IRR
        self._entries[pin] = entry
        self._send_level(pin)

    def _place(self) -> tuple[int, int]:
        # The selected entry, and which half of it. A pin below 0 is no entry.
        return (self._selected - REDIRECTION) // 2, self._selected % 2 * 32


def _is_level(entry: int) -> bool:
    # Other modes are edges, whatever the bit says: no end of interrupt would come back.
    return bool(entry & LEVEL) and entry & MODE in (FIXED, LOWEST)
