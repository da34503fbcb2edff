"""Pieces of guest memory to fill before the guest runs, and where there is room for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from protocol.memory import Region
from vmm.boot.image import FilePart


@dataclass(frozen=True, slots=True)
class Segment:
    """``data`` goes to guest address ``gpa``; ``reserve`` is how many bytes it needs there in
    all, zeros behind the data included (a kernel's bss), if that is more."""

    name: str
    gpa: int
    data: bytes | FilePart
    reserve: int = 0

    @property
    def size(self) -> int:
        """Bytes of memory that belong to it."""
        return max(len(self.data), self.reserve)

    @property
    def end(self) -> int:
        """The first guest address behind it."""
        return self.gpa + self.size

    def overlaps(self, other: Segment) -> bool:
        """Whether the two want the same byte."""
        return self.gpa < other.end and other.gpa < self.end


def is_ram(regions: Iterable[Region], gpa: int, size: int) -> bool:
    """Whether all of ``size`` bytes at ``gpa`` lie in one region of RAM."""
    return any(region.gpa <= gpa and gpa + size <= region.end for region in regions)


def align_up(value: int, alignment: int) -> int:
    """The first multiple of ``alignment`` at or above ``value``."""
    return -(-value // alignment) * alignment


def align_down(value: int, alignment: int) -> int:
    """The last multiple of ``alignment`` at or below ``value``."""
    return value // alignment * alignment


def highest_room(
    regions: Iterable[Region], size: int, limit: int, alignment: int, taken: Sequence[Segment]
) -> int | None:
    """The highest aligned address for ``size`` bytes of RAM that end at or below ``limit`` and
    overlap nothing in ``taken``; None if there is none."""
    downwards = sorted(taken, key=lambda segment: segment.gpa, reverse=True)
    for region in sorted(regions, key=lambda region: region.gpa, reverse=True):
        gpa = align_down(min(region.end, limit) - size, alignment)
        for segment in downwards:
            if gpa < segment.end and segment.gpa < gpa + size:
                gpa = align_down(segment.gpa - size, alignment)
        if gpa >= region.gpa:
            return gpa
    return None
