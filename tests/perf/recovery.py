"""A disk killed, and swapped, under load: how long the guest goes without a completion.

A bare guest reads one sector after the other. What it has been given is read off the disk's
journal, a memfd of the launcher's, whose ``used_idx`` moves with each batch that is published. The
times of the steps between are those of the machine's events, of the same clock: that of the death,
and how long each step of the successor took, the last two of them by the VMM. A guest may have its
completion while its device is being started, of what is done again then: there the steps end.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import statistics
import struct
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from devices.blk import Blk
from launcher.api import VM
from protocol.control import Event
from protocol.errors import HostError
from protocol.journal import Journal, QueueJournal
from tests.perf import recovery_peer
from tests.support.bare import usable_kvm
from tests.support.guest import STREAM, demo

KILLS = SWAPS = 100
DETECT = "detect"
IMPLEMENTATIONS = ("blk-mapped", "blk")
# So many that none of them is the last (arbitrary).
REQUESTS = 1 << 31
# Seconds, all arbitrary. A process is healthy for the supervisor when it has served for 0.1, and
# is killed anywhere in its work; the guest goes on for a while. Looks take a tenth of a CPU.
BEFORE, AFTER, LOOK = (0.1, 0.15), 0.03, 100e-6


@dataclass(frozen=True, slots=True)
class Stall:
    """Nanoseconds: how long the guest waited, and on what, in order."""

    whole: int
    steps: dict[str, int]


class Published(threading.Thread):
    """Notes when the disk's ``used_idx`` moves, from :meth:`start` to :meth:`longest_wait`."""

    def __init__(self, journal: QueueJournal) -> None:
        super().__init__()
        self._region = journal.region
        self._moved: list[int] = []
        self._is_over = threading.Event()

    def run(self) -> None:
        """Look, until it is over."""
        last = None
        while not self._is_over.wait(LOOK):
            # docs/journal.md: features, version, desc_num, last_batch_head, used_idx.
            (used,) = struct.unpack_from("<H", self._region, 14)
            if used != last:
                self._moved.append(time.monotonic_ns())
                last = used

    def longest_wait(self) -> tuple[int, int]:
        """When the longest time between two completions began and ended, in nanoseconds."""
        time.sleep(AFTER)
        self._is_over.set()
        self.join()
        return max(pairwise(self._moved), key=lambda pair: pair[1] - pair[0])


def measure() -> dict[str, object]:
    """Milliseconds, each as its median and its 99th percentile."""
    try:
        kills, swaps = _stalls()
    except HostError as error:
        found: dict[str, object] = {"not measured": str(error)}
    else:
        found = {"milliseconds": f"[median, 99th percentile] of {KILLS} kills and {SWAPS} swaps"}
        found["crash to first completion"] = both(kill.whole for kill in kills)
        for step in kills[0].steps:
            found[f"  {step}"] = both(kill.steps[step] for kill in kills)
            if step == DETECT:
                found["  fence"] = "none: what its pidfd tells of is dead, and writes nothing"
        found["swap, nobody serves"] = both(swap.steps["nobody serves"] for swap in swaps)
        found["swap, between two completions"] = both(swap.whole for swap in swaps)
    return found | recovery_peer.measure()


def both(nanoseconds: Iterable[int]) -> list[float]:
    """Median and 99th percentile, in milliseconds."""
    values = list(nanoseconds)
    last = statistics.quantiles(values, n=100, method="inclusive")[98]
    return [round(value / 1e6, 2) for value in (statistics.median(values), last)]


def _stalls() -> tuple[list[Stall], list[Stall]]:
    if why := usable_kvm():
        raise HostError(why)
    with tempfile.TemporaryDirectory() as name:
        guest, disk = Path(name) / "guest.raw", Path(name) / "disk.img"
        guest.write_bytes(demo(STREAM, sleep=True, count=REQUESTS))
        disk.write_bytes(bytes(1 << 20))
        options = {"binary": guest, "entry": "0x100000", "mem": "64M", "hypervisor": "kvm"}
        with VM(disk=disk, console="pty", devices=["rng"], **options) as vm:
            vm.wait_ready()
            with _journal(vm) as queue:
                events = (event for event in vm.events() if isinstance(event, Event))
                kills = [_kill(vm, queue, events) for _ in range(KILLS)]
                swaps = [_swap(vm, queue, number) for number in range(SWAPS)]
    return kills, swaps


@contextlib.contextmanager
def _journal(vm: VM) -> Iterator[QueueJournal]:
    # That of the disk's one queue: a memfd that the launcher holds.
    wanted = f"/memfd:vibevmm-{vm.name}-blk0 (deleted)"
    folder = Path(f"/proc/{vm.describe().pid}/fd")
    path = next(path for path in folder.iterdir() if os.readlink(path) == wanted)
    with path.open("r+b") as file:
        entries = [queue.size for queue in Blk.queues]
        with Journal(file.fileno(), entries) as mapped:
            yield mapped.queue(0)


def _kill(vm: VM, queue: QueueJournal, events: Iterator[Event]) -> Stall:
    pid = next(process.pid for process in vm.describe().processes if process.name == "blk0")
    published = _in_the_middle(queue)
    killed = time.monotonic_ns()
    os.kill(pid, signal.SIGKILL)
    died = next(event for event in events if event.kind == "died")
    recovered = next(event for event in events if event.kind == "recovered")
    _, ended = published.longest_wait()
    took = {DETECT: died.monotonic - killed, **recovered.steps}
    return Stall(ended - killed, split(ended - killed, took))


def split(whole: int, took: Mapping[str, int]) -> dict[str, int]:
    """``whole`` in steps that add up to it: those that ``took`` so long one after the other, as far
    as they go, and the rest, until the first completion."""
    left, steps = whole, {}
    for step, nanoseconds in took.items():
        steps[step] = min(left, nanoseconds)
        left -= steps[step]
    return steps | {"first completion": left}


def _swap(vm: VM, queue: QueueJournal, number: int) -> Stall:
    published = _in_the_middle(queue)
    served = vm.swap("blk0", IMPLEMENTATIONS[number % 2])
    began, ended = published.longest_wait()
    return Stall(ended - began, {"nobody serves": served.took})


def _in_the_middle(queue: QueueJournal) -> Published:
    published = Published(queue)
    published.start()
    time.sleep(random.uniform(*BEFORE))
    return published
