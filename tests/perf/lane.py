"""A disk that its lane serves, one that Python serves, and the same file without virtio.

The guest is that of ``isolation``: a loop in C in this process that keeps requests of 4 KiB, half
of them reads, with a real device process in its jail. The image is in a tmpfs. With a CPU for
each side, what is measured at depth 1 is how the host halts and wakes an idle one, or what it gains
not to sleep. In the end disks of one and more queues, whose images have to be waited for.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from protocol.errors import BadInput
from tests.perf.driver import DATA, IMAGE_SIZE, compiled, in_turn, ratios
from tests.perf.isolation import disk

# Arbitrary: a turn takes some tenths of a second.
ROUNDS = 15
WITHOUT_VIRTIO, LANE, SLEEPY, TWO, PYTHON = "no virtio", "lane", "sleepy", "two queues", "python"
KINDS = {
    LANE: "",
    SLEEPY: "tests.support.sleepy_blk:SleepyBlk",
    TWO: "",
    PYTHON: "tests.support.python_blk:PythonBlk",
}
RATIOS = ((LANE, PYTHON), (LANE, SLEEPY), (TWO, LANE), (LANE, WITHOUT_VIRTIO))


class Load(NamedTuple):
    """``total`` requests, ``depth`` at a time; on which CPU the guest is, and the device."""

    depth: int
    total: int
    cpus: tuple[int, int] | None = None


LOADS = {
    "depth 32": Load(32, 40_000),
    "depth 8, a CPU each": Load(8, 10_000, (0, 1)),
    "depth 1, a CPU each": Load(1, 3_000, (0, 1)),
    "depth 1, one CPU": Load(1, 10_000, (0, 0)),
}
QUEUES, WAITED_FOR = (1, 2, 4), Load(32, 1500)

_FILE = """
uint64_t bench_file(int file, uint8_t *buffers, uint32_t count, uint32_t blocks, uint32_t total);
"""


def measure() -> dict[str, object]:
    """Requests per second of each, ratios, and CPU time of what serves."""
    rates: dict[tuple[str, str], list[float]] = {}
    cpu: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name, ExitStack() as stack:
        folder = Path(name)
        library, file = compiled("driver", folder), compiled("lane", folder, _FILE)
        disks = {
            kind: stack.enter_context(
                disk(
                    "jail",
                    folder / kind,
                    kind if register else "blk",
                    register,
                    queues=2 if kind is TWO else 1,
                )
            )
            for kind, register in KINDS.items()
        }
        image = os.open(folder / LANE / "disk.img", os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, image)
        for turn in range(ROUNDS):
            for name, load in LOADS.items():
                for kind in in_turn((WITHOUT_VIRTIO, *KINDS), turn):
                    if kind == WITHOUT_VIRTIO:
                        rate, busy = _without_virtio(file, image, load), 0.0
                    else:
                        with _placed(disks[kind].pid, load.cpus):
                            rate, busy = disks[kind].run(library, load.depth, load.total)
                    rates.setdefault((name, kind), []).append(rate)
                    cpu.setdefault((name, kind), []).append(busy)
    found: dict[str, object] = {}
    for name in LOADS:
        here = {kind: rates[name, kind] for kind in (WITHOUT_VIRTIO, *KINDS)}
        found[f"{name}, requests/s"] = {
            kind: round(statistics.median(each)) for kind, each in here.items()
        }
        for one, other in RATIOS:
            found[f"{name}, {one} / {other} [quartiles]"] = ratios(here[one], here[other])
        found[f"{name}, CPU of the device a request, µs"] = {
            kind: round(statistics.median(cpu[name, kind]) * 1e6, 2) for kind in KINDS
        }
    return found | _waiting()


def _waiting() -> dict[str, object]:
    # Reads of a disk that makes whoever asks wait: by how many threads at a time.
    rates: dict[int, list[float]] = {}
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name, ExitStack() as stack:
        library = compiled("driver", Path(name))
        disks = {}
        for queues in QUEUES:
            folder, options = Path(name) / str(queues), {"cache": "none", "queues": queues}
            made = disk("jail", folder, reads=True, **options)
            try:
                disks[queues] = stack.enter_context(made)
            except BadInput as error:
                return {"queues of a disk that has to be waited for": str(error)}
        for turn in range(ROUNDS):
            for queues in in_turn(QUEUES, turn):
                rate, _ = disks[queues].run(library, *WAITED_FOR[:2])
                rates.setdefault(queues, []).append(rate)
    return {
        "reads of /var/tmp around the page cache, depth 32, requests/s by queues": {
            str(queues): round(statistics.median(rates[queues])) for queues in QUEUES
        }
    }


def _without_virtio(library: Any, image: int, load: Load) -> float:
    ffi, lib = library
    buffers = ffi.new("uint8_t[]", load.depth * DATA)
    elapsed = lib.bench_file(image, buffers, load.depth, IMAGE_SIZE // DATA, load.total)
    assert elapsed
    return float(load.total / elapsed * 1e9)


@contextmanager
def _placed(pid: int, cpus: tuple[int, int] | None) -> Iterator[None]:
    # This thread, and the first of process `pid`, each on one CPU of those that there are.
    all_cpus = sorted(os.sched_getaffinity(0))
    for each, cpu in zip((0, pid), cpus or (), strict=False):
        os.sched_setaffinity(each, {all_cpus[cpu % len(all_cpus)]})
    try:
        yield
    finally:
        for each in (0, pid):
            os.sched_setaffinity(each, all_cpus)
