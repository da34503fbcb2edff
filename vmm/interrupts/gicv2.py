"""GICv2: the interrupt controller of an arm64 machine with one CPU (ARM IHI 0048B, the GIC
architecture specification 2.0; names of registers and their fields are its own).

::

    set_irq ─► level, edge ─► GICD_ISPENDR ─► GICD_ISENABLER ─► GICD_IPRIORITYR
                                                                       │ highest
    line to the CPU ◄─ above GICC_PMR and GICC_RPR ◄───────────────────┘

    inactive ── set_irq, GICD_ISPENDR, GICD_SGIR ──► pending
    pending  ── GICC_IAR ──► active, and pending still while a level is high
    active   ── GICC_EOIR, or with EOImode GICC_DIR ──► inactive, or pending still

What is optional and left out: the Security Extensions; interrupt groups, so all interrupts are in
Group 0 and GICD_IGROUPR is zero; the bypass. With one CPU every SPI is for it, and GICD_ITARGETSR
is zero; an SGI can come from that CPU only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from vmm.regmap import Register, RegisterMap

INTERRUPTS = 64
"""INTIDs: 16 SGIs, 16 PPIs and 32 SPIs."""

SPURIOUS = 1023
"""What GICC_IAR gives when there is nothing to do."""

_SGIS, _PRIVATE = 16, 32
_SGI_MASK = (1 << _SGIS) - 1
_WORD = 0xFFFF_FFFF
_INTID = 0x3FF

GICD_CTLR, GICD_TYPER, GICD_IIDR = 0x000, 0x004, 0x008
GICD_ISENABLER, GICD_ICENABLER = 0x100, 0x180
GICD_ISPENDR, GICD_ICPENDR = 0x200, 0x280
GICD_ISACTIVER, GICD_ICACTIVER = 0x300, 0x380
GICD_IPRIORITYR, GICD_ICFGR = 0x400, 0xC00
GICD_SGIR, GICD_CPENDSGIR, GICD_SPENDSGIR = 0xF00, 0xF10, 0xF20
GICD_PIDR2 = 0xFE8

GICC_CTLR, GICC_PMR, GICC_BPR, GICC_IAR, GICC_EOIR = 0x00, 0x04, 0x08, 0x0C, 0x10
GICC_RPR, GICC_HPPIR, GICC_APR0, GICC_IIDR, GICC_DIR = 0x14, 0x18, 0xD0, 0xFC, 0x1000

CTLR_ENABLE = 1 << 0
CTLR_EOIMODE = 1 << 9

# Five bits of a priority are there: 32 levels, in steps of 8.
_PRIORITY_MASK = 0xF8
_PRIORITY_SHIFT = 3
IDLE_PRIORITY = 0xFF

# All bits of a priority decide on preemption with the least binary point that there is.
_LEAST_BINARY_POINT = 2
_BINARY_POINT_MASK = 7

# ARM's JEP106 code, as the architecture's; the product is arbitrary, and no chip's.
_IMPLEMENTER = 0x43B
_PRODUCT = 0x56
_GICD_IIDR = _PRODUCT << 24 | _IMPLEMENTER
_GICC_IIDR = _PRODUCT << 20 | 2 << 16 | _IMPLEMENTER
# Peripheral ID2: architecture 2, JEDEC-assigned.
_PIDR2 = 0x2B

_SGI_FILTER_SHIFT, _SGI_TO_LIST, _SGI_TO_SELF = 24, 0, 2
_SGI_TARGETS_SHIFT = 16


class Gic:
    """The controller: ``distributor`` and ``cpu_interface`` are its two devices on the bus.

    ``on_line(level)`` is called when the line to the CPU changes, on whatever thread made it
    change and with the controller's lock held, so that no two calls are out of order: it may only
    take note. All else is for any thread.
    """

    def __init__(self, on_line: Callable[[bool], None] = lambda _level: None) -> None:
        self._on_line = on_line
        self._lock = threading.Lock()
        # One bit an interrupt. The levels are those of the wires; what is latched is pending
        # without one: an edge, an SGI, or what the guest itself has set.
        self._levels = self._latched = self._enabled = self._active = 0
        self._edge = _SGI_MASK
        self._priorities = bytearray(INTERRUPTS)
        self._distributor_control = 0
        self._cpu_control = self._mask = 0
        self._binary_point = _LEAST_BINARY_POINT
        # GICC_APR0: one bit for each priority of which an interrupt is being handled.
        self._handled = 0
        self._line = False
        self.distributor = RegisterMap(self._distributor_registers(), empty=0)
        self.cpu_interface = RegisterMap(self._cpu_registers(), empty=0)

    # ── the machine's side ────────────────────────────────────────────────────────────

    def set_irq(self, intid: int, level: bool) -> None:
        """The wire of PPI or SPI ``intid`` (16 to 63) is high, or low."""
        if not _SGIS <= intid < INTERRUPTS:
            raise ValueError(f"there is no wire for interrupt {intid}")
        bit = 1 << intid
        with self._lock:
            if not level:
                self._levels &= ~bit
            elif not self._levels & bit:
                self._levels |= bit
                self._latched |= bit & self._edge
            self._update()

    def pending(self) -> bool:
        """The level of the IRQ line to the CPU, as of now; takes no lock."""
        return self._line

    # ── the distributor ───────────────────────────────────────────────────────────────

    def _distributor_registers(self) -> Iterator[Register]:
        yield self._register(
            GICD_CTLR, "GICD_CTLR", lambda: self._distributor_control, self._set_distributor_control
        )
        yield _constant(GICD_TYPER, "GICD_TYPER", INTERRUPTS // 32 - 1)
        yield _constant(GICD_IIDR, "GICD_IIDR", _GICD_IIDR)
        for word in range(INTERRUPTS // 32):
            yield from self._bit_registers(word)
        for word in range(INTERRUPTS // 4):
            yield self._priority_register(word)
        for word in range(INTERRUPTS // 16):
            yield self._configuration_register(word)
        yield self._register(GICD_SGIR, "GICD_SGIR", lambda: 0, self._send_sgi)
        for word in range(_SGIS // 4):
            yield from self._sgi_registers(word)
        yield _constant(GICD_PIDR2, "ICPIDR2", _PIDR2)

    def _register(
        self,
        offset: int,
        name: str,
        read: Callable[[], int],
        write: Callable[[int, int], None] = lambda _value, _mask: None,
    ) -> Register:
        # Reads and writes happen with the lock held, and what they change shows on the line.
        def locked_read() -> int:
            with self._lock:
                value = read()
                self._update()
                return value

        def locked_write(value: int, mask: int) -> None:
            with self._lock:
                write(value, mask)
                self._update()

        return Register(offset, 4, name, locked_read, locked_write)

    def _bit_registers(self, word: int) -> Iterator[Register]:
        # Pairs that read the same; a one sets in the first, and clears in the second.
        def enable(bits: int) -> None:
            self._enabled |= bits

        def disable(bits: int) -> None:
            self._enabled &= ~bits

        def pend(bits: int) -> None:
            # Of SGIs the register is a view: GICD_SPENDSGIR sets them.
            self._latched |= bits & ~_SGI_MASK

        def unpend(bits: int) -> None:
            # A level that is high stays pending.
            self._latched &= ~bits | _SGI_MASK

        def activate(bits: int) -> None:
            self._active |= bits

        def deactivate(bits: int) -> None:
            self._active &= ~bits

        rows = (
            (GICD_ISENABLER, "GICD_ISENABLER", lambda: self._enabled, enable),
            (GICD_ICENABLER, "GICD_ICENABLER", lambda: self._enabled, disable),
            (GICD_ISPENDR, "GICD_ISPENDR", self._pending_bits, pend),
            (GICD_ICPENDR, "GICD_ICPENDR", self._pending_bits, unpend),
            (GICD_ISACTIVER, "GICD_ISACTIVER", lambda: self._active, activate),
            (GICD_ICACTIVER, "GICD_ICACTIVER", lambda: self._active, deactivate),
        )
        for offset, name, read, change in rows:
            yield self._bit_register(offset, name, word, read, change)

    def _bit_register(
        self,
        offset: int,
        name: str,
        word: int,
        read: Callable[[], int],
        change: Callable[[int], None],
    ) -> Register:
        shift = 32 * word
        return self._register(
            offset + 4 * word,
            f"{name}{word}",
            lambda: read() >> shift & _WORD,
            lambda value, _mask: change(value << shift),
        )

    def _priority_register(self, word: int) -> Register:
        four = slice(4 * word, 4 * word + 4)

        def read() -> int:
            return int.from_bytes(self._priorities[four], "little")

        def write(value: int, mask: int) -> None:
            kept = read() & ~mask
            self._priorities[four] = bytes(
                byte & _PRIORITY_MASK for byte in (kept | value).to_bytes(4, "little")
            )

        return self._register(GICD_IPRIORITYR + 4 * word, f"GICD_IPRIORITYR{word}", read, write)

    def _configuration_register(self, word: int) -> Register:
        # Two bits an interrupt, of which the upper one means edge. SGIs are edges, and PPIs have
        # levels, whatever the guest writes.
        first = 16 * word

        def read() -> int:
            return sum(2 << 2 * n for n in range(16) if self._edge >> first + n & 1)

        def write(value: int, mask: int) -> None:
            if first < _PRIVATE:
                return
            for n in range(16):
                bit = 1 << first + n
                if mask >> 2 * n & 2:
                    self._edge = self._edge | bit if value >> 2 * n & 2 else self._edge & ~bit

        return self._register(GICD_ICFGR + 4 * word, f"GICD_ICFGR{word}", read, write)

    def _sgi_registers(self, word: int) -> Iterator[Register]:
        # A byte an SGI, a bit a CPU that it came from: here bit 0 of each.
        def read() -> int:
            return sum(1 << 8 * n for n in range(4) if self._latched >> 4 * word + n & 1)

        def named(value: int) -> int:
            return sum(1 << 4 * word + n for n in range(4) if value >> 8 * n & 1)

        def clear(value: int, _mask: int) -> None:
            self._latched &= ~named(value)

        def set_(value: int, _mask: int) -> None:
            self._latched |= named(value)

        yield self._register(GICD_CPENDSGIR + 4 * word, f"GICD_CPENDSGIR{word}", read, clear)
        yield self._register(GICD_SPENDSGIR + 4 * word, f"GICD_SPENDSGIR{word}", read, set_)

    def _set_distributor_control(self, value: int, mask: int) -> None:
        self._distributor_control = _merge(self._distributor_control, value, mask) & CTLR_ENABLE

    def _send_sgi(self, value: int, _mask: int) -> None:
        target = value >> _SGI_FILTER_SHIFT & 3
        to_list = target == _SGI_TO_LIST and value >> _SGI_TARGETS_SHIFT & 1
        if to_list or target == _SGI_TO_SELF:
            self._latched |= 1 << (value & 0xF)

    # ── the CPU interface ─────────────────────────────────────────────────────────────

    def _cpu_registers(self) -> Iterator[Register]:
        rows: tuple[tuple[int, str, Callable[[], int], Callable[[int, int], None]], ...] = (
            (GICC_CTLR, "GICC_CTLR", lambda: self._cpu_control, self._set_cpu_control),
            (GICC_PMR, "GICC_PMR", lambda: self._mask, self._set_mask),
            (GICC_BPR, "GICC_BPR", lambda: self._binary_point, self._set_binary_point),
            (GICC_EOIR, "GICC_EOIR", lambda: 0, self._end),
            (GICC_APR0, "GICC_APR0", lambda: self._handled, self._set_handled),
            (GICC_DIR, "GICC_DIR", lambda: 0, self._deactivate),
        )
        for offset, name, read, write in rows:
            yield self._register(offset, name, read, write)
        yield self._register(GICC_IAR, "GICC_IAR", self._acknowledge)
        yield self._register(GICC_RPR, "GICC_RPR", self._running_priority)
        yield self._register(GICC_HPPIR, "GICC_HPPIR", self._highest_pending)
        yield _constant(GICC_IIDR, "GICC_IIDR", _GICC_IIDR)

    def _set_cpu_control(self, value: int, mask: int) -> None:
        self._cpu_control = _merge(self._cpu_control, value, mask) & (CTLR_ENABLE | CTLR_EOIMODE)

    def _set_mask(self, value: int, mask: int) -> None:
        self._mask = _merge(self._mask, value, mask) & _PRIORITY_MASK

    def _set_binary_point(self, value: int, mask: int) -> None:
        wanted = _merge(self._binary_point, value, mask) & _BINARY_POINT_MASK
        self._binary_point = max(wanted, _LEAST_BINARY_POINT)

    def _set_handled(self, value: int, mask: int) -> None:
        self._handled = _merge(self._handled, value, mask)

    def _acknowledge(self) -> int:
        intid = self._signalled()
        if intid != SPURIOUS:
            self._latched &= ~(1 << intid)
            self._active |= 1 << intid
            self._handled |= 1 << (self._group_priority(intid) >> _PRIORITY_SHIFT)
        return intid

    def _end(self, value: int, _mask: int) -> None:
        intid = value & _INTID
        if intid >= INTERRUPTS:
            return
        if self._cpu_control & CTLR_EOIMODE:
            self._handled &= self._handled - 1
        elif self._active >> intid & 1:
            # An end of what was not acknowledged is the guest's mistake, and changes nothing.
            self._handled &= self._handled - 1
            self._active &= ~(1 << intid)

    def _deactivate(self, value: int, _mask: int) -> None:
        intid = value & _INTID
        if intid < INTERRUPTS and self._cpu_control & CTLR_EOIMODE:
            self._active &= ~(1 << intid)

    # ── all of these are called with the lock held ────────────────────────────────────

    def _pending_bits(self) -> int:
        return self._latched | self._levels & ~self._edge

    def _highest_pending(self) -> int:
        # Of several with one priority, the one with the lowest number.
        waiting = self._pending_bits() & self._enabled & ~self._active
        if not waiting or not self._distributor_control & CTLR_ENABLE:
            return SPURIOUS
        return min(_bits(waiting), key=lambda intid: self._priorities[intid])

    def _signalled(self) -> int:
        # The highest pending one, if the CPU is to hear of it now.
        intid = self._highest_pending()
        if intid == SPURIOUS or not self._cpu_control & CTLR_ENABLE:
            return SPURIOUS
        if self._priorities[intid] >= self._mask:
            return SPURIOUS
        if self._handled and self._group_priority(intid) >= self._running_priority():
            return SPURIOUS
        return intid

    def _group_priority(self, intid: int) -> int:
        return self._priorities[intid] & ~((2 << self._binary_point) - 1)

    def _running_priority(self) -> int:
        if not self._handled:
            return IDLE_PRIORITY
        return next(_bits(self._handled)) << _PRIORITY_SHIFT

    def _update(self) -> None:
        line = self._signalled() != SPURIOUS
        if line != self._line:
            self._line = line
            self._on_line(line)


def _bits(value: int) -> Iterator[int]:
    # The numbers of the bits that are set, upwards.
    while value:
        lowest = value & -value
        yield lowest.bit_length() - 1
        value ^= lowest


def _merge(old: int, value: int, mask: int) -> int:
    return old & ~mask | value


def _constant(offset: int, name: str, value: int) -> Register:
    return Register(offset, 4, name, lambda: value, lambda _value, _mask: None)
