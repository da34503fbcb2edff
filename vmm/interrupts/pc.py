"""All interrupt controllers and timers of a PC with one CPU, wired as KVM wires its own.

::

    PIT channel 0 ──► GSI 0
    GSI 0 .. 15 ──┬──► PIC pair ──INTR──► LINT0 ┐
    GSI 0 .. 23 ──┴──► IOAPIC ───messages─────► local APIC ──► CPU
                          ▲                        │
                          └──── EOI broadcast ─────┘

A GSI is the IOAPIC's pin of that number, the timer's too: the MADT (vmm/boot/acpi/tables.py) has
no override that would move it to pin 2. LINT1 leads nowhere.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from vmm import memory_map
from vmm.bus import Bus, Device
from vmm.interrupts import ioapic, lapic
from vmm.interrupts.ioapic import IoApic
from vmm.interrupts.lapic import LocalApic
from vmm.interrupts.pic import PicPair
from vmm.interrupts.pit import Pit
from vmm.platform import ports

ISA_IRQS = 16


class PcInterrupts:
    """The controllers, on ``bus``. Every method may be called from any thread.

    ``timer_hz`` is the frequency of the local APIC's timer, before its divider; ``now()`` a clock
    in nanoseconds that never goes back. ``wake()`` is called, without a lock, when
    :meth:`set_irq` has made something deliverable; what the CPU does itself, and :meth:`tick`,
    wake nobody.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        timer_hz: int,
        now: Callable[[], int] = time.monotonic_ns,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self._now, self._wake = now, wake
        # The chips have no lock of their own; re-entrant, for pending() is asked inside as well.
        self._lock = threading.RLock()
        # What pending() found last, and whether anything may have changed since.
        self._vector: int | None = None
        self._is_stale = False
        self._lapic = LocalApic(
            timer_hz,
            now,
            broadcast_eoi=lambda vector: self._ioapic.end_of_interrupt(vector),
            reconfigured=lambda: self._ioapic.retry(),
        )
        self._ioapic = IoApic(self._lapic.receive)
        self._pic = PicPair(self._lapic.set_lint0)
        self._pit = Pit(now, self._pulse_timer)
        for port, length, chip in (
            (ports.PIC_MASTER, ports.PIC_LENGTH, self._pic.master),
            (ports.PIC_SLAVE, ports.PIC_LENGTH, self._pic.slave),
            (ports.ELCR, ports.ELCR_LENGTH, self._pic.elcr),
            (ports.PIT, ports.PIT_LENGTH, self._pit.counters),
            (ports.SYSTEM_CONTROL_B, 1, self._pit.control_b),
        ):
            bus.add_pio(port, length, _Locked(chip, self))
        bus.add_mmio(memory_map.IOAPIC, ioapic.SIZE, _Locked(self._ioapic, self))
        bus.add_mmio(memory_map.LOCAL_APIC, lapic.SIZE, _Locked(self._lapic, self))

    # Devices

    def set_irq(self, gsi: int, level: bool) -> None:
        """Set the level of interrupt line ``gsi``, 0 to 23; ValueError for others."""
        if not 0 <= gsi < ioapic.PINS:
            raise ValueError(f"there is no GSI {gsi}")
        with self._lock:
            before = self.pending(), self._lapic.nmi
            self._drive(gsi, level)
            self._is_stale = True
            after = self.pending(), self._lapic.nmi
        if after != before and after != (None, False):
            self._wake()

    # The CPU

    def pending(self) -> int | None:
        """The vector that the CPU takes next if its interrupts are on; None if there is none."""
        return self._find() if self._is_stale else self._vector

    def acknowledge(self) -> int:
        """The CPU takes an interrupt: the vector, which is now in service.

        That of a spurious interrupt if :meth:`pending` has been overtaken by events.
        """
        with self._lock:
            self._is_stale = True
            apic = self._lapic
            if apic.wants_inta() or (apic.request() is None and apic.is_virtual_wire()):
                apic.acknowledge_extint()
                return self._pic.acknowledge()
            return apic.acknowledge()

    def pending_nmi(self) -> bool:
        """Whether an NMI waits."""
        return self._lapic.nmi

    def take_nmi(self) -> bool:
        """The CPU takes the NMI, if there is one."""
        with self._lock:
            found, self._lapic.nmi = self._lapic.nmi, False
            return found

    def get_tpr(self) -> int:
        """The task priority register, eight bits; CR8 is its upper four."""
        return self._lapic.tpr

    def set_tpr(self, value: int) -> None:
        """Set the task priority register: what CR8 is set to, four bits to the left."""
        with self._lock:
            self._lapic.tpr = value & 0xFF
            self._is_stale = True

    # Time

    def deadline(self) -> int | None:
        """When, on the clock of ``now``, :meth:`tick` has something to do; None if never.

        A timer that is masked in the local APIC has no deadline; the PIT does not know of masks.
        """
        apic, pit = self._lapic.timer.due, self._pit.due
        if apic is None or pit is None:
            return pit if apic is None else apic
        return min(apic, pit)

    def tick(self) -> None:
        """Let the timers fire that are due: each once, however long nobody asked."""
        now = self._now()
        due = self.deadline()
        if due is None or due > now:
            return
        with self._lock:
            self._lapic.timer.tick(now)
            self._pit.tick(now)
            self._is_stale = True

    # All of these are called with the lock held

    def _drive(self, gsi: int, level: bool) -> None:
        if gsi < ISA_IRQS:
            self._pic.set_line(gsi, level)
        self._ioapic.set_line(gsi, level)

    def _pulse_timer(self) -> None:
        # The output stays high for most of a period; only that it rises matters.
        self._drive(ports.PIT_IRQ, True)
        self._drive(ports.PIT_IRQ, False)

    def _find(self) -> int | None:
        with self._lock:
            self._is_stale = False
            apic = self._lapic
            self._vector = self._pic.vector() if apic.wants_inta() else apic.request()
            return self._vector


class _Locked:
    # A chip on the bus: one access at a time, after which another interrupt may be pending. A read
    # too: that of a reserved register of the local APIC is an error, which may interrupt.
    __slots__ = ("_chip", "_lock", "_owner")

    def __init__(self, chip: Device, owner: PcInterrupts) -> None:
        self._chip, self._owner, self._lock = chip, owner, owner._lock

    def read(self, offset: int, size: int) -> int:
        with self._lock:
            value = self._chip.read(offset, size)
            self._owner._is_stale = True
            return value

    def write(self, offset: int, size: int, value: int) -> None:
        with self._lock:
            self._chip.write(offset, size, value)
            self._owner._is_stale = True
