"""Disks that read and write no file: what serving a request costs, and nothing else."""

from __future__ import annotations

from _null_lane import ffi, lib  # which tests.perf.vhost has built, and put where it is found

from devices.blk import Blk, Status
from devices.lanes import Build, LaneQueue
from devices.runtime.device import virtqueue
from protocol import ring
from protocol.ring import Chain


class Ring(ring.Ring):
    """The same ring, on the engine that this lane is built with."""

    _ffi, _lib = ffi, lib


class NullQueue(LaneQueue):
    """A queue of it."""

    ring_type = Ring


class NullBlk(Blk):
    """Served by the lane."""

    lanes = Build(ffi, lib, NullQueue, NullQueue)


class PythonNullBlk(Blk):
    """Served by a handler that looks at nothing."""

    @virtqueue(0, size=128, verdict=1)
    def requestq(self, chain: Chain) -> int:
        """All is well."""
        data = chain.writable
        size = data.size
        data.split(size - 1).write(bytes([Status.OK]))
        return size
