"""The 8254 and port 0x61: modes, latches, and the interrupt, all from a clock that stands."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.interrupts.clock import MIN_PERIOD
from vmm.interrupts.pit import HZ, REFRESH_NS, Pit

CONTROL = 3
WORD = 0x30
GATE2 = 0x01
OUT2 = 0x20


class Timer:
    """A PIT with a clock of its own, which starts at an odd time."""

    def __init__(self) -> None:
        self.now = 123_456_789
        self.irqs = 0
        self.pit = Pit(lambda: self.now, self._raise)

    def _raise(self) -> None:
        self.irqs += 1

    def put(self, port: int, *values: int) -> None:
        for value in values:
            self.pit.counters.write(port, 1, value)

    def program(self, counter: int, mode: int, count: int) -> None:
        self.put(CONTROL, counter << 6 | WORD | mode << 1)
        self.put(counter, count & 0xFF, count >> 8)

    def read(self, counter: int) -> int:
        low = self.pit.counters.read(counter, 1)
        return low | self.pit.counters.read(counter, 1) << 8

    def after(self, pulses: float) -> None:
        """Let so many clock pulses go by, and a little more than that."""
        self.now += int(pulses * 1_000_000_000 / HZ) + 1

    def after_ticking(self, pulses: float) -> int:
        """The interrupts raised within that time."""
        end = self.now + int(pulses * 1_000_000_000 / HZ) + 1
        before = self.irqs
        while self.pit.due is not None and self.pit.due <= end:
            self.now = self.pit.due
            self.pit.tick(self.now)
        self.now = end
        return self.irqs - before

    def gate2(self, level: bool) -> None:
        self.pit.control_b.write(0, 1, GATE2 if level else 0)

    def out2(self) -> bool:
        return bool(self.pit.control_b.read(0, 1) & OUT2)


@pytest.fixture
def timer() -> Timer:
    return Timer()


def test_nothing_runs_before_it_is_programmed(timer: Timer) -> None:
    assert timer.pit.due is None
    assert timer.read(0) == 0


def test_mode_0_interrupts_once_at_terminal_count(timer: Timer) -> None:
    timer.program(0, 0, 1000)

    assert timer.after_ticking(999) == 0
    assert timer.after_ticking(1) == 1
    assert timer.after_ticking(100_000) == 0


@pytest.mark.parametrize("mode", [2, 3, 6, 7])
def test_periodic_modes_interrupt_in_every_period(timer: Timer, mode: int) -> None:
    timer.program(0, mode, 11_932)

    assert timer.after_ticking(11_932 * 10) == 10


def test_mode_4_interrupts_once_at_the_end_of_its_strobe(timer: Timer) -> None:
    timer.program(0, 4, 1000)

    assert timer.after_ticking(1000) == 0
    assert timer.after_ticking(1) == 1
    assert timer.after_ticking(100_000) == 0


@pytest.mark.parametrize("mode", [1, 5])
def test_modes_that_a_gate_starts_never_start_on_channel_0(timer: Timer, mode: int) -> None:
    timer.program(0, mode, 1000)

    assert timer.pit.due is None


def test_a_count_of_0_is_65536(timer: Timer) -> None:
    timer.program(0, 2, 0)

    assert timer.after_ticking(65_535) == 0
    assert timer.after_ticking(1) == 1


def test_the_count_goes_down_with_the_clock(timer: Timer) -> None:
    timer.program(0, 0, 1000)

    timer.after(300)

    assert timer.read(0) == 700


def test_a_one_shot_count_wraps_below_0(timer: Timer) -> None:
    timer.program(0, 0, 10)

    timer.after(15)

    assert timer.read(0) == 0xFFFB


def test_the_count_of_a_rate_generator_starts_again(timer: Timer) -> None:
    timer.program(0, 2, 1000)

    timer.after(2300)

    assert timer.read(0) == 700


def test_the_count_of_a_square_wave_goes_down_by_two(timer: Timer) -> None:
    timer.program(0, 3, 1000)
    timer.after(100)
    first = timer.read(0)

    timer.after(500)

    assert (first, timer.read(0)) == (800, 800)


def test_a_bcd_counter_counts_in_decimal(timer: Timer) -> None:
    timer.put(CONTROL, WORD | 0x01)
    timer.put(0, 0x00, 0x10)

    timer.after(1)

    assert timer.read(0) == 0x0999


def test_a_latched_count_stays_until_both_bytes_are_read(timer: Timer) -> None:
    timer.program(0, 0, 0x1234)
    timer.after(0x34)
    timer.put(CONTROL, 0x00)
    timer.after(500)
    timer.put(CONTROL, 0x00)

    assert timer.read(0) == 0x1200
    assert timer.read(0) < 0x1200


def test_only_the_low_byte_is_written_and_read_in_low_access(timer: Timer) -> None:
    timer.put(CONTROL, 0x10)
    timer.put(0, 0x80)

    timer.after(0x10)

    assert [timer.pit.counters.read(0, 1) for _ in range(2)] == [0x70, 0x70]


def test_only_the_high_byte_is_written_and_read_in_high_access(timer: Timer) -> None:
    timer.put(CONTROL, 0x20)
    timer.put(0, 0x80)

    timer.after(0x1000)

    assert [timer.pit.counters.read(0, 1) for _ in range(2)] == [0x70, 0x70]


def test_half_a_count_in_mode_0_stops_the_counter(timer: Timer) -> None:
    timer.program(0, 0, 1000)

    timer.put(0, 0xFF)

    assert timer.pit.due is None


def test_read_back_latches_counts_of_several_counters_at_one_time(timer: Timer) -> None:
    timer.program(0, 0, 1000)
    timer.program(1, 0, 1000)
    timer.after(10)

    timer.put(CONTROL, 0xC0 | 0x10 | 0x02 | 0x04)
    timer.after(10)

    assert (timer.read(0), timer.read(1)) == (990, 990)


def test_read_back_gives_status_before_the_count(timer: Timer) -> None:
    timer.program(0, 2, 1000)
    timer.after(10)

    timer.put(CONTROL, 0xC0 | 0x02)

    assert timer.pit.counters.read(0, 1) == 0x80 | WORD | 2 << 1
    assert timer.read(0) == 990


def test_status_says_that_no_count_has_been_loaded(timer: Timer) -> None:
    timer.put(CONTROL, WORD)

    timer.put(CONTROL, 0xC0 | 0x20 | 0x02)

    assert timer.pit.counters.read(0, 1) == 0x40 | WORD


def test_a_guest_that_did_not_tick_gets_one_interrupt_and_keeps_its_phase(timer: Timer) -> None:
    timer.program(0, 2, 11_932)
    start = timer.now

    timer.after(11_932 * 1000.5)
    timer.pit.tick(timer.now)

    assert timer.irqs == 1
    assert timer.pit.due == start - (-1001 * 11_932 * 1_000_000_000 // HZ)


@pytest.mark.parametrize("mode", [2, 3])
def test_a_count_of_1_interrupts_no_more_often_than_the_least_period(
    timer: Timer, mode: int
) -> None:
    timer.program(0, mode, 1)

    assert timer.after_ticking(HZ / 100) <= 10_000_000 // MIN_PERIOD


def test_reprogramming_loses_no_interrupt_that_was_due(timer: Timer) -> None:
    timer.program(0, 0, 1000)
    timer.after(1001)

    timer.put(CONTROL, WORD)

    assert timer.irqs == 1


def test_linux_calibrates_by_out2_of_a_gated_one_shot(timer: Timer) -> None:
    """The steps of arch/x86/kernel/tsc.c, pit_calibrate_tsc."""
    timer.gate2(True)
    timer.program(2, 0, 1000)
    assert not timer.out2()

    timer.after(1000)

    assert timer.out2()


def test_linux_sees_each_high_byte_of_a_running_count(timer: Timer) -> None:
    """The steps of arch/x86/kernel/tsc.c, quick_pit_calibrate."""
    timer.gate2(True)
    timer.program(2, 0, 0xFFFF)

    seen = []
    for _ in range(3):
        timer.after(256)
        seen.append(timer.read(2) >> 8)

    assert seen == [0xFE, 0xFD, 0xFC]


def test_the_gate_pauses_a_one_shot(timer: Timer) -> None:
    timer.gate2(True)
    timer.program(2, 0, 1000)
    timer.after(400)
    timer.gate2(False)
    timer.after(5000)
    timer.gate2(True)

    timer.after(100)

    assert timer.read(2) == 500


def test_a_count_loaded_while_the_gate_is_low_waits_for_it(timer: Timer) -> None:
    timer.program(2, 0, 1000)
    timer.after(5000)

    assert timer.read(2) == 1000


def test_the_gate_starts_a_square_wave_anew(timer: Timer) -> None:
    timer.gate2(True)
    timer.program(2, 3, 1000)
    timer.after(700)
    assert not timer.out2()
    timer.gate2(False)
    assert timer.out2()

    timer.gate2(True)
    timer.after(400)

    assert timer.out2()


def test_the_gate_triggers_a_hardware_one_shot_again_and_again(timer: Timer) -> None:
    timer.program(2, 1, 1000)
    assert timer.out2()

    for _ in range(2):
        timer.gate2(True)
        timer.after(500)
        assert not timer.out2()
        timer.after(501)
        assert timer.out2()
        timer.gate2(False)


def test_rate_and_strobe_are_low_for_one_pulse(timer: Timer) -> None:
    timer.gate2(True)
    for mode, low in ((2, 999), (4, 1000)):
        timer.program(2, mode, 1000)
        levels = []
        for pulses in (low - 1, 1, 1):
            timer.after(pulses)
            levels.append(timer.out2())
        assert levels == [True, False, True]


def test_port_61_keeps_its_low_bits_and_toggles_with_the_refresh(timer: Timer) -> None:
    timer.pit.control_b.write(0, 1, 0xFF)
    first = timer.pit.control_b.read(0, 1)
    timer.now += REFRESH_NS
    second = timer.pit.control_b.read(0, 1)

    assert first & 0xCF == 0x0F
    assert (first ^ second) & 0x10


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["write", "read", "b", "tick"]),
            st.integers(0, 3),
            st.integers(0, 0xFF),
            st.integers(0, 100_000_000),
        )
    )
)
def test_whatever_the_guest_does_a_tick_comes_after_now(
    steps: list[tuple[str, int, int, int]],
) -> None:
    timer = Timer()

    for what, port, value, passed in steps:
        timer.now += passed
        if what == "write":
            timer.put(port, value)
        elif what == "read":
            assert 0 <= timer.pit.counters.read(port, 1) <= 0xFF
        elif what == "b":
            timer.pit.control_b.write(0, 1, value)
            assert 0 <= timer.pit.control_b.read(0, 1) <= 0xFF
        else:
            timer.pit.tick(timer.now)
            assert timer.pit.due is None or timer.pit.due > timer.now
