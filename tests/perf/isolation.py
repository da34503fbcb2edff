"""A disk at each level of isolation: requests of 4 KiB, half of them reads, at depth 32 and 1.

The guest is a loop in C in this process, and the doorbells of KVM are eventfds; the device is the
real process, in its real jail. At ``bounce`` the mediators and the thread that runs them are the
VMM's own. All levels are there at the same time and take turns, so what else the host does is
the same for all; the disk's image is in the page cache.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cffi import FFI

from devices import blk
from launcher.experiment.surface import guest_memory
from protocol.fds import close_all
from protocol.memory import GuestMemory, create_memfd
from protocol.messages import Done, Start
from protocol.specs import LEVELS, Isolation, Level
from protocol.virtio import Feature, bit
from tests.support.device_host import DeviceHost
from vmm import memory_map
from vmm.mediation import Arena, Mediator, ShadowMemory, lay_out
from vmm.mediation.pump import Pump

# Arbitrary: a turn of one level takes a quarter of a second.
ROUNDS = 45
REQUESTS = {32: 6000, 1: 3000}

QUEUE_SIZE, DATA = 128, 4096
# Where a guest of 16 MiB has its ring, and its requests: header, status, data.
_RING, _REQUESTS, _STRIDE = 0x10_0000, 0x20_0000, 0x2000
_IMAGE_SIZE = 64 << 20

_IN, _OUT = 0, 1
_NEXT, _WRITE = 1, 2

LOOP = """
struct vring_avail;
struct vring_used;
struct guest {
    struct vring_avail *avail;
    struct vring_used *used;
    uint8_t *requests;
    uint32_t size, stride, depth, sectors;
    int kick, call;
};
uint64_t bench_guest(const struct guest *guest, uint32_t total);
"""


def measure() -> dict[str, object]:
    """Requests per second by level and depth, ratios of neighbours, CPU time of what serves."""
    rates: dict[tuple[int, str], list[float]] = {}
    cpu: dict[tuple[int, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        library = _compile(folder)
        lanes = {level: stack.enter_context(_lane(level, folder / level)) for level in LEVELS}
        for turn in range(ROUNDS):
            for depth, total in REQUESTS.items():
                for level in _in_turn(turn):
                    rate, busy = lanes[level].run(library, depth, total)
                    rates.setdefault((depth, level), []).append(rate)
                    cpu.setdefault((depth, level), []).append(busy)
        reached = {level: lane.reached() for level, lane in lanes.items()}
    found: dict[str, object] = {"bytes of guest memory that it reaches": reached}
    for depth in REQUESTS:
        here = {level: rates[depth, level] for level in LEVELS}
        found[f"depth {depth}, requests/s"] = {
            level: round(statistics.median(each)) for level, each in here.items()
        }
        for one, other in (("jail", "none"), ("bounce", "jail")):
            ratios = [a / b for a, b in zip(here[one], here[other], strict=True)]
            quartiles = [round(value, 2) for value in statistics.quantiles(ratios, n=4)]
            found[f"depth {depth}, {one} / {other} [quartiles]"] = quartiles
        found[f"depth {depth}, CPU a request, µs"] = {
            level: round(statistics.median(cpu[depth, level]) * 1e6, 1) for level in LEVELS
        }
    return found


def _in_turn(turn: int) -> tuple[Level, ...]:
    # Nobody always comes behind the same one.
    return LEVELS[turn % 3 :] + LEVELS[: turn % 3]


class _Lane:
    # A disk at one level, with its guest; ``kick`` and ``call`` are the guest's.
    def __init__(self, host: DeviceHost, kick: int, call: int, pump: Pump | None = None) -> None:
        self._host = host
        self._kick, self._call = kick, call
        self._pump = pump

    def run(self, library: Any, depth: int, total: int) -> tuple[float, float]:
        """Requests per second, and seconds of CPU time a request, the guest's own not counted."""
        ffi, lib = library
        setup = lay_out(_RING, QUEUE_SIZE)
        with ffi.from_buffer(self._host.memory.whole) as ram:
            guest = ffi.new(
                "struct guest *",
                {
                    "avail": ffi.cast("struct vring_avail *", ram + setup.avail),
                    "used": ffi.cast("struct vring_used *", ram + setup.used),
                    "requests": ffi.cast("uint8_t *", ram + _REQUESTS),
                    "size": QUEUE_SIZE,
                    "stride": _STRIDE,
                    "depth": depth,
                    "sectors": _IMAGE_SIZE // 512,
                    "kick": self._kick,
                    "call": self._call,
                },
            )
            before = self._busy()
            elapsed = lib.bench_guest(guest, total)
        assert elapsed, self._host.log()
        return total / (elapsed / 1e9), (self._busy() - before) / total

    def reached(self) -> int | None:
        """Bytes of guest memory that the device can read, by its maps and descriptors."""
        whole = len(self._host.memory.whole)
        return guest_memory(self._host.process.pid, "test", whole)[0]

    def _busy(self) -> float:
        device = sum(
            int((task / "schedstat").read_text().split()[0])
            for task in Path(f"/proc/{self._host.process.pid}/task").iterdir()
        )
        thread = self._pump.thread if self._pump is not None else None
        if thread is None:
            return device / 1e9
        assert thread.ident is not None
        return device / 1e9 + time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


@contextmanager
def _lane(level: Level, folder: Path) -> Iterator[_Lane]:
    folder.mkdir()
    image = folder / "disk.img"
    image.write_bytes(os.urandom(_IMAGE_SIZE))
    features = bit(Feature.VERSION_1) | bit(blk.Feature.FLUSH)  # else each write is synchronous
    isolation = Isolation(level)
    with DeviceHost("blk", folder, blk.Config(str(image)), start=False, level=level) as host:
        setup = _lay_requests(host.memory)
        if level != "bounce":
            host.hand_over(isolation=isolation)
            host.greet()
            host.request(Start(features, (setup,)), Done)
            yield _Lane(host, host.kicks[0], host.call)
            return
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


def _bounced(host: DeviceHost, shadow: GuestMemory, setup: Any, features: int) -> Iterator[_Lane]:
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
            yield _Lane(host, pump.kicks[0], pump.line, pump)
        finally:
            pump.close()


def _lay_requests(memory: GuestMemory) -> Any:
    setup = lay_out(_RING, QUEUE_SIZE)
    for number in range(QUEUE_SIZE // 3):
        at, head = _REQUESTS + number * _STRIDE, 3 * number
        kind = number % 2
        memory.write(at, struct.pack("<IIQ", kind, 0, 0))
        pieces = (
            (at, 16, _NEXT, head + 1),
            (at + 0x1000, DATA, _NEXT | (_WRITE if kind == _IN else 0), head + 2),
            (at + 16, 1, _WRITE, 0),
        )
        memory.write(setup.desc + 16 * head, b"".join(struct.pack("<QIHH", *one) for one in pieces))
    return setup


def _compile(directory: Path) -> tuple[Any, Any]:
    builder = FFI()
    builder.cdef(LOOP)
    builder.set_source(
        "_isolation_bench",
        '#include "isolation.c"',
        include_dirs=[str(Path(__file__).parent)],
        extra_compile_args=["-std=gnu11", "-O2"],
    )
    path = builder.compile(tmpdir=str(directory))
    spec = importlib.util.spec_from_file_location("_isolation_bench", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ffi, module.lib
