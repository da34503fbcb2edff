"""PSCI: what the guest is answered, and what is done for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.platform.psci import Action, Function, call

WIDE = 1 << 30


def minus(value: int) -> int:
    return -value & (1 << 64) - 1


NOT_SUPPORTED, INVALID_PARAMETERS, DENIED, ALREADY_ON = minus(1), minus(2), minus(3), minus(4)


@pytest.mark.parametrize(
    ("function", "x1", "x2", "x0"),
    [
        (0x8400_0000, 0, 0, 0x1_0000),
        (0x8400_0002, 0, 0, DENIED),
        (0x8400_0003, 0, 0x8000, ALREADY_ON),
        (0xC400_0003, 1, 0x8000, INVALID_PARAMETERS),
        (0xC400_0003, 1 << 32, 0x8000, INVALID_PARAMETERS),
        (0x8400_0003, 1 << 32, 0x8000, ALREADY_ON),
        (0x8400_0004, 0, 0, 0),
        (0xC400_0004, 0, 0, 0),
        (0xC400_0004, 2, 0, INVALID_PARAMETERS),
        (0xC400_0004, 0, 1, INVALID_PARAMETERS),
        (0x8400_0006, 0, 0, 2),
        (0x8400_000A, Function.CPU_ON | WIDE, 0, 0),
        (0x8400_000A, Function.SYSTEM_OFF, 0, 0),
        (0x8400_000A, Function.SYSTEM_OFF | WIDE, 0, NOT_SUPPORTED),
        (0x8400_000A, 0x8000_0000, 0, NOT_SUPPORTED),
        (0x8400_0005, 0, 0, NOT_SUPPORTED),
        (0x8000_0000, 0, 0, NOT_SUPPORTED),
        (0, 0, 0, NOT_SUPPORTED),
        (0xFFFF_FFFF_8400_0000, 0, 0, 0x1_0000),
    ],
)
def test_a_call_is_answered(function: int, x1: int, x2: int, x0: int) -> None:
    answer = call(function, x1, x2)

    assert (answer.x0, answer.action) == (x0, Action.GO_ON)


@pytest.mark.parametrize(
    ("function", "action"),
    [
        (0x8400_0001, Action.WAIT),
        (0xC400_0001, Action.WAIT),
        (0x8400_0008, Action.POWER_OFF),
        (0x8400_0009, Action.RESET),
    ],
)
def test_what_the_cpu_has_to_do_is_said(function: int, action: Action) -> None:
    assert call(function, 0, 0).action is action


numbers = st.integers(0, (1 << 64) - 1)


@given(st.one_of(numbers, st.sampled_from([*Function])), numbers, numbers)
def test_any_registers_have_an_answer_of_64_bits(function: int, x1: int, x2: int) -> None:
    assert 0 <= call(function, x1, x2).x0 < 1 << 64
