"""The GIC and the timer of an arm64 machine, wired and on the bus."""

from __future__ import annotations

import pytest

from vmm import arm64_map
from vmm.bus import Bus
from vmm.interrupts import gicv2 as regs
from vmm.interrupts.arm import NANOSECONDS_A_TICK, ArmInterrupts
from vmm.interrupts.arm_timer import CTL_ENABLE, TimerRegister

GICD, GICC = arm64_map.GIC_DISTRIBUTOR, arm64_map.GIC_CPU_INTERFACE


class Machine:
    """The interrupts on a bus, with all of them enabled, and clocks that the test moves."""

    def __init__(self) -> None:
        self.ticks, self.nanoseconds, self.wakes = 1000, 50_000, 0
        self.bus = Bus()
        self.chips = ArmInterrupts(
            self.bus, counter=lambda: self.ticks, wake=self._wake, now=lambda: self.nanoseconds
        )
        for address, value in (
            (GICD + regs.GICD_CTLR, 1),
            (GICC + regs.GICC_CTLR, 1),
            (GICC + regs.GICC_PMR, 0xF0),
            (GICD + regs.GICD_ISENABLER, 0xFFFF_FFFF),
            (GICD + regs.GICD_ISENABLER + 4, 0xFFFF_FFFF),
        ):
            self.bus.mmio_write(address, 4, value)

    def _wake(self) -> None:
        self.wakes += 1

    def advance(self, ticks: int) -> None:
        self.ticks += ticks
        self.nanoseconds += ticks * NANOSECONDS_A_TICK

    def arm(self, ticks: int) -> None:
        self.chips.timer.write(TimerRegister.TVAL, ticks)
        self.chips.timer.write(TimerRegister.CTL, CTL_ENABLE)


def test_a_line_is_a_shared_interrupt_and_wakes_once() -> None:
    machine = Machine()

    machine.chips.set_irq(5, True)
    machine.chips.set_irq(6, True)

    assert (machine.chips.pending(), machine.wakes) == (True, 1)
    assert machine.bus.mmio_read(GICC + regs.GICC_IAR, 4) == 37


def test_the_timer_interrupts_at_its_deadline() -> None:
    machine = Machine()
    machine.arm(100)
    assert machine.chips.deadline() == 50_000 + 1600

    machine.advance(99)
    machine.chips.tick()
    assert not machine.chips.pending()
    machine.advance(1)
    machine.chips.tick()

    assert machine.chips.pending()
    assert machine.chips.deadline() is None
    assert machine.bus.mmio_read(GICC + regs.GICC_IAR, 4) == arm64_map.TIMER_INTID


def test_a_deadline_stays_what_it_was_until_the_guest_sets_another() -> None:
    machine = Machine()
    machine.arm(100)
    first = machine.chips.deadline()

    machine.nanoseconds += 7  # the clocks are read one after the other
    assert machine.chips.deadline() == first
    machine.arm(200)

    assert machine.chips.deadline() == 50_007 + 3200


def test_a_time_that_comes_between_the_tick_and_the_question_is_not_missed() -> None:
    machine = Machine()
    machine.arm(100)
    machine.chips.tick()
    machine.advance(101)

    deadline = machine.chips.deadline()
    machine.chips.tick()

    assert deadline is not None
    assert deadline <= machine.nanoseconds
    assert machine.chips.pending()
    assert machine.chips.deadline() is None


def test_a_timer_that_the_guest_turns_off_is_not_waited_for() -> None:
    machine = Machine()
    machine.arm(100)
    machine.chips.deadline()

    machine.chips.timer.write(TimerRegister.CTL, 0)

    assert machine.chips.deadline() is None


@pytest.mark.parametrize("gsi", [-17, 32, 1 << 20])
def test_there_are_32_lines(gsi: int) -> None:
    with pytest.raises(ValueError, match="no wire"):
        Machine().chips.set_irq(gsi, True)
