"""The local APIC of the only CPU (Intel SDM, volume 3A, chapter "Advanced Programmable Interrupt
Controller"), in xAPIC mode: registers of 32 bits, 16 bytes apart.

::

    IOAPIC, ICR ──message──┐                              higher class than
    LVT: timer, error ─────┼──► IRR ──────────────────────PPR = max(TPR, ISR)──► CPU ──► ISR
    LINT0 ── fixed ────────┘                                                         EOI clears
    LINT0 ── ExtINT ───────────► past all of these: the CPU asks the PIC for the vector

IRR, ISR and TMR are one number of 256 bits each. Only aligned accesses of 32 bits are defined; what
a narrower write leaves out is written as zeros.

Left out: x2APIC mode and the TSC deadline (CPUID must not show them), and moving or switching off
the page by IA32_APIC_BASE. The thermal and performance entries only keep what they are given.
"""

from __future__ import annotations

from collections.abc import Callable

from vmm.interrupts.apic_timer import ApicTimer
from vmm.interrupts.message import (
    ACTIVE_LOW,
    DESTINATION_SHIFT,
    EXTINT,
    FIXED,
    LEVEL,
    LOGICAL,
    LOWEST,
    MASKED,
    MODE,
    NMI,
    VECTOR,
)
from vmm.regmap import Register, RegisterMap

SIZE = 0x1000

# Integrated APIC, and an LVT of six entries.
VERSION = 5 << 16 | 0x14
APIC_ID = 0
BROADCAST = 0xFF

SVR_ENABLE = 1 << 8
SVR_WRITABLE = SVR_ENABLE | VECTOR
DFR_FLAT, DFR_FIXED_BITS = 0xF, 0x0FFF_FFFF
LDR_WRITABLE = 0xFF00_0000

LVT_TIMER, LVT_THERMAL, LVT_COUNTERS, LVT_LINT0, LVT_LINT1, LVT_ERROR = range(6)
LVT_BASE = 0x320
TIMER_PERIODIC = 1 << 17
_LVT_LINT = MASKED | LEVEL | ACTIVE_LOW | MODE | VECTOR
_LVT_WRITABLE = (
    MASKED | TIMER_PERIODIC | VECTOR,
    MASKED | MODE | VECTOR,
    MASKED | MODE | VECTOR,
    _LVT_LINT,
    _LVT_LINT,
    MASKED | VECTOR,
)
_LVT_NAMES = ("TIMER", "THERMAL", "PERFORMANCE", "LINT0", "LINT1", "ERROR")

# Shorthand, level, trigger, destination mode, delivery mode, vector.
ICR_WRITABLE = 0x000C_CFFF
ICR_DESTINATION = 0xFF00_0000
SHORTHAND, NO_SHORTHAND, SELF, ALL = 0xC_0000, 0, 0x4_0000, 0x8_0000

ERROR_SEND_VECTOR, ERROR_RECEIVE_VECTOR, ERROR_REGISTER = 1 << 5, 1 << 6, 1 << 7
# Vectors below are for the CPU's exceptions.
FIRST_VECTOR = 16


class LocalApic(RegisterMap):
    """``broadcast_eoi(vector)`` hears of the end of a level-triggered interrupt;
    ``reconfigured()`` of changes after which a message refused before may be taken.
    """

    def __init__(
        self,
        timer_hz: int,
        now: Callable[[], int],
        broadcast_eoi: Callable[[int], None],
        reconfigured: Callable[[], None],
    ) -> None:
        super().__init__(self._rows())
        self._broadcast_eoi, self._reconfigured = broadcast_eoi, reconfigured
        self.timer = ApicTimer(timer_hz, now, lambda: self._fire(LVT_TIMER))
        self.tpr = 0
        self.nmi = False
        self._irr = self._isr = self._tmr = 0
        self._ldr, self._model = 0, DFR_FLAT
        self._svr = 0xFF
        self._errors = self._esr = 0
        self._icr = self._icr_destination = 0
        # As a PC's firmware leaves them (SDM, "LVT" after INIT, would have all masked): the PIC's
        # interrupts reach the CPU, by "virtual wire", though the APIC is not enabled.
        self._lvt = [MASKED, MASKED, MASKED, EXTINT, NMI, MASKED]
        self._lint0 = False
        self._extint = False

    # To and from the CPU

    def request(self) -> int | None:
        """The vector that the CPU would be interrupted with, None if there is none."""
        if not self._irr:
            return None
        vector = self._irr.bit_length() - 1
        return vector if vector & 0xF0 > self._ppr() & 0xF0 else None

    def acknowledge(self) -> int:
        """The CPU takes the interrupt: its vector, the spurious one if it has gone."""
        vector = self.request()
        if vector is None:
            return self._svr & VECTOR
        self._irr &= ~(1 << vector)
        self._isr |= 1 << vector
        return vector

    def is_virtual_wire(self) -> bool:
        """Whether LINT0 lets the PIC's interrupts through, as the PIC's."""
        return self._lvt[LVT_LINT0] & (MASKED | MODE) == EXTINT

    def wants_inta(self) -> bool:
        """Whether the CPU is to ask the PIC for the vector. Neither TPR nor ISR hold that up."""
        return self._extint or (self._lint0 and self.is_virtual_wire())

    def acknowledge_extint(self) -> None:
        """The CPU asks the PIC: an ExtINT message has been answered."""
        self._extint = False

    def set_lint0(self, level: bool) -> None:
        """Drive LINT0, the PIC's output. In modes other than ExtINT a rising edge counts."""
        rises = level and not self._lint0
        self._lint0 = level
        if rises and self._lvt[LVT_LINT0] & MODE != EXTINT:
            self._fire(LVT_LINT0)

    def receive(self, message: int) -> bool:
        """A message for whom it may concern; returns whether this APIC took it."""
        destination = message >> DESTINATION_SHIFT
        return self._is_addressed(destination, message & LOGICAL) and self._accept(message)

    def _ppr(self) -> int:
        # SDM, "Task and Processor Priorities".
        served = self._isr.bit_length() - 1 & 0xF0 if self._isr else 0
        return self.tpr if self.tpr & 0xF0 >= served else served

    def _is_addressed(self, destination: int, is_logical: int) -> bool:
        if destination == BROADCAST:
            return True
        if not is_logical:
            return destination == APIC_ID
        own = self._ldr >> 24
        if self._model == DFR_FLAT:
            return bool(destination & own)
        # A cluster, and a set of members in it.
        return destination >> 4 == own >> 4 and bool(destination & own & 0xF)

    def _accept(self, message: int) -> bool:
        # SMI, INIT and SIPI are not for a machine that has one CPU and no firmware.
        mode = message & MODE
        if mode == NMI:
            self.nmi = True
            return True
        if not self._svr & SVR_ENABLE:
            return False
        if mode == EXTINT:
            self._extint = True
            return True
        if mode not in (FIXED, LOWEST):
            return False
        vector = message & VECTOR
        if vector < FIRST_VECTOR:
            self._error(ERROR_RECEIVE_VECTOR)
            return False
        bit = 1 << vector
        self._irr |= bit
        self._tmr = self._tmr | bit if message & LEVEL else self._tmr & ~bit
        return True

    def _fire(self, index: int) -> None:
        # An LVT entry's event has come. All of these are edges.
        entry = self._lvt[index]
        if not entry & MASKED:
            self._accept(entry & ~LEVEL)

    def _error(self, bit: int) -> None:
        # An error in sending the error's own interrupt is the same bit, and ends here.
        if not self._errors & bit:
            self._errors |= bit
            self._fire(LVT_ERROR)

    # The registers

    def _rows(self) -> list[Register]:
        def bits(name: str, base: int, read: Callable[[], int]) -> list[Register]:
            def row(index: int) -> Register:
                return Register(
                    base + 0x10 * index,
                    4,
                    f"{name}{index}",
                    lambda: read() >> 32 * index & 0xFFFF_FFFF,
                    _ignore,
                )

            return [row(index) for index in range(8)]

        rows = [
            Register(0x020, 4, "ID", lambda: APIC_ID << 24, _ignore),
            Register(0x030, 4, "VERSION", lambda: VERSION, _ignore),
            Register(0x080, 4, "TPR", lambda: self.tpr, self._write_tpr),
            Register(0x090, 4, "APR", lambda: 0, _ignore),
            Register(0x0A0, 4, "PPR", self._ppr, _ignore),
            Register(0x0B0, 4, "EOI", lambda: 0, self._write_eoi),
            Register(0x0D0, 4, "LDR", lambda: self._ldr, self._write_ldr),
            Register(0x0E0, 4, "DFR", self._read_dfr, self._write_dfr),
            Register(0x0F0, 4, "SVR", lambda: self._svr, self._write_svr),
            *bits("ISR", 0x100, lambda: self._isr),
            *bits("TMR", 0x180, lambda: self._tmr),
            *bits("IRR", 0x200, lambda: self._irr),
            Register(0x280, 4, "ESR", lambda: self._esr, self._write_esr),
            Register(0x300, 4, "ICR low", lambda: self._icr, self._write_icr),
            Register(0x310, 4, "ICR high", lambda: self._icr_destination, self._write_icr_high),
            *(self._lvt_row(index) for index in range(6)),
            Register(0x380, 4, "INITIAL COUNT", lambda: self.timer.initial, self._write_initial),
            Register(0x390, 4, "CURRENT COUNT", lambda: self.timer.current(), _ignore),
            Register(0x3E0, 4, "DIVIDE", lambda: self.timer.divide, self._write_divide),
        ]
        taken = {row.offset for row in rows}
        rows += [
            Register(offset, 4, "reserved", self._read_reserved, self._write_reserved)
            for offset in range(0, 0x400, 0x10)
            if offset not in taken
        ]
        return rows

    def _lvt_row(self, index: int) -> Register:
        def write(value: int, _mask: int) -> None:
            self._write_lvt(index, value)

        name = f"LVT {_LVT_NAMES[index]}"
        return Register(LVT_BASE + 0x10 * index, 4, name, lambda: self._lvt[index], write)

    def _write_tpr(self, value: int, _mask: int) -> None:
        self.tpr = value & 0xFF

    def _write_eoi(self, _value: int, _mask: int) -> None:
        if self._isr:
            vector = self._isr.bit_length() - 1
            self._isr &= ~(1 << vector)
            if self._tmr >> vector & 1:
                self._broadcast_eoi(vector)

    def _write_ldr(self, value: int, _mask: int) -> None:
        self._ldr = value & LDR_WRITABLE
        self._reconfigured()

    def _read_dfr(self) -> int:
        return self._model << 28 | DFR_FIXED_BITS

    def _write_dfr(self, value: int, _mask: int) -> None:
        self._model = value >> 28
        self._reconfigured()

    def _write_svr(self, value: int, _mask: int) -> None:
        self._svr = value & SVR_WRITABLE
        if not value & SVR_ENABLE:
            # SDM, "Local APIC State After It Has Been Software Disabled". What is in IRR and ISR
            # stays, and is still delivered.
            for index in range(len(self._lvt)):
                self._write_lvt(index, self._lvt[index])
        self._reconfigured()

    def _write_esr(self, _value: int, _mask: int) -> None:
        # A write arms the register anew; reads see the errors until then.
        self._esr, self._errors = self._errors, 0

    def _write_icr_high(self, value: int, _mask: int) -> None:
        self._icr_destination = value & ICR_DESTINATION

    def _write_icr(self, value: int, _mask: int) -> None:
        self._icr = value & ICR_WRITABLE
        if value & MODE in (FIXED, LOWEST) and value & VECTOR < FIRST_VECTOR:
            self._error(ERROR_SEND_VECTOR)
            return
        shorthand = value & SHORTHAND
        destination = self._icr_destination >> 24
        is_for_us = shorthand in (SELF, ALL) or (
            shorthand == NO_SHORTHAND and self._is_addressed(destination, value & LOGICAL)
        )
        # ExtINT is reserved here, and the trigger mode is for INIT only.
        if is_for_us and value & MODE != EXTINT:
            self._accept(value & ~LEVEL)

    def _write_lvt(self, index: int, value: int) -> None:
        value &= _LVT_WRITABLE[index]
        if not self._svr & SVR_ENABLE:
            value |= MASKED
        if index == LVT_TIMER:
            # Before it is stored: what is due by now goes by the old entry.
            self.timer.set_mode(bool(value & TIMER_PERIODIC), bool(value & MASKED))
        self._lvt[index] = value

    def _write_initial(self, value: int, _mask: int) -> None:
        self.timer.start(value)

    def _write_divide(self, value: int, _mask: int) -> None:
        self.timer.set_divide(value)

    def _read_reserved(self) -> int:
        self._error(ERROR_REGISTER)
        return 0

    def _write_reserved(self, _value: int, _mask: int) -> None:
        self._error(ERROR_REGISTER)


def _ignore(_value: int, _mask: int) -> None:
    # A write to a register that is read-only.
    pass
