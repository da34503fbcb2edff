"""Planned segments: told apart, put into words, and copied. For machines of any architecture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Protocol

from protocol.errors import BadInput
from protocol.memory import GuestMemory
from vmm.boot.image import FilePart
from vmm.boot.segment import Segment
from vmm.memory_map import MIB


class HasSegments(Protocol):
    """A plan, as far as loading it goes."""

    @property
    def segments(self) -> Sequence[Segment]: ...


def load(plan: HasSegments, memory: GuestMemory, *, used: bool = False) -> None:
    """Copy every segment to where the plan puts it. Memory that is not ``used`` is zero so far,
    and what a segment needs behind its data is not even touched."""
    for segment in plan.segments:
        if isinstance(segment.data, FilePart):
            segment.data.read_into(memory.view(segment.gpa, len(segment.data)))
        else:
            memory.write(segment.gpa, segment.data)
        if used:
            size = len(segment.data)
            memory.write(segment.gpa + size, bytes(segment.size - size))


def check_apart(segments: Iterable[Segment]) -> None:
    """BadInput, naming a file, if two of the segments want the same byte."""
    for one, other in combinations(segments, 2):
        if one.overlaps(other):
            # What we put there ourselves never overlaps: one of the two came from a file.
            source = one if isinstance(one.data, FilePart) else other
            beside = other if source is one else one
            assert isinstance(source.data, FilePart)
            raise source.data.image.bad(
                f"its {source.name} at {source.gpa:#x}-{source.end:#x} overlaps the "
                f"{beside.name} at {beside.gpa:#x}-{beside.end:#x}"
            )


def refuse(belongs_to: str, given: Mapping[str, bool]) -> None:
    """BadInput if one of the options in ``given`` is, which go with ``belongs_to`` alone."""
    for option, is_given in given.items():
        if is_given:
            raise BadInput(option, f"goes with {belongs_to}")


def range_line(start: int, end: int, what: str) -> str:
    """A range of addresses as one line for people."""
    return f"  {start:#011x}-{end:#011x}  {_size(end - start):>8}  {what}"


def _size(size: int) -> str:
    for unit, letter in ((MIB, "M"), (1024, "K")):
        if size >= unit:
            return f"{size / unit:.4g}{letter}"
    return str(size)
