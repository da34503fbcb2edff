"""What may be done in a second, by a clock that the test turns."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from devices.runtime.limits import ENDLESS, Limit


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_second_s_worth_comes_at_once_and_then_one_after_the_other() -> None:
    clock = Clock()
    limit = Limit(10, 0, clock)

    limit.take(10, 1 << 30)
    assert limit.wait() == pytest.approx(0.1)
    assert limit.left() == (0, ENDLESS)
    clock.now = 0.1
    assert limit.wait() == 0
    assert limit.left() == (1, ENDLESS)


def test_more_than_a_lane_can_count_is_as_much_as_it_can() -> None:
    assert Limit((1 << 64) - 1, ENDLESS).left() == (ENDLESS, ENDLESS)


def test_a_large_request_is_begun_and_paid_for_after_it() -> None:
    clock = Clock()
    limit = Limit(0, 1000, clock)

    limit.take(1, 2500)
    assert limit.left()[1] <= 0
    assert limit.wait() == pytest.approx(1.501)
    clock.now = 1.501
    assert limit.wait() == 0


def test_what_is_not_used_is_kept_for_a_second_only() -> None:
    clock = Clock()
    limit = Limit(10, 1000, clock)
    clock.now = 100.0

    assert limit.left() == (10, 1000)


def test_both_have_to_be_left() -> None:
    clock = Clock()
    limit = Limit(1, 1000, clock)

    limit.take(1, 10)
    assert limit.wait() == pytest.approx(1.0)
    limit.take(0, 2990)
    assert limit.wait() == pytest.approx(2.001)
