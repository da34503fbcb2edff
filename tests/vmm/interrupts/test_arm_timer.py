"""The physical timer as its registers and its line, on a counter that the test moves."""

from __future__ import annotations

import pytest

from vmm.interrupts.arm_timer import (
    CTL_ENABLE,
    CTL_IMASK,
    CTL_ISTATUS,
    TIMER_REGISTERS,
    Access,
    PhysicalTimer,
    SystemRegister,
    TimerRegister,
)

TVAL, CTL, CVAL = TimerRegister.TVAL, TimerRegister.CTL, TimerRegister.CVAL


class Clock:
    """A counter, and a timer on it."""

    def __init__(self, now: int = 1000) -> None:
        self.now = now
        self.timer = PhysicalTimer(lambda: self.now)


def test_it_fires_when_the_counter_reaches_the_compare_value() -> None:
    clock = Clock()
    clock.timer.write(CVAL, 1500)
    clock.timer.write(CTL, CTL_ENABLE)

    assert (clock.timer.level(), clock.timer.deadline()) == (False, 1500)
    clock.now = 1499
    assert not clock.timer.level()
    clock.now = 1500
    assert (clock.timer.level(), clock.timer.deadline()) == (True, 1500)
    assert clock.timer.read(CTL) == CTL_ENABLE | CTL_ISTATUS


def test_a_masked_one_has_its_status_but_no_level() -> None:
    clock = Clock()
    clock.timer.write(CTL, CTL_ENABLE | CTL_IMASK)

    assert clock.timer.read(CTL) == CTL_ENABLE | CTL_IMASK | CTL_ISTATUS
    assert (clock.timer.level(), clock.timer.deadline()) == (False, None)


def test_one_that_is_off_has_neither() -> None:
    clock = Clock()

    assert clock.timer.read(CTL) == 0
    assert (clock.timer.level(), clock.timer.deadline()) == (False, None)


def test_a_new_compare_value_lowers_the_line() -> None:
    clock = Clock()
    clock.timer.write(CTL, CTL_ENABLE)
    assert clock.timer.level()

    clock.timer.write(CVAL, 2000)

    assert not clock.timer.level()


@pytest.mark.parametrize(
    ("value", "compare"),
    [
        (100, 1100),
        (0xFFFF_FFFF, 999),
        (0xFFFF_FFFF_0000_0064, 1100),
        (1 << 31, 1000 - (1 << 31) & (1 << 64) - 1),
    ],
)
def test_a_timer_value_is_signed_and_counts_from_now(value: int, compare: int) -> None:
    clock = Clock()

    clock.timer.write(TVAL, value)

    assert clock.timer.read(CVAL) == compare
    assert clock.timer.read(TVAL) == value & 0xFFFF_FFFF


def test_the_timer_value_counts_down_and_below_zero() -> None:
    clock = Clock()
    clock.timer.write(CVAL, 1001)

    clock.now = 1003

    assert clock.timer.read(TVAL) == 0xFFFF_FFFE


@pytest.mark.parametrize("register", list(TimerRegister))
def test_a_register_takes_any_value(register: TimerRegister) -> None:
    clock = Clock()

    clock.timer.write(register, (1 << 64) - 1)

    assert 0 <= clock.timer.read(register) < 1 << 64


@pytest.mark.parametrize(
    ("instruction", "iss"),
    [
        # Op0 3, Op2 2, Op1 3, CRn 14, Rt, CRm 2, direction: as the manual lays them out.
        ("msr cntp_cval_el0, x5", 0b11_010_011_1110_00101_0010_0),
        ("mrs x5, cntp_cval_el0", 0b11_010_011_1110_00101_0010_1),
    ],
)
def test_a_trapped_access_is_decoded(instruction: str, iss: int) -> None:
    access = Access.decode(iss)

    assert TIMER_REGISTERS[access.register] is CVAL
    assert (access.rt, access.is_read) == (5, instruction.startswith("mrs"))


def test_what_else_traps_is_decoded_too() -> None:
    access = Access.decode(0b11_111_000_1100_11111_1100_0)

    assert access.register == SystemRegister(3, 0, 12, 12, 7)
    assert access.register not in TIMER_REGISTERS
    assert access.rt == 31
