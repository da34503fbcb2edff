"""A chain as a device sees it: bytes to read and room to write, never a descriptor."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from protocol.ring import ChainError

_IOVEC = struct.Struct("@PN")


class _Cursor:
    """A run of segments of guest memory that is consumed from the front."""

    __slots__ = ("_views", "left", "size")

    #: Bytes in all, consumed or not.
    size: int
    #: Bytes not yet consumed.
    left: int

    def __init__(self, views: list[memoryview], size: int) -> None:
        self._views = views
        self.size = self.left = size

    def buffers(self, size: int = -1) -> list[memoryview]:
        """What is left, or its first ``size`` bytes, as views of guest memory for os.preadv and
        os.pwritev: at most 1024 of them, none empty. Consumes nothing; see :meth:`advance`."""
        if size < 0 or size >= self.left:
            return list(self._views)
        found = []
        for view in self._views:
            if size == 0:
                break
            found.append(view[:size])
            size -= len(found[-1])
        return found

    def advance(self, size: int) -> None:
        """Consume ``size`` bytes that were reached through :meth:`buffers`. ValueError if fewer
        are left."""
        self._take(size)

    def split(self, size: int) -> Self:
        """Cut behind the next ``size`` bytes: this object keeps them, and what follows them is
        returned as one of its own. ValueError if fewer are left."""
        consumed, rest = self.size - self.left, self.left - size
        front = self._take(size)
        tail = type(self)(self._views, rest)
        self._views = front
        self.size, self.left = consumed + size, size
        return tail

    def _take(self, size: int) -> list[memoryview]:
        if not 0 <= size <= self.left:
            raise ValueError(f"{size} bytes asked of {self.left}")
        self.left -= size
        views = self._views
        if not self.left:
            self._views = []
            return views
        taken = []
        while size:
            first = views[0]
            if size < len(first):
                taken.append(first[:size])
                views[0] = first[size:]
                break
            size -= len(first)
            taken.append(first)
            del views[0]
        return taken


class Reader(_Cursor):
    """The device-readable part of a chain."""

    __slots__ = ()

    def read(self, n: int = -1) -> bytes:
        """Consume and copy ``n`` bytes, fewer at the end, or all that is left.

        The guest chose the size, up to 4 GiB whatever RAM it has: look at ``left`` before
        reading all of it. The copy is safe to validate; guest memory itself may change.
        """
        return b"".join(self._take(self.left if n < 0 else min(n, self.left)))


class Writer(_Cursor):
    """The device-writable part of a chain."""

    __slots__ = ()

    @property
    def written(self) -> int:
        """Bytes consumed so far: what :meth:`protocol.ring.Ring.push` wants to know."""
        return self.size - self.left

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Copy ``data`` in behind what was written before; returns how much of it fitted."""
        size = min(len(data), self.left)
        source, start = memoryview(data), 0
        for view in self._take(size):
            view[:] = source[start : start + len(view)]
            start += len(view)
        return size


class Chain:
    """One request: ``head`` names it in :meth:`protocol.ring.Ring.push`.

    With ``error`` set the driver made a mistake, both parts are empty, and the chain is to
    be completed with 0 bytes written. It stays valid, however long it is in flight.
    """

    __slots__ = ("_memory", "_reader", "_segments", "_sizes", "_writer", "error", "head")

    def __init__(
        self,
        head: int,
        error: ChainError | None,
        memory: tuple[memoryview, int],
        segments: bytes,
        sizes: tuple[int, int, int],
    ) -> None:
        self.head = head
        self.error = error
        # The mapping and its address; the iovecs, readable ones first; how many bytes of them
        # are the readable iovecs, and how many bytes of data each part has. The two parts are
        # made when they are asked for: many devices want only one of them.
        self._memory = memory
        self._segments = segments
        self._sizes = sizes
        self._reader: Reader | None = None
        self._writer: Writer | None = None

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes of both parts."""
        return self._sizes[1:]

    @property
    def readable(self) -> Reader:
        """What the driver sent."""
        if self._reader is None:
            split, size, _ = self._sizes
            self._reader = Reader(self._views(self._segments[:split]), size)
        return self._reader

    @property
    def writable(self) -> Writer:
        """Where the answer goes."""
        if self._writer is None:
            split, _, size = self._sizes
            self._writer = Writer(self._views(self._segments[split:]), size)
        return self._writer

    def _views(self, segments: bytes) -> list[memoryview]:
        view, base = self._memory
        return [
            view[address - base : address - base + length]
            for address, length in _IOVEC.iter_unpack(segments)
        ]
