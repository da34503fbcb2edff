"""The pair of 8259A interrupt controllers (8259A data sheet, order number 231468).

::

    IRQ 0, 1, 3 .. 7 ──────────────────► master ──► INTR (the local APIC's LINT0)
                                           ▲ pin 2
    IRQ 8 .. 15 ──► slave ── cascade ──────┘

A chip is programmed by what is written to its two ports, A0 = 0 and A0 = 1::

    A0 = 0, bit 4 set     ICW1: begins anew; then ICW2, ICW3, ICW4 go to A0 = 1
    A0 = 0, bits 4:3 = 0  OCW2: end of interrupt, rotation of priorities
    A0 = 0, bits 4:3 = 1  OCW3: special mask mode; whether A0 = 0 reads IRR or ISR
    A0 = 1                OCW1: the mask, which it reads too

As in a PC's chip set, the ELCR says which lines are level-triggered, not ICW1; an edge stays
latched when the line falls before the CPU takes it. There is no poll command: no PC needs it.
"""

from __future__ import annotations

from collections.abc import Callable

from vmm.regmap import Register, RegisterMap

ICW1, ICW1_SINGLE, ICW1_IC4 = 0x10, 0x02, 0x01
ICW2_BASE = 0xF8
ICW4_FULLY_NESTED, ICW4_AUTO_EOI = 0x10, 0x02

OCW3 = 0x08
OCW3_SET_SPECIAL_MASK, OCW3_SPECIAL_MASK = 0x40, 0x20
OCW3_READ, OCW3_READ_ISR = 0x02, 0x01

OCW2_ROTATE, OCW2_SPECIFIC, OCW2_EOI = 0x80, 0x40, 0x20
OCW2_PIN = 0x07

CASCADE = 2
# What a chip answers if the request is gone when the CPU asks for the vector.
SPURIOUS = 7

# IRQ 0, 1, 2, 8 and 13 are edge-triggered for ever (PIIX, ELCR1 and ELCR2).
ELCR_MASTER, ELCR_SLAVE = 0xF8, 0xDE


class Pic8259(RegisterMap):
    """One chip: ``changed()`` is called after every access that may move its output.

    ``elcr`` has a bit for each level-triggered pin. As after ICW1, nothing is masked; a PC's
    firmware would have given it vectors, here the kernel does.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        super().__init__(
            [
                Register(0, 1, "IRR, ISR, ICW1, OCW2, OCW3", self._read_status, self._command),
                Register(1, 1, "OCW1, ICW2, ICW3, ICW4", lambda: self._imr, self._data),
            ]
        )
        self._changed = changed
        self.base = 0
        self.elcr = 0
        self._lines = self._irr = self._isr = self._imr = 0
        # The pin with the lowest priority; the one behind it has the highest.
        self._lowest = 7
        self._expects = 0
        self._has_icw4 = self._is_single = False
        self._reads_isr = False
        self._special_mask = self._fully_nested = False
        self._auto_eoi = self._rotates_on_auto_eoi = False

    def set_line(self, pin: int, level: bool) -> None:
        """Drive an input pin: a rising edge is latched, a level is followed."""
        bit = 1 << pin
        if self.elcr & bit:
            self._irr = self._irr | bit if level else self._irr & ~bit
        elif level and not self._lines & bit:
            self._irr |= bit
        self._lines = self._lines | bit if level else self._lines & ~bit

    def set_elcr(self, value: int) -> None:
        """Choose the level-triggered pins; these now follow their lines."""
        self.elcr = value
        self._irr = self._irr & ~value | self._lines & value

    def latch(self, pin: int) -> None:
        """Request an interrupt as a rising edge of ``pin`` does."""
        self._irr |= 1 << pin

    def request(self) -> int | None:
        """The pin whose interrupt the chip asks for, None if its output is low."""
        requested = self._irr & ~self._imr
        if not requested:
            return None
        in_service = self._isr
        if self._special_mask:
            in_service &= ~self._imr
        if self._fully_nested:
            # What the slave has in service is the slave's affair.
            in_service &= ~(1 << CASCADE)
        first = self._first(requested)
        if in_service and self._rank(first) >= self._rank(self._first(in_service)):
            return None
        return first

    def acknowledge(self) -> int:
        """The CPU's INTA cycle: the pin that is now in service, or the spurious one."""
        pin = self.request()
        if pin is None:
            return SPURIOUS
        bit = 1 << pin
        self._irr &= ~bit | self.elcr
        if not self._auto_eoi:
            self._isr |= bit
        elif self._rotates_on_auto_eoi:
            self._lowest = pin
        return pin

    # Priorities: a pin's rank is 0 if it comes first

    def _rank(self, pin: int) -> int:
        return (pin - self._lowest - 1) & 7

    def _first(self, pins: int) -> int:
        # Turned so that the lowest bit is the highest priority. ``pins`` is not 0.
        shift = (self._lowest + 1) & 7
        turned = (pins >> shift | pins << 8 - shift) & 0xFF
        return ((turned & -turned).bit_length() - 1 + shift) & 7

    # The two ports

    def _read_status(self) -> int:
        return self._isr if self._reads_isr else self._irr

    def _command(self, value: int, _mask: int) -> None:
        if value & ICW1:
            self._initialise(value)
        elif value & OCW3:
            if value & OCW3_SET_SPECIAL_MASK:
                self._special_mask = bool(value & OCW3_SPECIAL_MASK)
            if value & OCW3_READ:
                self._reads_isr = bool(value & OCW3_READ_ISR)
        else:
            self._end_or_rotate(value)
        self._changed()

    def _initialise(self, icw1: int) -> None:
        self._irr = self._lines & self.elcr
        self._isr = self._imr = 0
        self._lowest = 7
        self._reads_isr = self._special_mask = self._fully_nested = False
        self._auto_eoi = self._rotates_on_auto_eoi = False
        self._has_icw4 = bool(icw1 & ICW1_IC4)
        self._is_single = bool(icw1 & ICW1_SINGLE)
        self._expects = 2

    def _end_or_rotate(self, ocw2: int) -> None:
        pin = ocw2 & OCW2_PIN
        if ocw2 & OCW2_EOI:
            if not ocw2 & OCW2_SPECIFIC:
                served = self._isr & ~self._imr if self._special_mask else self._isr
                if not served:
                    return
                pin = self._first(served)
            self._isr &= ~(1 << pin)
            if ocw2 & OCW2_ROTATE:
                self._lowest = pin
        elif not ocw2 & OCW2_SPECIFIC:
            self._rotates_on_auto_eoi = bool(ocw2 & OCW2_ROTATE)
        elif ocw2 & OCW2_ROTATE:
            self._lowest = pin

    def _data(self, value: int, _mask: int) -> None:
        if self._expects == 0:
            self._imr = value
        elif self._expects == 2:
            self.base = value & ICW2_BASE
            self._expects = 3 if not self._is_single else 4 if self._has_icw4 else 0
        elif self._expects == 3:
            # Says where the cascade is, which is soldered.
            self._expects = 4 if self._has_icw4 else 0
        else:
            self._fully_nested = bool(value & ICW4_FULLY_NESTED)
            self._auto_eoi = bool(value & ICW4_AUTO_EOI)
            self._expects = 0
        self._changed()


class PicPair:
    """Both chips: ``master``, ``slave`` and ``elcr`` are for the bus, IRQs count from 0 to 15.

    ``set_intr(level)`` hears when the output to the CPU changes.
    """

    def __init__(self, set_intr: Callable[[bool], None]) -> None:
        self.master = Pic8259(self._update)
        self.slave = Pic8259(self._update)
        self.elcr = RegisterMap(
            [
                Register(0, 1, "ELCR1", lambda: self.master.elcr, self._write_elcr_master),
                Register(1, 1, "ELCR2", lambda: self.slave.elcr, self._write_elcr_slave),
            ]
        )
        self._set_intr = set_intr
        self._intr = False

    def set_line(self, irq: int, level: bool) -> None:
        """Drive an IRQ line. IRQ 2 is no line, but the cascade."""
        if irq == CASCADE:
            return
        (self.slave if irq & 8 else self.master).set_line(irq & 7, level)
        self._update()

    def vector(self) -> int:
        """What :meth:`acknowledge` would return; nothing changes."""
        pin = self.master.request()
        if pin != CASCADE:
            return self.master.base + (SPURIOUS if pin is None else pin)
        pin = self.slave.request()
        return self.slave.base + (SPURIOUS if pin is None else pin)

    def acknowledge(self) -> int:
        """The CPU's INTA cycle: the vector of the interrupt that is now in service.

        A request that has gone leaves the vector of IRQ 7 or 15, with nothing in service, but
        for IRQ 2 before an IRQ 15.
        """
        pin = self.master.acknowledge()
        vector = self.master.base + pin
        if pin == CASCADE:
            vector = self.slave.base + self.slave.acknowledge()
        self._update()
        return vector

    def _update(self) -> None:
        # The slave's output is an edge to the master, and rises anew after each acknowledge.
        if self.slave.request() is not None:
            self.master.latch(CASCADE)
        intr = self.master.request() is not None
        if intr != self._intr:
            self._intr = intr
            self._set_intr(intr)

    def _write_elcr_master(self, value: int, _mask: int) -> None:
        self.master.set_elcr(value & ELCR_MASTER)
        self._update()

    def _write_elcr_slave(self, value: int, _mask: int) -> None:
        self.slave.set_elcr(value & ELCR_SLAVE)
        self._update()
