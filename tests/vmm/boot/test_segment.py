"""Finding room: against a search that tries every place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.memory import Region
from vmm.boot.segment import Segment, highest_room, is_ram

PAGE = 4096


def pages(low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers(low, high).map(lambda count: count * PAGE)


segments = st.builds(
    Segment, st.just("taken"), pages(0, 40), st.just(b""), st.integers(1, 10 * PAGE)
)


@given(st.integers(1, 12 * PAGE), st.integers(0, 40 * PAGE), st.lists(segments, max_size=4))
def test_room_is_the_highest_there_is(size: int, limit: int, taken: list[Segment]) -> None:
    regions = [Region(0, 10 * PAGE, 0), Region(14 * PAGE, 20 * PAGE, 14 * PAGE)]

    found = highest_room(regions, size, limit, PAGE, taken)

    fits = [
        gpa
        for gpa in range(0, 40 * PAGE, PAGE)
        if is_ram(regions, gpa, size)
        and gpa + size <= limit
        and not any(Segment("new", gpa, b"", size).overlaps(other) for other in taken)
    ]
    assert found == max(fits, default=None)


@pytest.mark.parametrize(
    ("gpa", "size", "inside"),
    [
        (0, PAGE, True),
        (0, PAGE + 1, False),
        (PAGE, 1, False),
        (3 * PAGE, PAGE, True),
        (-1, 1, False),
    ],
)
def test_ram_is_what_lies_in_one_region(gpa: int, size: int, inside: bool) -> None:
    regions = [Region(0, PAGE, 0), Region(3 * PAGE, PAGE, PAGE)]

    assert is_ram(regions, gpa, size) is inside
