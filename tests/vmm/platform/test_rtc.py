"""The CMOS clock: UTC in BCD, whole while a guest reads it."""

from __future__ import annotations

import calendar

from vmm.platform.rtc import Rtc

INDEX, DATA = 0, 1
SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY = 0, 2, 4, 6, 7, 8, 9, 0x32


class Clock:
    """A host's clock that moves when it is told to."""

    def __init__(self, *utc: int) -> None:
        self.now = float(calendar.timegm((*utc, 0, 0, 0)))

    def __call__(self) -> float:
        return self.now


def get(rtc: Rtc, register: int) -> int:
    rtc.write(INDEX, 1, register)
    return rtc.read(DATA, 1)


def test_time_is_utc_in_bcd_with_century() -> None:
    rtc = Rtc(Clock(2024, 12, 29, 23, 59, 58))

    found = [get(rtc, r) for r in (CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS)]

    # 29 December 2024 was a Sunday, the first day of the clock's week.
    assert found == [0x20, 0x24, 0x12, 0x29, 1, 0x23, 0x59, 0x58]


def test_time_stands_still_from_one_look_at_update_in_progress_to_the_next() -> None:
    clock = Clock(2024, 12, 31, 23, 59, 59)
    rtc = Rtc(clock)
    clock.now += 0.9

    assert get(rtc, 0x0A) & 0x80 == 0
    assert get(rtc, SECONDS) == 0x59
    clock.now += 0.2
    assert get(rtc, YEAR) == 0x24
    get(rtc, 0x0A)

    assert (get(rtc, YEAR), get(rtc, SECONDS)) == (0x25, 0x00)


def test_time_goes_on_for_a_guest_that_never_looks_at_update_in_progress() -> None:
    clock = Clock(2024, 1, 1, 0, 0, 0)
    rtc = Rtc(clock)

    clock.now += 61

    assert (get(rtc, SECONDS), get(rtc, MINUTES)) == (0x01, 0x01)


def test_control_registers_say_24_hours_bcd_no_interrupt_and_valid() -> None:
    rtc = Rtc()
    for register in (0x0B, 0x0C, 0x0D):
        rtc.write(INDEX, 1, register)
        rtc.write(DATA, 1, 0xFF)

    assert [get(rtc, register) for register in (0x0B, 0x0C, 0x0D)] == [0x02, 0x00, 0x80]


def test_the_guest_cannot_set_the_time() -> None:
    rtc = Rtc(Clock(2024, 1, 1, 0, 0, 0))

    rtc.write(INDEX, 1, YEAR)
    rtc.write(DATA, 1, 0x99)

    assert get(rtc, YEAR) == 0x24


def test_other_bytes_are_kept_and_the_nmi_bit_is_no_part_of_the_index() -> None:
    rtc = Rtc()

    rtc.write(INDEX, 1, 0x80 | 0x40)
    rtc.write(DATA, 1, 0x5A)

    assert get(rtc, 0x40) == 0x5A
    assert rtc.read(INDEX, 1) == 0x40


def test_every_index_answers_one_byte() -> None:
    rtc = Rtc()

    assert all(0 <= get(rtc, index) <= 0xFF for index in range(256))


def test_a_word_written_to_the_index_sets_index_and_data() -> None:
    rtc = Rtc()

    rtc.write(INDEX, 2, 0x7740)

    assert get(rtc, 0x40) == 0x77
