"""Statistics against answers that are known."""

from __future__ import annotations

import random
import statistics

import pytest

from launcher.experiment.statistics import bins, ecdf, estimate, longest_gap, quantile


def test_median_and_interval_of_values_that_are_all_the_same() -> None:
    found = estimate([5.0] * 10, 1)

    assert (found.count, found.median, found.low, found.high) == (10, 5.0, 5.0, 5.0)


def test_one_value_has_no_interval() -> None:
    found = estimate([5.0], 1)

    assert (found.median, found.low, found.high) == (5.0, None, None)


def test_interval_is_decided_by_the_seed() -> None:
    values = [random.Random(1).random() for _ in range(20)]

    assert estimate(values, "a") == estimate(values, "a")
    assert estimate(values, "a").median == statistics.median(values)


def test_two_values_have_all_between_them() -> None:
    # Drawn with putting back: both the lower or both the higher, each a quarter of the time.
    found = estimate([1.0, 3.0], 1)

    assert (found.low, found.median, found.high) == (1.0, 2.0, 3.0)


def test_interval_covers_the_true_median_as_often_as_it_says() -> None:
    chance = random.Random(3)
    covered = 0
    for number in range(200):
        found = estimate([chance.gauss(10, 2) for _ in range(30)], number)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 10 <= found.high

    # 95 % of 200 are 190; six standard deviations down are 171.
    assert 171 <= covered < 200


@pytest.mark.parametrize(("part", "value"), [(0, 1), (0.5, 2.5), (0.75, 3.25), (1, 4)])
def test_quantile_is_between_two_values(part: float, value: float) -> None:
    assert quantile([1, 2, 3, 4], part) == value


def test_ecdf_reaches_one_at_the_largest() -> None:
    assert ecdf([3, 1, 2, 2]) == [(1, 0.25), (2, 0.5), (2, 0.75), (3, 1.0)]


def test_bins_have_their_lower_edge_and_not_their_upper() -> None:
    assert bins([-2.1, -2, -1, 0, 0.5, 1, 1.9, 2], -2, 2, 1) == [1, 1, 2, 2]


def test_longest_gap_is_one_that_touches_the_time_asked_for() -> None:
    times = [0, 1, 2, 50, 51, 60, 61, 90]

    assert longest_gap(times, 49, 61) == (2, 50)
    assert longest_gap(times, 51, 61) == (51, 60)
    assert longest_gap(times, 95, 99) == (95, 95)
