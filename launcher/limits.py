"""What the processes of devices may use, by their cgroups (protocol.jail.cgroup): chosen here.
So is what an uplink may, with its passt.

Memory is charged to the group of whoever touches a page first, and stays charged to it. A guest's
page is touched first by a device as often as by the guest: by a disk that reads into it. So the
limit of a device that is handed the guest's memory is above that, or a guest that reads a large
file would kill its disk. At ``bounce`` the mediator touches the guest's pages, in the VMM, which
has no limit; there the device has its own, small memory.

=================  =============================================================================
cpu.max            a processor and a quarter: the loop's one thread has a whole one and never
                   waits; libzmq's two do little. Of a hostile one all three run. Each queue with
                   a thread of its own has a processor more
memory.max         the memory that it shares with the machine, and :data:`ROOM`
memory.swap.max    the memory that it shares: what it touched first may be swapped as what the VMM
                   did. No more, or swap would be a way around the limit
memory.oom.group   what is over the limit ends as a whole
pids.max           threads: it has three, and starts 15 for its queues at most; of the kernel's
                   there are some for io_urings, which make do with fewer: 64 (arbitrary)
=================  =============================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

ROOM: Final = 128 << 20
"""Bytes beside shared memory: the 64 MiB of private memory that a sealed device may come to have
(devices.runtime.seal), and as much (arbitrary) for what it has before, a fork's pages that it
writes to and its imports, and for what the kernel has for it. Pages of its files are charged, too;
these are given back before anything is killed."""

STANDING: Final[Mapping[str, str]] = {
    "cpu.max": "125000 100000",  # microseconds, in each of so many
    "memory.oom.group": "1",
    "pids.max": "64",
}
"""The limits of any device, by the names of their files."""


UPLINK: Final[Mapping[str, str]] = {
    "cpu.max": "200000 100000",
    "memory.oom.group": "1",
    "memory.max": str(256 << 20),
    "memory.swap.max": "0",
    "pids.max": "8",
}
"""Those of an uplink, with its passt: a processor for each; an interpreter of 15 MiB and a passt of
21, and the buffers of connections that the kernel has for it; three threads (the rest
arbitrary)."""


def of_device(shared: int, threads: int = 0) -> dict[str, str]:
    """Those of one that shares ``shared`` bytes with the machine, and has so many ``threads`` for
    queues."""
    found = {"memory.max": str(shared + ROOM), "memory.swap.max": str(shared)}
    if threads:
        quota, period = map(int, STANDING["cpu.max"].split())
        found["cpu.max"] = f"{quota + threads * period} {period}"
    return found
