"""Lanes: queues that are served in C, from the kick to the call, without Python.

Of a lane each device has one function (``lane.h``), which carries out what it is asked all the
time. The rest comes to the device's handler in Python, in its place in the order.
"""

from __future__ import annotations

import os

from devices.lanes._lanes import ffi, lib
from devices.lanes.lane import Build, Lane
from devices.lanes.queue import LaneQueue
from devices.lanes.thread import ThreadedQueue

__all__ = ["PLAIN", "Build", "Lane", "LaneQueue", "why_no_uring"]


def why_no_uring(file: int) -> str:
    """Why there is no io_uring for ``file``, restricted to it; empty if there is one."""
    disk = ffi.new("struct blk_disk *", {"image": file})
    if error := lib.blk_open_requests(disk):
        return os.strerror(-error)
    lib.blk_close_requests(disk)
    return ""


PLAIN = Build(ffi, lib, LaneQueue, ThreadedQueue)
"""The lanes without fault points; :mod:`devices.lanes.faults` are those with them."""
