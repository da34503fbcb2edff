"""What a driver has written into a configuration space, remembered outside the device's process.

A device tells nobody what it was told. So whoever stands between it and its driver, and outlives
it, notes what passes, and says it again to each successor.
"""

from __future__ import annotations

from collections.abc import Iterator

MAX_CONFIG = 256
"""Bytes of a configuration space that are noted: as many as vhost-user reaches
(VHOST_USER_MAX_CONFIG_SIZE), and four times what any device type of virtio 1.2 has."""


class Written:
    """The bytes that were written, and which: in ``memory``, of :data:`SIZE` bytes that are zero to
    begin with, and may be shared. Whoever wrote there before is believed, for a driver could have
    written anything."""

    SIZE = 2 * MAX_CONFIG

    def __init__(self, memory: memoryview | bytearray) -> None:
        view = memoryview(memory)
        self._values, self._marks = view[:MAX_CONFIG], view[MAX_CONFIG : self.SIZE]

    def note(self, offset: int, data: bytes) -> None:
        """``data`` was written at ``offset``; what lies beyond :data:`MAX_CONFIG` is nobody's."""
        kept = data[: max(0, MAX_CONFIG - offset)]
        self._values[offset : offset + len(kept)] = kept
        self._marks[offset : offset + len(kept)] = b"\1" * len(kept)

    def clear(self) -> None:
        """The driver has reset the device."""
        self._marks[:] = bytes(MAX_CONFIG)

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """What is to be written to a successor: offsets, and bytes without a gap."""
        marks = bytes(self._marks) + b"\0"
        start = marks.find(1)
        while start >= 0:
            end = marks.find(0, start)
            yield start, bytes(self._values[start:end])
            start = marks.find(1, end)
