"""A lane and the handler beside it are one device: the same requests, well made or not, to both.

Of the two disks one is served by C as far as C goes. Both get the same bytes in the same places of
a memory of their own; what they leave must be the same, too: every answer and its length, the
order of the used ring, the image, the counters, and whether the ring is broken.
"""

from __future__ import annotations

import gc
import logging
import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from devices.blk import SECTOR, Blk, Config, Feature, Request, Status
from devices.runtime.files.overlay import begin, open_overlay
from devices.runtime.loop import Loop
from devices.runtime.worker import Worker
from protocol import doorbell, fds, journal
from protocol.journal import Journal
from protocol.messages import QueueSetup
from protocol.virtio import Feature as RingFeature
from protocol.virtio import bit
from tests.support.driver import Driver, Used
from tests.support.python_blk import PythonBlk
from tests.support.ring_pair import guest_memory

SECTORS = 32
IMAGE = bytes(range(256)) * (SECTORS * 2)
SIZE = 64
# Descriptors of chains that no driver would make, behind those of the driver.
FIRST_ODD = 56
# Above what those may name: when a device writes over its own rings, nothing is promised.
BASE = 0x10_0000
NOT_COMPARED = ("batches", "interrupts", "kicks")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    # What is logged is kept, with the exceptions in it, their frames, and the memory in those.
    logging.disable(logging.CRITICAL)
    gc.freeze()  # what there is already is not looked through hundreds of times
    yield
    gc.unfreeze()
    logging.disable(logging.NOTSET)


class Ask(NamedTuple):
    """A request: its bytes and where they are cut, and the sizes of what it lends."""

    message: bytes
    cuts: Sequence[int]
    rooms: Sequence[int]


class Odd(NamedTuple):
    """Descriptors as they come: (address, length, flags, next)."""

    descriptors: Sequence[tuple[int, int, int, int]]


@dataclass
class Left:
    """What a device has left."""

    used: list[Used] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)
    image: bytes = b""
    broken: str = ""


@contextmanager
def image() -> Iterator[int]:
    fd = os.memfd_create("image", os.MFD_CLOEXEC)
    os.pwrite(fd, IMAGE, 0)
    try:
        yield fd
    finally:
        os.close(fd)


def play(
    kind: type[Blk],
    batches: Sequence[Sequence[Ask | Odd]],
    *,
    readonly: bool,
    flush: bool,
    jump: int,
    engine: Literal["sync", "io_uring"] = "sync",
    overlay: str = "",
) -> Left:
    """Everything that ``kind`` does with ``batches``, each offered when the one before is done; in
    the end avail.idx may ``jump``."""
    left = Left()
    config = Config("", readonly=readonly, engine=engine, overlay=overlay)
    sizes = tuple(queue.size for queue in kind.virtqueues(config))
    with image() as disk, guest_memory() as memory, ExitStack() as stack:
        files = {"image": disk}
        if overlay:
            files = {"image": open_overlay(overlay, "", disk)[0], "base": disk}
            stack.callback(os.close, files["image"])
            begin(files["image"])
        notes = journal.create("test", sizes)
        bells = {"kick0": doorbell.create(), "call": doorbell.create()}
        loop = Loop()
        with Journal(notes, sizes) as kept:
            worker = Worker(
                kind,
                config,
                files | bells,
                memory,
                kept,
                loop,
                None,
            )
            driver = Driver(memory, SIZE, base=BASE, length=0x8_0000)
            driver.keep_free(range(FIRST_ODD, SIZE))
            run(worker, driver, loop, bells, batches, left, flush=flush, jump=jump)
        left.image = os.pread(disk, SECTORS * SECTOR + 1, 0)
        if overlay:
            assert left.image == IMAGE
            left.image = os.pread(files["image"], 1 << 20, 64)  # all but the header
        loop.close()
        fds.close_all([notes, *bells.values()])
    del worker, driver
    gc.collect()  # a worker and its device hold each other, and the memory
    return left


def run(
    worker: Worker,
    driver: Driver,
    loop: Loop,
    bells: dict[str, int],
    batches: Sequence[Sequence[Ask | Odd]],
    left: Left,
    *,
    flush: bool,
    jump: int,
) -> None:
    rest = iter(batches)

    def broken(reason: str) -> None:
        left.broken = reason
        loop.stop()

    def go_on() -> None:
        doorbell.drain(bells["call"])
        left.used += driver.collect()
        if driver.pending:
            return
        batch = next(rest, None)
        if batch is None and not jump:
            loop.stop()
            return
        for asked in batch or ():
            offer(driver, asked)
        driver.publish()
        if batch is None:
            driver.write16(driver.avail + 2, (driver.avail_idx + jump) & 0xFFFF)
        doorbell.ring(bells["kick0"])

    agreed = worker.features
    if not flush:
        agreed &= ~bit(Feature.FLUSH)
    worker.broken = broken
    setup = QueueSetup(0, SIZE, driver.desc, driver.avail, driver.used)
    worker.start(agreed & ~bit(RingFeature.EVENT_IDX), [setup])
    loop.add(bells["call"], go_on)
    doorbell.ring(bells["call"])
    loop.run()
    loop.remove(bells["call"])
    left.used += driver.collect()
    counters = worker.counters()
    left.counters = {
        name: value for name, value in counters.items() if value and not name.endswith(NOT_COMPARED)
    }
    worker.stop()


def offer(driver: Driver, asked: Ask | Odd) -> None:
    if isinstance(asked, Ask):
        places = sorted({min(cut, len(asked.message)) for cut in asked.cuts})
        ends = [*places, len(asked.message)]
        pieces = [asked.message[a:b] for a, b in zip([0, *places], ends, strict=True)]
        driver.add([piece for piece in pieces if piece] or [b""], asked.rooms)
        return
    for index, (address, length, flags, next_) in enumerate(asked.descriptors):
        driver.write_descriptor(FIRST_ODD + index, address, length, flags, next_)
    driver.adopt(FIRST_ODD)


def header(kind: int, sector: int) -> bytes:
    return struct.pack("<IIQ", kind, 0, sector)


kinds = st.sampled_from([*Request, *[Request.IN, Request.OUT] * 3, 2, 0xFFFF_FFFF])
sectors = st.one_of(
    st.integers(0, SECTORS + 1), st.sampled_from([(1 << 64) - 1, 1 << 55, (1 << 55) - 1])
)
amounts = st.sampled_from(
    [0, 1, 15, 16, 17, 511, 512, 513, 1024, 2048, 4096, 8192, SECTORS * SECTOR]
)
ranges = st.builds(
    lambda found, extra: b"".join(struct.pack("<QII", *one) for one in found) + bytes(extra),
    st.lists(st.tuples(sectors, st.integers(0, SECTORS), st.sampled_from([0, 1, 2])), max_size=3),
    st.sampled_from([0, 0, 0, 1]),
)
bodies = st.one_of(
    st.builds(lambda size, seed: bytes([seed]) * size, amounts, st.integers(0, 255)), ranges
)
messages = st.builds(
    lambda kind, sector, body, size: (header(kind, sector) + body)[: size or None],
    kinds,
    sectors,
    bodies,
    st.sampled_from([0] * 9 + [1, 15, 16]),
)
asks = st.builds(
    Ask,
    messages,
    st.lists(st.sampled_from([1, 8, 16, 17, 20, 527, 528, 1040]), max_size=3),
    st.lists(amounts.filter(bool), max_size=4),
)
odds = st.builds(
    Odd,
    st.lists(
        st.tuples(
            st.sampled_from([0, BASE // 2, 0x100, 0x20_0000 - 1, (1 << 64) - 1]),
            st.sampled_from([0, 1, 16, 512, BASE // 2, 0xFFFF_FFFF]),
            st.integers(0, 7),
            st.sampled_from([FIRST_ODD, FIRST_ODD + 1, FIRST_ODD + 2, SIZE, 0xFFFF]),
        ),
        min_size=1,
        max_size=3,
    ),
)
batches = st.lists(
    st.tuples(st.lists(asks, max_size=5), st.lists(odds, max_size=1))
    .map(lambda two: [*two[0], *two[1]])
    .filter(bool),
    max_size=3,
)


@given(batches, st.booleans(), st.booleans(), st.sampled_from([0, 0, 0, SIZE + 1]))
@example([[Ask(header(Request.IN, 3), [], [512, 1])]], False, True, 0)
@example([[Ask(header(Request.OUT, SECTORS) + b"x" * 512, [], [1])]], False, True, 0)
@example([[Ask(header(Request.IN, SECTORS), [], [512, 1])]], False, True, 0)
@example([[Ask(header(Request.OUT, 3) + b"x" * 1024, [16, 528], [1])]], False, False, 0)
@example([[Ask(header(Request.OUT, 3) + b"x" * 512, [], [1])]], True, True, 0)
@example(
    [[Ask(header(Request.IN, 31), [3], [511, 513, 1]), Odd([(0, 16, 1, FIRST_ODD)])]],
    False,
    True,
    65,
)
@settings(max_examples=150, deadline=None)
def test_both_do_the_same(
    asked: list[list[Ask | Odd]], readonly: bool, flush: bool, jump: int
) -> None:
    expected = play(PythonBlk, asked, readonly=readonly, flush=flush, jump=jump)

    assert play(Blk, asked, readonly=readonly, flush=flush, jump=jump) == expected


@given(batches, st.booleans(), st.booleans(), st.sampled_from([0, 0, 0, SIZE + 1]))
@settings(max_examples=25, deadline=None)
def test_so_does_one_whose_requests_the_kernel_carries_out(
    asked: list[list[Ask | Odd]], readonly: bool, flush: bool, jump: int
) -> None:
    # One at a time: of several, the order is nobody's.
    alone = [[one] for batch in asked for one in batch]
    expected = play(PythonBlk, alone, readonly=readonly, flush=flush, jump=jump)

    found = play(Blk, alone, readonly=readonly, flush=flush, jump=jump, engine="io_uring")

    assert found == expected


@given(batches, st.booleans(), st.sampled_from([0, 0, 0, SIZE + 1]))
@example(
    [
        [Ask(header(Request.OUT, 8) + b"x" * 8192, [16], [1])],
        [Ask(header(Request.IN, 8), [], [8192, 1]), Ask(header(Request.IN, 0), [], [8192, 1])],
    ],
    True,
    0,
)
@settings(max_examples=25, deadline=None)
def test_so_do_both_with_an_overlay(asked: list[list[Ask | Odd]], flush: bool, jump: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = [
            play(
                kind,
                asked,
                readonly=False,
                flush=flush,
                jump=jump,
                overlay=f"{folder}/{number}.cow",
            )
            for number, kind in enumerate((PythonBlk, Blk))
        ]

    assert found[0] == found[1]


@pytest.mark.parametrize("engine", ["sync", "io_uring"])
def test_reads_and_writes_are_carried_out_in_c(engine: Literal["sync", "io_uring"]) -> None:
    # Negative control: what Python alone does would be the same, too.
    class Nothing(Blk):
        lanes = Blk.lanes

        def requestq(self, chain: object) -> int:
            raise AssertionError("this is not for Python")

        requestq.virtqueue = Blk.requestq.virtqueue  # type: ignore[attr-defined]

    data = bytes(range(256)) * 4
    asked = [
        [Ask(header(Request.OUT, 5) + data, [16, 600], [1])],
        [Ask(header(Request.IN, 5), [], [100, 924, 1])],
    ]

    if engine == "io_uring":
        asked.append([Ask(header(Request.FLUSH, 0), [], [1])])

    left = play(Nothing, asked, readonly=False, flush=True, jump=0, engine=engine)

    assert left.used[1].data == data + bytes([Status.OK])
    assert left.counters["reads"] == left.counters["writes"] == 1
    assert left.counters.get("flushes", 0) == len(asked) - 2
    assert left.counters["requestq.chains"] == len(asked)


def test_many_at_a_time_come_back_each_to_its_own_buffer() -> None:
    # Many at a time, which come back in any order, each to its own buffer.
    data = [bytes([number]) * SECTOR for number in range(SECTORS)]
    writes = [Ask(header(Request.OUT, n) + data[n], [16], [1]) for n in range(SECTORS)]
    reads = [Ask(header(Request.IN, n), [], [SECTOR, 1]) for n in range(16)]

    left = play(
        Blk,
        [writes[:16], writes[16:], reads],
        readonly=False,
        flush=True,
        jump=0,
        engine="io_uring",
    )

    assert left.image == b"".join(data)
    assert {used.data for used in left.used[32:]} == {one + b"\0" for one in data[:16]}
    assert left.counters["writes"] == 32
