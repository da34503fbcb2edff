"""A disk that its lane serves, one that Python serves, and the same file without virtio.

The guest is that of ``isolation``: a loop in C in this process that keeps requests of 4 KiB, half
of them reads, with a real device process in its jail. The image is in a tmpfs. At depth 1 both
sides are on one CPU: with two, what is measured is how the host halts and wakes an idle one. In the
end a disk with more and less queues, whose image has to be waited for.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

from protocol.errors import BadInput
from tests.perf.driver import DATA, IMAGE_SIZE, compiled, in_turn, on_one_cpu, ratios
from tests.perf.isolation import Disk, disk

# Arbitrary: a turn takes some tenths of a second.
ROUNDS = 15
REQUESTS = {32: 40_000, 1: 10_000}
QUEUES, WAITED_FOR = (1, 2, 4), 1500
WITHOUT_VIRTIO, LANE, TWO, PYTHON = "no virtio", "lane", "two queues", "python"
KINDS = {LANE: "", TWO: "", PYTHON: "tests.support.python_blk:PythonBlk"}

_FILE = """
uint64_t bench_file(int file, uint8_t *buffers, uint32_t count, uint32_t blocks, uint32_t total);
"""


def measure() -> dict[str, object]:
    """Requests per second of each, ratios, and CPU time of what serves."""
    rates: dict[tuple[int, str], list[float]] = {}
    cpu: dict[tuple[int, str], list[float]] = {}
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
            for depth, total in REQUESTS.items():
                for kind in in_turn((WITHOUT_VIRTIO, *KINDS), turn):
                    rate, busy = _one(kind, disks, library, file, image, depth, total)
                    rates.setdefault((depth, kind), []).append(rate)
                    cpu.setdefault((depth, kind), []).append(busy)
    found: dict[str, object] = {}
    for depth in REQUESTS:
        here = {kind: rates[depth, kind] for kind in (WITHOUT_VIRTIO, *KINDS)}
        found[f"depth {depth}, requests/s"] = {
            kind: round(statistics.median(each)) for kind, each in here.items()
        }
        for one, other in ((LANE, PYTHON), (TWO, LANE), (LANE, WITHOUT_VIRTIO)):
            found[f"depth {depth}, {one} / {other} [quartiles]"] = ratios(here[one], here[other])
        found[f"depth {depth}, CPU of the device a request, µs"] = {
            kind: round(statistics.median(cpu[depth, kind]) * 1e6, 2) for kind in KINDS
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
                rate, _ = disks[queues].run(library, 32, WAITED_FOR)
                rates.setdefault(queues, []).append(rate)
    return {
        "reads of /var/tmp around the page cache, depth 32, requests/s by queues": {
            str(queues): round(statistics.median(rates[queues])) for queues in QUEUES
        }
    }


def _one(
    kind: str,
    disks: dict[str, Disk],
    library: Any,
    file: Any,
    image: int,
    depth: int,
    total: int,
) -> tuple[float, float]:
    if kind == WITHOUT_VIRTIO:
        ffi, lib = file
        buffers = ffi.new("uint8_t[]", depth * DATA)
        elapsed = lib.bench_file(image, buffers, depth, IMAGE_SIZE // DATA, total)
        assert elapsed
        return total / elapsed * 1e9, 0.0
    with on_one_cpu([disks[kind].pid]) if depth == 1 else nullcontext():
        return disks[kind].run(library, depth, total)
