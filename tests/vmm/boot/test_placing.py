"""Segments in memory: what is copied, what is cleared, and what is left alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from protocol.memory import PAGE_SIZE, GuestMemory, Region, create_memfd
from vmm.boot.placing import load
from vmm.boot.segment import Segment


@dataclass(frozen=True)
class Plan:
    segments: tuple[Segment, ...]


PLAN = Plan((Segment("a", 0x100, b"data", reserve=8), Segment("b", 0x200, b"more")))


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    fd = create_memfd("test", PAGE_SIZE)
    with GuestMemory(fd, (Region(0, PAGE_SIZE, 0),)) as mapped:
        mapped.write(0, b"\xaa" * PAGE_SIZE)
        yield mapped
    os.close(fd)


def test_memory_that_was_used_is_cleared_where_a_segment_wants_zeros(memory: GuestMemory) -> None:
    load(PLAN, memory, used=True)

    assert memory.read(0xFF, 10) == b"\xaadata\0\0\0\0\xaa"
    assert memory.read(0x1FF, 6) == b"\xaamore\xaa"


def test_fresh_memory_is_not_touched_behind_the_data(memory: GuestMemory) -> None:
    load(PLAN, memory)

    assert memory.read(0xFF, 10) == b"\xaadata" + b"\xaa" * 5
