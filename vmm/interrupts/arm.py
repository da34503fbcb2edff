"""The interrupt controller and the timer of an arm64 machine with one CPU, for a backend that has
neither: wired to each other, and put where vmm/arm64_map.py says."""

from __future__ import annotations

import time
from collections.abc import Callable

from vmm import arm64_map
from vmm.bus import Bus
from vmm.interrupts.arm_timer import PhysicalTimer
from vmm.interrupts.gicv2 import Gic

# The engine's counter runs at 62.5 MHz, whatever CNTFRQ_EL0 is set to: 16 ns a tick.
NANOSECONDS_A_TICK = 16


class ArmInterrupts:
    """A GICv2 on ``bus``, and the physical timer on ``counter()``, CNTPCT_EL0.

    ``wake()`` is called when the line to the CPU rises, on whatever thread made it rise and with
    the GIC's lock held. ``timer`` and :meth:`tick` belong to the vCPU's thread.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        counter: Callable[[], int],
        wake: Callable[[], None] = lambda: None,
        now: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._counter, self._now = counter, now
        self._gic = Gic(lambda level: wake() if level else None)
        self.timer = PhysicalTimer(counter)
        # When the timer is due, in ticks and in nanoseconds of the host's clock: worked out once.
        self._is_raised = False  # the timer's interrupt, as the GIC was last told
        self._due: tuple[int, int] | None = None
        bus.add_mmio(
            arm64_map.GIC_DISTRIBUTOR, arm64_map.GIC_DISTRIBUTOR_SIZE, self._gic.distributor
        )
        bus.add_mmio(
            arm64_map.GIC_CPU_INTERFACE, arm64_map.GIC_CPU_INTERFACE_SIZE, self._gic.cpu_interface
        )

    def set_irq(self, gsi: int, level: bool) -> None:
        """Set the level of interrupt line ``gsi``, 0 to 31; ValueError for others."""
        self._gic.set_irq(arm64_map.intid(gsi), level)

    def tick(self) -> None:
        """Bring the timer's interrupt up to the time."""
        self._is_raised = self.timer.level()
        self._gic.set_irq(arm64_map.TIMER_INTID, self._is_raised)

    def pending(self) -> bool:
        """Whether the CPU is interrupted, as soon as it lets itself be."""
        return self._gic.pending()

    def deadline(self) -> int | None:
        """When :meth:`tick` will raise the timer's interrupt, in nanoseconds of ``now``; None if
        that is not to be waited for.

        It is past, and not None, if the time has come since the last :meth:`tick`, which did not
        see it.
        """
        ticks = None if self._is_raised else self.timer.deadline()
        if ticks is None:
            self._due = None
        elif self._due is None or self._due[0] != ticks:
            left = ticks - self._counter()
            self._due = (ticks, self._now() + max(left, 0) * NANOSECONDS_A_TICK)
        return None if self._due is None else self._due[1]
