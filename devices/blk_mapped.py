"""virtio-blk again, with the image mapped into memory: requests are copies, not system calls.

The kernel keeps a file that is mapped and a file that is read and written the same, so this
device and :mod:`devices.blk` may follow each other on one image while the guest runs.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping

from devices.blk import Blk, Config
from devices.runtime.device import Jail, Runtime
from protocol.ring import Reader, Writer


class MappedBlk(Blk):
    """Copies between the guest's memory and the page cache. An image that somebody truncates
    meanwhile costs the process (SIGBUS), as often as a successor touches what is gone."""

    jail = Jail(frozenset({"fdatasync", "fallocate", "msync", "pwritev", "pwritev2"}))

    def __init__(self, config: Config, fds: Mapping[str, int], runtime: Runtime) -> None:
        super().__init__(config, fds, runtime)
        access = mmap.ACCESS_READ if config.readonly else mmap.ACCESS_WRITE
        self._map = mmap.mmap(self._image, 0, access=access)
        self._view = memoryview(self._map)

    def _read(self, sector: int, request: Reader, data: Writer) -> None:
        offset = self._offset(sector, data.left)
        self.counters["reads"] += 1
        data.write(self._view[offset : offset + data.left])

    def _write(self, sector: int, request: Reader, data: Writer) -> None:
        self._check_writable()
        start = offset = self._offset(sector, request.left)
        self.counters["writes"] += 1
        for piece in request.buffers():
            self._view[offset : offset + len(piece)] = piece
            offset += len(piece)
        if self._write_flags:
            self._sync(start, offset)

    def _flush(self, sector: int, request: Reader, data: Writer) -> None:
        self.counters["flushes"] += 1
        self._map.flush()

    def _sync(self, start: int, end: int) -> None:
        start -= start % mmap.PAGESIZE  # as msync(2) wants it
        self._map.flush(start, end - start)
