"""What an experiment does to a device under load: one class a fault, and their table."""

from __future__ import annotations

from typing import Protocol

from launcher.api import VM
from protocol.faults import HANG

# What a swap puts in the place of a kind: another implementation, where there is one.
_OTHER = {"blk": "blk-mapped", "blk-mapped": "blk"}


class Fault(Protocol):
    """Something that keeps a device from serving for a while."""

    ends: str
    """The event that says that somebody serves again."""

    def strike(self, vm: VM, device: str) -> None:
        """Have it happen now, to ``device`` of ``vm``."""


class Kill:
    """SIGKILL, in the middle of whatever it does."""

    ends = "recovered"

    def strike(self, vm: VM, device: str) -> None:
        """See Fault."""
        vm.kill(device)


class Hang:
    """It does nothing any more, from its next chain on."""

    ends = "recovered"

    def strike(self, vm: VM, device: str) -> None:
        """See Fault."""
        vm.inject(device, HANG)


class Swap:
    """Another implementation takes its place."""

    ends = "swapped"

    def strike(self, vm: VM, device: str) -> None:
        """See Fault."""
        serving = next(p.kind for p in vm.describe().processes if p.name == device)
        vm.swap(device, _OTHER.get(serving, serving))


class Restart:
    """A fresh process takes its place."""

    ends = "swapped"

    def strike(self, vm: VM, device: str) -> None:
        """See Fault."""
        vm.restart(device)


FAULTS: dict[str, Fault] = {"kill": Kill(), "hang": Hang(), "swap": Swap(), "restart": Restart()}
"""Every fault by its name."""
