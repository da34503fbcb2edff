"""A driver that keeps requests of 4 KiB with a disk, as a loop in C (driver.c), and how its queue
and its requests are laid out in memory."""

from __future__ import annotations

import importlib.util
import os
import statistics
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from cffi import FFI

from protocol.memory import GuestMemory
from protocol.messages import QueueSetup

T = TypeVar("T")

QUEUE_SIZE, DATA = 128, 4096
IMAGE_SIZE = 64 << 20

IN, OUT = 0, 1
_NEXT, _WRITE = 1, 2

# Header and status are in a request's first page, its data in the second.
_STRIDE = 2 * DATA

LOOP = """
struct vring_avail;
struct vring_used;
struct guest {
    struct vring_avail *avail;
    struct vring_used *used;
    uint8_t *requests;
    uint32_t size, stride, depth, sectors;
    int kick, call;
    bool event_idx;
    uint32_t *took;
};
uint64_t bench_guest(const struct guest *guests, uint32_t count, uint32_t total);
"""

REQUESTS = QUEUE_SIZE // 3
"""As many as the queue has room for."""


def lay_requests(
    memory: GuestMemory, setup: QueueSetup, at: int, kinds: Sequence[int]
) -> list[int]:
    """The requests, of ``kinds`` in turn, at the guest address ``at``, and the descriptors of each
    in the queue of ``setup``, which has none in flight. Where the data of each is, which is
    random."""
    places = []
    for number in range(REQUESTS):
        header, head = at + number * _STRIDE, 3 * number
        data = header + DATA
        kind = kinds[number % len(kinds)]
        memory.write(header, struct.pack("<IIQ", kind, 0, 0))
        memory.write(data, os.urandom(DATA))
        pieces = (
            (header, 16, _NEXT, head + 1),
            (data, DATA, _NEXT | (_WRITE if kind == IN else 0), head + 2),
            (header + 16, 1, _WRITE, 0),
        )
        memory.write(setup.desc + 16 * head, b"".join(struct.pack("<QIHH", *one) for one in pieces))
        places.append(data)
    return places


class Queue(NamedTuple):
    """A queue, the guest address of its requests, and its kick."""

    setup: QueueSetup
    at: int
    kick: int


def drive(
    library: Any,
    ram: Any,
    queues: Sequence[Queue],
    call: int,
    *,
    depth: int,
    total: int,
    event_idx: bool = False,
    times: bool = False,
) -> tuple[float, list[int]]:
    """Requests per second of ``total`` that were laid out in ``ram``, a buffer, ``depth`` of them
    at a time in all ``queues`` together; and how many nanoseconds each of them took, at depth 1,
    where ``times`` are asked for."""
    ffi, lib = library
    took = ffi.new("uint32_t[]", total) if times else ffi.NULL
    with ffi.from_buffer(ram) as start:
        guests = [
            {
                "avail": ffi.cast("struct vring_avail *", start + queue.setup.avail),
                "used": ffi.cast("struct vring_used *", start + queue.setup.used),
                "requests": ffi.cast("uint8_t *", start + queue.at),
                "size": queue.setup.size,
                "stride": _STRIDE,
                "depth": max(1, depth // len(queues)),
                "sectors": IMAGE_SIZE // 512,
                "kick": queue.kick,
                "call": call,
                "event_idx": event_idx,
                "took": took,
            }
            for queue in queues
        ]
        elapsed = lib.bench_guest(ffi.new("struct guest[]", guests), len(guests), total)
    assert elapsed, "a request failed, or took ten seconds"
    return total / elapsed * 1e9, list(took) if times else []


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads that process ``pid`` has or had: by its clock, clock_getcpuclockid(3)
    in the kernel's encoding."""
    return time.clock_gettime((~pid << 3) | 2)


@contextmanager
def on_one_cpu(pids: Sequence[int]) -> Iterator[None]:
    """This thread, and all threads of ``pids``, on one CPU. With two, what is measured at depth 1
    is how the host halts and wakes an idle one."""
    cpus = os.sched_getaffinity(0)
    both = [0, *(int(task) for pid in pids for task in os.listdir(f"/proc/{pid}/task"))]
    for each in both:
        os.sched_setaffinity(each, {min(cpus)})
    try:
        yield
    finally:
        for each in both:
            os.sched_setaffinity(each, cpus)


def in_turn(each: Sequence[T], turn: int) -> list[T]:
    """So that nobody always comes behind the same one."""
    first = turn % len(each)
    return [*each[first:], *each[:first]]


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Quartiles of the ratios of pairs that ran in turn."""
    found = [a / b for a, b in zip(ours, theirs, strict=True)]
    return [round(value, 2) for value in statistics.quantiles(found, n=4)]


def compiled(name: str, directory: Path, declarations: str = LOOP) -> tuple[Any, Any]:
    """The C beside this file that is called ``name``: its ffi and its lib."""
    builder = FFI()
    builder.cdef(declarations)
    builder.set_source(
        f"_{name}_bench",
        f'#include "{name}.c"',
        include_dirs=[str(Path(__file__).parent)],
        extra_compile_args=["-std=gnu11", "-O2"],
    )
    path = builder.compile(tmpdir=str(directory))
    spec = importlib.util.spec_from_file_location(f"_{name}_bench", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ffi, module.lib
