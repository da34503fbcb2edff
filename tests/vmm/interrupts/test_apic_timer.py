"""The local APIC's timer: counts from a clock, one-shot and periodic, and never too often."""

from __future__ import annotations

import pytest

from vmm.interrupts.apic_timer import ApicTimer
from vmm.interrupts.clock import MIN_PERIOD

# A tick is 40 ns, and 80 ns after the division by 2 that a reset leaves.
HZ = 25_000_000
TICK = 80


class Timer:
    """A timer with a clock of its own."""

    def __init__(self, hz: int = HZ) -> None:
        self.now = 1_000_000_007
        self.fired: list[int] = []
        self.timer = ApicTimer(hz, lambda: self.now, lambda: self.fired.append(self.now))

    def tick(self) -> None:
        self.timer.tick(self.now)


@pytest.fixture
def one_shot() -> Timer:
    timer = Timer()
    timer.timer.set_mode(is_periodic=False, is_masked=False)
    return timer


@pytest.fixture
def periodic() -> Timer:
    timer = Timer()
    timer.timer.set_mode(is_periodic=True, is_masked=False)
    return timer


def test_one_shot_fires_once_and_its_count_stays_0(one_shot: Timer) -> None:
    start = one_shot.now
    one_shot.timer.start(1000)
    assert one_shot.timer.due == start + 1000 * TICK

    one_shot.now = one_shot.timer.due
    one_shot.tick()

    assert one_shot.fired == [start + 1000 * TICK]
    assert one_shot.timer.due is None
    assert one_shot.timer.current() == 0


def test_nothing_fires_before_its_time(one_shot: Timer) -> None:
    one_shot.timer.start(1000)

    one_shot.now += 1000 * TICK - 1
    one_shot.tick()

    assert one_shot.fired == []
    assert one_shot.timer.current() == 1


def test_the_count_is_computed_from_the_clock(one_shot: Timer) -> None:
    one_shot.timer.start(1000)

    one_shot.now += 300 * TICK

    assert (one_shot.timer.initial, one_shot.timer.current()) == (1000, 700)


def test_periodic_fires_in_every_period_and_reloads(periodic: Timer) -> None:
    periodic.timer.start(1000)

    for _ in range(3):
        assert periodic.timer.due is not None
        periodic.now = periodic.timer.due
        periodic.tick()
    periodic.now += 10 * TICK

    assert [b - a for a, b in zip(periodic.fired, periodic.fired[1:], strict=False)] == [
        1000 * TICK
    ] * 2
    assert periodic.timer.current() == 990


def test_missed_periods_fire_once_and_keep_the_phase(periodic: Timer) -> None:
    start = periodic.now
    periodic.timer.start(1000)

    periodic.now = start + 5000 * 1000 * TICK + 7
    periodic.tick()

    assert len(periodic.fired) == 1
    assert periodic.timer.due == start + 5001 * 1000 * TICK


def test_a_period_of_one_tick_fires_no_more_often_than_the_least_period(periodic: Timer) -> None:
    start = periodic.now
    periodic.timer.start(1)

    assert periodic.timer.due == start + MIN_PERIOD


def test_a_count_of_0_stops_the_timer(one_shot: Timer) -> None:
    one_shot.timer.start(1000)

    one_shot.timer.start(0)

    assert one_shot.timer.due is None
    assert one_shot.timer.current() == 0


def test_a_masked_timer_counts_and_has_no_deadline() -> None:
    timer = Timer()
    timer.timer.start(1000)

    timer.now += 400 * TICK

    assert timer.timer.due is None
    assert timer.timer.current() == 600


def test_what_runs_out_while_masked_is_lost() -> None:
    timer = Timer()
    timer.timer.start(1000)
    timer.now += 2000 * TICK

    timer.timer.set_mode(is_periodic=False, is_masked=False)
    timer.tick()

    assert timer.timer.due is None
    assert timer.fired == []


def test_a_periodic_timer_that_was_masked_goes_on_in_phase(periodic: Timer) -> None:
    start = periodic.now
    periodic.timer.start(1000)
    periodic.timer.set_mode(is_periodic=True, is_masked=True)
    periodic.now += 2500 * TICK

    periodic.timer.set_mode(is_periodic=True, is_masked=False)

    assert periodic.timer.due == start + 3000 * TICK


def test_what_is_due_fires_before_the_guest_masks_it(one_shot: Timer) -> None:
    one_shot.timer.start(1000)
    one_shot.now += 1000 * TICK

    one_shot.timer.set_mode(is_periodic=False, is_masked=True)

    assert len(one_shot.fired) == 1


def test_what_is_due_fires_before_the_guest_starts_anew(one_shot: Timer) -> None:
    one_shot.timer.start(1000)
    one_shot.now += 1000 * TICK

    one_shot.timer.start(500)

    assert len(one_shot.fired) == 1
    assert one_shot.timer.due == one_shot.now + 500 * TICK


@pytest.mark.parametrize(
    ("value", "divisor"),
    [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1), (0xFFFF_FFF4, 2)],
)
def test_the_divide_configuration_divides(one_shot: Timer, value: int, divisor: int) -> None:
    one_shot.timer.set_divide(value)

    one_shot.timer.start(1000)

    assert one_shot.timer.due == one_shot.now + 1000 * 40 * divisor


@pytest.mark.parametrize("is_periodic", [False, True])
def test_another_divisor_keeps_the_count(is_periodic: bool) -> None:
    timer = Timer()
    timer.timer.set_mode(is_periodic, is_masked=False)
    timer.timer.start(10_000)
    timer.now += 3000 * TICK

    timer.timer.set_divide(0b1011)

    assert timer.timer.current() == 7000
    assert timer.timer.due == timer.now + 7000 * 40


def test_another_mode_keeps_the_count(periodic: Timer) -> None:
    periodic.timer.start(1000)
    periodic.now += 300 * TICK

    periodic.timer.set_mode(is_periodic=False, is_masked=False)

    assert periodic.timer.due == periodic.now + 700 * TICK


def test_a_tick_that_is_no_whole_number_of_nanoseconds_does_not_drift() -> None:
    timer = Timer(hz=3_579_545)
    timer.timer.set_mode(is_periodic=True, is_masked=False)
    start = timer.now
    timer.timer.start(1000)

    for _ in range(1000):
        assert timer.timer.due is not None
        timer.now = timer.timer.due
        timer.tick()

    assert timer.now - start == -(-1000 * 1000 * 2 * 1_000_000_000 // 3_579_545)
