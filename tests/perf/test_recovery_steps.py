"""The steps of a recovery add up to the whole, and none of them is negative."""

from __future__ import annotations

from tests.perf.recovery import split


def test_what_is_left_is_the_first_completion_s() -> None:
    steps = split(10, {"detect": 2, "attach": 5})

    assert steps == {"detect": 2, "attach": 5, "first completion": 3}


def test_completion_that_comes_during_a_step_ends_it_and_those_behind() -> None:
    steps = split(10, {"detect": 2, "attach": 7, "replay": 4})

    assert steps == {"detect": 2, "attach": 7, "replay": 1, "first completion": 0}
