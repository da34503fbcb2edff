"""A device's journal: what its rings note outside the process, so that a successor can go on.

One sealed memfd a device, made by the launcher, written by the ring engine and by nobody else.
The layout is drawn in docs/journal.md::

    0     64                     4096
    ├─────┼─────────┬─────────┬──┼────────────┬────────────┬──
    │  0  │ queue 0 │ queue 1 │  │  queue 0   │  queue 1   │ …
    └─────┴─────────┴─────────┴──┴────────────┴────────────┴──
            positions, 64 each     in-flight regions, laid out as vhost-user's
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from protocol.errors import HostError, ProtocolError
from protocol.mapping import map_file
from protocol.memory import PAGE_SIZE, create_memfd

if TYPE_CHECKING:
    from types import TracebackType

#: Of what begins each queue's region: features, version, entries (vhost-user's QueueRegionSplit).
HEADER = struct.Struct("=QHH")
VERSION = 1

# A cache line for each queue's positions, the first of the page left free, and regions that
# begin on one.
_LINE = 64
_HEADER_SIZE = _ENTRY_SIZE = 16

#: The most queues a journal has room for: what is left of a page.
MAX_QUEUES = PAGE_SIZE // _LINE - 1


def size_of(queue_sizes: Sequence[int]) -> int:
    """Bytes of a journal for queues of at most ``queue_sizes`` descriptors; ValueError if there
    are more than 63 queues."""
    if len(queue_sizes) > MAX_QUEUES:
        raise ValueError(f"a journal for {len(queue_sizes)} queues: {MAX_QUEUES} is the most")
    return PAGE_SIZE + sum(map(_region_size, queue_sizes))


def create(name: str, queue_sizes: Sequence[int]) -> int:
    """A fresh journal: a memfd named ``name``, zeroed, sealed as guest memory is."""
    return create_memfd(name, size_of(queue_sizes))


@dataclass(frozen=True, slots=True)
class QueueJournal:
    """The part of one queue of at most ``size`` descriptors, for :class:`protocol.ring.Ring`."""

    size: int
    region: memoryview
    positions: memoryview

    def clear(self) -> None:
        """Make it fresh. The device must be quiet, or dead."""
        for view in (self.region, self.positions):
            view[:] = bytes(len(view))


class Journal:
    """A journal, mapped; ``fd`` stays the caller's. ProtocolError if the file is too small for
    ``queue_sizes``, HostError if it cannot be mapped."""

    def __init__(self, fd: int, queue_sizes: Sequence[int]) -> None:
        size = size_of(queue_sizes)
        if (actual := os.fstat(fd).st_size) < size:
            raise ProtocolError(f"a journal of {actual} bytes, not {size}")
        try:
            whole = self._view = map_file(fd, size)
        except OSError as error:
            raise HostError(f"cannot map a journal of {size} bytes: {error.strerror}") from error
        self._queues = []
        start = PAGE_SIZE
        for index, entries in enumerate(queue_sizes):
            end = start + _region_size(entries)
            positions = whole[_LINE * (index + 1) : _LINE * (index + 2)]
            self._queues.append(QueueJournal(entries, whole[start:end], positions))
            start = end

    def queue(self, index: int) -> QueueJournal:
        """The part of queue ``index``."""
        return self._queues[index]

    def clear(self) -> None:
        """Make it fresh: on reset, once the device is quiet."""
        for queue in self._queues:
            queue.clear()

    def close(self) -> None:
        """Unmap; if a ring still uses it, the last of them to go does that."""
        self._queues.clear()
        with contextlib.suppress(BufferError):
            self._view.release()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _region_size(entries: int) -> int:
    bytes_ = _HEADER_SIZE + _ENTRY_SIZE * entries
    return (bytes_ + _LINE - 1) // _LINE * _LINE
