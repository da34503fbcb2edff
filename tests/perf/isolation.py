"""A disk at each level of isolation: requests of 4 KiB, half of them reads, at depth 32 and 1.

The guest is a loop in C in this process, and the doorbells of KVM are eventfds; the device is the
real process, in its real jail. At ``bounce`` the mediators and the thread that runs them are the
VMM's own. All levels are there at the same time and take turns, so what else the host does is
the same for all; the disk's image is in the page cache.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from devices import blk
from launcher.experiment.surface import guest_memory
from protocol.fds import close_all
from protocol.memory import GuestMemory, create_memfd
from protocol.messages import Done, QueueSetup, Start
from protocol.specs import LEVELS, Isolation, Level
from protocol.virtio import Feature, bit
from tests.perf.driver import (
    IMAGE_SIZE,
    IN,
    OUT,
    QUEUE_SIZE,
    Queue,
    compiled,
    cpu_seconds,
    drive,
    in_turn,
    lay_requests,
    ratios,
)
from tests.support.device_host import DeviceHost
from vmm import memory_map
from vmm.mediation import Arena, Mediator, ShadowMemory, lay_out
from vmm.mediation.pump import Pump

# Arbitrary: a turn of one level takes a quarter of a second.
ROUNDS = 45
REQUESTS = {32: 6000, 1: 3000}

# Where a guest of 16 MiB has its rings, and the requests of each.
_RING, _RING_STRIDE = 0x10_0000, 0x1_0000
_REQUESTS, _QUEUE_STRIDE = 0x20_0000, 0x10_0000


def measure() -> dict[str, object]:
    """Requests per second by level and depth, ratios of neighbours, CPU time of what serves."""
    rates: dict[tuple[int, str], list[float]] = {}
    cpu: dict[tuple[int, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        library = compiled("driver", folder)
        disks = {level: stack.enter_context(disk(level, folder / level)) for level in LEVELS}
        for turn in range(ROUNDS):
            for depth, total in REQUESTS.items():
                for level in in_turn(LEVELS, turn):
                    rate, busy = disks[level].run(library, depth, total)
                    rates.setdefault((depth, level), []).append(rate)
                    cpu.setdefault((depth, level), []).append(busy)
        reached = {level: each.reached() for level, each in disks.items()}
    found: dict[str, object] = {"bytes of guest memory that it reaches": reached}
    for depth in REQUESTS:
        here = {level: rates[depth, level] for level in LEVELS}
        found[f"depth {depth}, requests/s"] = {
            level: round(statistics.median(each)) for level, each in here.items()
        }
        for one, other in (("jail", "none"), ("bounce", "jail")):
            found[f"depth {depth}, {one} / {other} [quartiles]"] = ratios(here[one], here[other])
        found[f"depth {depth}, CPU a request, µs"] = {
            level: round(statistics.median(cpu[depth, level]) * 1e6, 1) for level in LEVELS
        }
    return found


class Disk:
    """A disk with its guest, whose are the ``kicks`` of each queue, and ``call``."""

    def __init__(
        self, host: DeviceHost, kicks: Sequence[int], call: int, pump: Pump | None = None
    ) -> None:
        self._host = host
        self._kicks, self._call = kicks, call
        self._pump = pump

    @property
    def pid(self) -> int:
        """The device's process."""
        return self._host.process.pid

    def run(self, library: Any, depth: int, total: int) -> tuple[float, float]:
        """Requests per second, and seconds of CPU time a request, the guest's own not counted. The
        ``depth`` is that of all queues together."""
        queues = [
            Queue(_ring(index), _requests(index), kick) for index, kick in enumerate(self._kicks)
        ]
        before = self._busy()
        rate, _ = drive(
            library, self._host.memory.whole, queues, self._call, depth=depth, total=total
        )
        return rate, (self._busy() - before) / total

    def reached(self) -> int | None:
        """Bytes of guest memory that the device can read, by its maps and descriptors."""
        whole = len(self._host.memory.whole)
        return guest_memory(self._host.process.pid, "test", whole)[0]

    def _busy(self) -> float:
        device = cpu_seconds(self._host.process.pid)
        thread = self._pump.thread if self._pump is not None else None
        if thread is None:
            return device
        assert thread.ident is not None
        return device + time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


@contextmanager
def disk(
    level: Level,
    folder: Path,
    kind: str = "blk",
    register: str = "",
    *,
    reads: bool = False,
    **options: Any,
) -> Iterator[Disk]:
    """A disk of ``kind`` at ``level`` with ``options``, whose image is in ``folder``; ``register``
    as DeviceHost has it. Half of its requests, or all, are ``reads``."""
    folder.mkdir()
    image = folder / "disk.img"
    image.write_bytes(os.urandom(IMAGE_SIZE))
    features = bit(Feature.VERSION_1) | bit(blk.Feature.FLUSH)  # else each write is synchronous
    isolation = Isolation(level)
    config = blk.Config(str(image), **options)
    with DeviceHost(kind, folder, config, start=False, level=level, register=register) as host:
        setups = [_ring(index) for index in host.kicks]
        for setup in setups:
            kinds = (IN,) if reads else (IN, OUT)
            lay_requests(host.memory, setup, _requests(setup.index), kinds)
        if level != "bounce":
            host.hand_over(isolation=isolation)
            host.greet()
            host.request(Start(features, tuple(setups)), Done)
            yield Disk(host, list(host.kicks.values()), host.call)
            return
        (setup,) = setups
        region = memory_map.bounce_region(1)
        bounce = create_memfd("bounce", region.size)
        try:
            host.hand_over(
                memory=bounce,
                isolation=isolation,
                regions=(region,),
                largest_chain=memory_map.LARGEST_CHAIN,
            )
            host.greet()
            with GuestMemory(bounce, (region,)) as shadow:
                yield from _bounced(host, shadow, setup, features)
        finally:
            close_all([bounce])


def _bounced(host: DeviceHost, shadow: GuestMemory, setup: Any, features: int) -> Iterator[Disk]:
    (region,) = shadow.regions
    ours = lay_out(region.gpa, QUEUE_SIZE)
    view = shadow.view(region.gpa, region.size)
    pump = Pump("blk0", 1, lambda error: print(error, file=sys.stderr))
    with (
        view,
        Mediator(
            host.memory,
            setup,
            ours,
            ShadowMemory(region.gpa, view),
            hook=None,
            arena=Arena(memory_map.arena_address(0), memory_map.ARENA_SIZE),
            event_idx=False,
            indirect=False,
        ) as mediator,
    ):
        host.request(Start(features, (ours,)), Done)
        pump.connect({"kick0": host.kicks[0], "call": host.call})
        pump.serve({0: mediator})
        try:
            yield Disk(host, pump.kicks, pump.line, pump)
        finally:
            pump.close()


def _ring(index: int) -> QueueSetup:
    return lay_out(_RING + index * _RING_STRIDE, QUEUE_SIZE, index)


def _requests(index: int) -> int:
    return _REQUESTS + index * _QUEUE_STRIDE
