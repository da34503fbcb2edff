"""Chains for a device's handlers, as the ring engine would make them, in memory of their own."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence

from protocol.ring import Chain

_IOVEC = struct.Struct("@PN")
_heads = itertools.count()


class Request:
    """A chain that sends ``data``, cut into segments of ``cuts`` bytes, with writable segments of
    ``rooms`` bytes. Between two segments lies a byte that nobody may touch."""

    def __init__(self, data: bytes, cuts: Sequence[int], rooms: Sequence[int]) -> None:
        self._memory = bytearray(b"\xa5")
        self.readable = [self._place(part) for part in _cut(data, cuts)]
        self.writable = [self._place(bytes(room)) for room in rooms if room]
        self._before = bytes(self._memory)

    def _place(self, data: bytes) -> tuple[int, int]:
        place = len(self._memory), len(data)
        self._memory += data + b"\xa5"
        return place

    @property
    def room(self) -> int:
        """Writable bytes."""
        return sum(size for _, size in self.writable)

    def chain(self) -> Chain:
        """A fresh chain of it, as a device and each of its successors gets one."""
        size = sum(length for _, length in self.readable)
        iovecs = b"".join(_IOVEC.pack(*place) for place in self.readable + self.writable)
        split = len(self.readable) * _IOVEC.size
        memory = memoryview(self._memory), 0
        return Chain(next(_heads), None, memory, iovecs, (split, size, self.room))

    def answer(self) -> bytes:
        """The writable part as it is now; AssertionError if anything else was written."""
        found = b"".join(bytes(self._memory[at : at + size]) for at, size in self.writable)
        rest = bytearray(self._memory)
        for at, size in self.writable:
            rest[at : at + size] = bytes(size)
        assert rest == self._before, "something outside the writable buffers was written"
        return found


def _cut(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    parts = []
    for cut in cuts:
        parts.append(data[:cut])
        data = data[cut:]
    return [part for part in (*parts, data) if part]
