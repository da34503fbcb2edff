"""What of the jail this host has, tried in processes that end right away."""

from __future__ import annotations

import os
from typing import cast

from protocol import codec, jail
from protocol.errors import HostError
from protocol.jail import cgroup
from protocol.specs import Part

_EXIT_BUG = 1


def lacks() -> dict[Part, str]:
    """The parts that a process which this one makes would go without, and why. A few
    milliseconds; HostError if that cannot be found out."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os._exit(_try(writing))
        finally:
            os._exit(_EXIT_BUG)
    os.close(writing)
    with open(reading, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    if not told:
        raise HostError("the jail cannot be tried on this host")
    found = cast("dict[Part, str]", codec.unpack(told))
    return found | ({"cgroup": why} if (why := cgroup.why_not()) else {})


def _try(pipe: int) -> int:
    # As a midwife, and then as its device.
    cell = jail.Cell()
    cell.leave_processes()
    if (child := os.fork()) != 0:
        os.waitpid(child, 0)
        return 0
    proc = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    cell.leave_host()
    cell.empty_root([], proc)
    jail.give_up_privileges()
    cell.restrict([(proc, jail.READ)])
    os.write(pipe, codec.pack(cell.lacks))
    return 0
