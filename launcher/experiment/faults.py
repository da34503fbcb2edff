"""What an experiment does to a device under load: one class a fault, and their table."""

from __future__ import annotations

import os
import signal
import time
from typing import Protocol

from launcher.api import VM
from protocol.control import Process
from protocol.faults import HANG

# What a swap puts in the place of a kind: another implementation, where there is one.
_OTHER = {"blk": "blk-mapped", "blk-mapped": "blk"}


class Fault(Protocol):
    """Something that keeps a device from serving for a while."""

    ends: str
    """The event that says that somebody serves again."""

    def strike(self, vm: VM, device: str) -> float:
        """Have it happen to ``device`` of ``vm``; when it did, of time.monotonic(). Of what is over
        by then the machine's events say it better."""


def _serving(vm: VM, device: str) -> Process:
    return next(process for process in vm.describe().processes if process.name == device)


class Kill:
    """SIGKILL, in the middle of whatever it does."""

    ends = "recovered"

    def strike(self, vm: VM, device: str) -> float:
        """See Fault."""
        pid = _serving(vm, device).pid
        at = time.monotonic()
        # Not vm.kill(), which happens when the launcher comes to it.
        os.kill(pid, signal.SIGKILL)
        return at


class Hang:
    """It does nothing any more, from its next chain on."""

    ends = "recovered"

    def strike(self, vm: VM, device: str) -> float:
        """See Fault."""
        vm.inject(device, HANG)
        return time.monotonic()


class Swap:
    """Another implementation takes its place."""

    ends = "swapped"

    def strike(self, vm: VM, device: str) -> float:
        """See Fault."""
        serving = _serving(vm, device).kind
        vm.swap(device, _OTHER.get(serving, serving))
        return time.monotonic()


class Restart:
    """A fresh process takes its place."""

    ends = "swapped"

    def strike(self, vm: VM, device: str) -> float:
        """See Fault."""
        vm.restart(device)
        return time.monotonic()


FAULTS: dict[str, Fault] = {"kill": Kill(), "hang": Hang(), "swap": Swap(), "restart": Restart()}
"""Every fault by its name."""
