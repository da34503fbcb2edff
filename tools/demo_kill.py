"""The other hand of ``make demo``: kills the disk's process in the middle of its work.

``python -m tools.demo_kill NAME`` waits for the machine NAME, then until its disk has been written
to for a while; it prints the milliseconds after which another process served the disk.
"""

from __future__ import annotations

import sys
import time

from launcher import rundir
from launcher.api import VM
from protocol.control import Event

# Some of what tools/linux_init.sh writes.
WRITES = 40
DISK = "blk0"


def main(name: str) -> int:
    """The command line; returns the exit status."""
    while name not in rundir.running():
        time.sleep(0.1)
    vm = VM.connect(name)
    vm.wait_ready()
    events = vm.events()
    while writes(vm) < WRITES:
        time.sleep(0.02)
    vm.kill(DISK)
    for event in events:
        if isinstance(event, Event) and event.kind == "recovered" and event.took is not None:
            print(f"{event.took / 1e6:.1f}")
            return 0
    return 3


def writes(vm: VM) -> int:
    """How many writes the disk's process has done."""
    return next(disk.counters.get("writes", 0) for disk in vm.stats().devices if disk.name == DISK)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
