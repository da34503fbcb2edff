"""Streams: bytes between a device and the launcher that neither death nor replay repeats or loses.

A device that wrote to a terminal itself could not be restarted: between its write(2) and the
completion of the guest's request every order of the two loses bytes or repeats them. So bytes go
through *logs* in memory that outlives the device. The launcher, which is not restarted, does the
write(2) and the read(2). A stream is one sealed memfd with two logs::

    0        output, device to launcher        64 KiB + 4 KiB      input, launcher to device
    ├─ header ─┬─ 64 KiB, offset n at n mod 64 KiB ─┬─ header ─┬─ 64 KiB ─┤
       u64 head   at 0: bytes written, ever; the producer's to store
       u64 tail   at 64: bytes consumed, ever; the consumer's to store

Offsets are absolute, and only grow. What a device did for a request is named by where in the
stream it belongs: one that is done again, by a successor, writes the same bytes to the same
offsets, and what has been written is left as it is. Input is consumed when the requests that took
it have been published, not when it was read.

Neither end trusts the other. Each knows its own cursor and never reads it back; what the other
one stores is copied once, and may be between empty and full, or it is a ProtocolError. A liar
makes garbage of the bytes, and nothing else: no access is outside the ring, and nobody waits.

The two ends wake each other over a socket pair, whose bytes mean nothing: *look at the cursors*.
Whoever is woken first empties it, then looks; so a socket that is full belongs to somebody who
will look. Not an eventfd: its O_NONBLOCK belongs to both ends, and a device could take it away
from the launcher. Each end of a pair has its own.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
from collections.abc import Iterable

from protocol.errors import ProtocolError
from protocol.memory import PAGE_SIZE, create_memfd
from protocol.ring import atomic

CAPACITY = 64 * 1024
"""Bytes that a log holds: what a pipe does (pipe(7)), and so what may be between a guest and a
slow reader. A power of two: an offset's place is its low bits, whatever language a device is in."""

_LOG_SIZE = PAGE_SIZE + CAPACITY
SIZE = 2 * _LOG_SIZE
"""Bytes of the whole file."""

# Offsets of the cursors in a header: each has a cache line of its own.
_HEAD, _TAIL = 0, 64

# More than a socket of Linux holds in packets of one byte, each of which costs it some 800 bytes.
_WAKE_UPS = 4096


def create(name: str) -> int:
    """The file of an empty stream, sealed; the caller's to close."""
    return create_memfd(name, SIZE)


def wake_pair() -> tuple[int, int]:
    """Two descriptors over which two ends :func:`wake` each other; the caller's to close."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    return ours.detach(), theirs.detach()


def wake(fd: int) -> None:
    """Have the other end look at the cursors. One that is gone needs no waking, and one whose
    socket is full has yet to look."""
    with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
        os.write(fd, b"\0")


def drain(fd: int) -> None:
    """Forget wake-ups so far: before the cursors are looked at, never after."""
    with contextlib.suppress(BlockingIOError, ConnectionResetError):
        os.read(fd, _WAKE_UPS)


class Stream:
    """The file of a stream, mapped: the memory of its two logs. ``fd`` stays the caller's."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, SIZE)
        self._view = memoryview(self._map)
        self.output = self._view[:_LOG_SIZE]
        self.input = self._view[_LOG_SIZE:]

    def close(self) -> None:
        """Unmap; if somebody still holds a view, the last of them to go does that."""
        with contextlib.suppress(BufferError):
            for view in (self.output, self.input, self._view):
                view.release()
            self._map.close()


class _End:
    """One end of the log in ``memory``: its own cursor, at ``mine``, and the other's."""

    def __init__(self, memory: memoryview, mine: int) -> None:
        self._memory = memory
        self._mine = mine
        self._cursor = 0
        self.take_over()

    def take_over(self) -> None:
        """Go on where the cursor stands now: until now another process had this end. (From then on
        what the cursor says in memory is not looked at, for the peer can write there.)"""
        self._cursor = atomic.load64(self._memory, self._mine)
        if self._cursor >> 63:  # a gigabyte a second takes 292 years to that
            raise ProtocolError(f"a log of {self._cursor} bytes")

    def _move(self, to: int) -> None:
        self._cursor = to
        atomic.store64(self._memory, self._mine, to)

    def _span(self, start: int, size: int) -> list[memoryview]:
        # Where ``size`` bytes, CAPACITY at most, from absolute offset ``start`` on lie.
        first = PAGE_SIZE + start % CAPACITY
        end = first + size
        if end <= _LOG_SIZE:
            return [self._memory[first:end]]
        return [self._memory[first:], self._memory[PAGE_SIZE : end - CAPACITY]]


class Producer(_End):
    """The end that writes the log in ``memory``; it goes on where ``head`` stands."""

    def __init__(self, memory: memoryview) -> None:
        super().__init__(memory, _HEAD)

    @property
    def head(self) -> int:
        """The offset behind the last byte that was ever written."""
        return self._cursor

    @property
    def room(self) -> int:
        """Bytes that fit now; ProtocolError if the consumer's cursor makes no sense."""
        used = self._cursor - atomic.load64(self._memory, _TAIL)
        if not 0 <= used <= CAPACITY:
            raise ProtocolError(f"a log whose consumer is {used} bytes behind its head")
        return CAPACITY - used

    def write(self, at: int, buffers: Iterable[memoryview | bytes | bytearray]) -> int:
        """Have the log hold ``buffers`` from offset ``at`` on; how many bytes of them it holds,
        fewer than there are if it is full.

        What lies before ``head`` is there already, written by whoever did the same before, and
        may have been consumed: it is counted, and not touched. ProtocolError if ``at`` is beyond
        ``head``, for nobody has written what would lie between.
        """
        if at > self._cursor:
            raise ProtocolError(f"a log of {self._cursor} bytes cannot go on at {at}")
        skip, head, room = self._cursor - at, self._cursor, self.room
        for buffer in buffers:
            if skip >= len(buffer):
                skip -= len(buffer)
                continue
            data = memoryview(buffer)[skip : skip + room]
            skip = 0
            for place in self._span(head, len(data)):
                place[:] = data[: len(place)]
                data = data[len(place) :]
                head += len(place)
                room -= len(place)
            if not room:
                break
        if head != self._cursor:
            self._move(head)
        return head - at - skip


class Consumer(_End):
    """The end that reads the log in ``memory``; it goes on where ``tail`` stands."""

    def __init__(self, memory: memoryview) -> None:
        super().__init__(memory, _TAIL)

    @property
    def tail(self) -> int:
        """The offset of the first byte that was not consumed."""
        return self._cursor

    def peek(self, at: int | None = None) -> list[memoryview]:
        """What was written from offset ``at`` on, the tail if not given, in place: one view, or
        two where it wraps, none of them empty. ProtocolError if the producer's cursor makes no
        sense, or ``at`` is not between tail and head.

        The bytes are the producer's, who may change them at any time.
        """
        start = self._cursor if at is None else at
        size = self._head() - start
        if size < 0 or start < self._cursor:
            raise ProtocolError(f"a log of which {start - self._cursor} bytes were taken")
        return self._span(start, size) if size else []

    def consume(self, to: int) -> None:
        """Give the room of everything before offset ``to`` back. ProtocolError if that is not
        between tail and head."""
        if not self._cursor <= to <= self._head():
            raise ProtocolError(f"a log cannot be consumed up to {to}")
        if to != self._cursor:
            self._move(to)

    def _head(self) -> int:
        head = atomic.load64(self._memory, _HEAD)
        if not 0 <= head - self._cursor <= CAPACITY:
            raise ProtocolError(f"a log with {head - self._cursor} bytes to read")
        return head
