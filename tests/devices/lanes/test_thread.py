"""A queue with a thread of its own: what that does while nobody turns the loop, and what it leaves
to the loop. The disk has two queues, of which the second is such a one.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from devices.blk import SECTOR, Blk, Config, Request, Status
from devices.lanes.thread import ThreadedQueue
from devices.runtime.loop import Loop
from devices.runtime.worker import Worker
from protocol import doorbell, fds
from protocol.journal import Journal, create
from protocol.messages import QueueSetup
from protocol.virtio import Feature as RingFeature
from protocol.virtio import bit
from tests.support.driver import Driver
from tests.support.ring_pair import guest_memory

DEADLINE = 20.0
SIZE = 64
BASES = 0x8_0000, 0x10_0000
FIRST, THREADED = 0, 1


@dataclass
class Disk:
    """In this process; nothing turns its loop but :meth:`turn`."""

    worker: Worker
    loop: Loop
    drivers: list[Driver]
    bells: dict[str, int]
    image: int
    journal: Journal
    broken: list[str]

    def start(self, *, event_idx: bool = False) -> None:
        setups = [
            QueueSetup(index, SIZE, driver.desc, driver.avail, driver.used)
            for index, driver in enumerate(self.drivers)
        ]
        agreed = self.worker.features
        if not event_idx:
            agreed &= ~bit(RingFeature.EVENT_IDX)
        self.worker.start(agreed, setups)

    def turn(self) -> None:
        """As much as is there to do, without waiting."""
        done = doorbell.create()
        doorbell.ring(done)
        self.loop.add(done, self.loop.stop)
        self.loop._stopped = False
        self.loop.run()
        self.loop.remove(done)
        os.close(done)

    def turn_until(self, index: int) -> None:
        """Turn it until queue ``index`` has used all that its driver has added."""
        deadline = time.monotonic() + DEADLINE
        while self.drivers[index].used_idx != self.drivers[index].avail_idx:
            assert time.monotonic() < deadline
            self.turn()

    def ask(self, index: int, kind: int, sector: int = 0, body: bytes = b"", room: int = 0) -> None:
        message = struct.pack("<IIQ", kind, 0, sector) + body
        self.drivers[index].add([message], [room, 1] if room else [1])
        if self.drivers[index].publish():
            doorbell.ring(self.bells[f"kick{index}"])

    def is_called(self, seconds: float, bell: str = "call") -> bool:
        ready = select.select([self.bells[bell]], [], [], seconds)[0]
        return bool(ready) and doorbell.drain(self.bells[bell]) > 0

    def answers(self, index: int) -> list[bytes]:
        return [used.data for used in self.drivers[index].collect()]


@contextmanager
def disk_of_two(*, event_idx: bool = False) -> Iterator[Disk]:
    config = Config("", queues=2)
    sizes = tuple(queue.size for queue in Blk.virtqueues(config))
    image = os.memfd_create("image", os.MFD_CLOEXEC)
    os.pwrite(image, bytes(range(256)) * (64 * SECTOR // 256), 0)
    notes = create("test", sizes)
    bells = {name: doorbell.create() for name in ("kick0", "kick1", "call", "other")}
    loop = Loop()
    broken: list[str] = []
    with guest_memory() as memory, Journal(notes, sizes) as kept:
        worker = Worker(Blk, config, {"image": image, **bells}, memory, kept, loop, None)
        worker.broken = broken.append
        drivers = [
            Driver(memory, SIZE, base=base, length=0x8_0000, event_idx=event_idx) for base in BASES
        ]
        made = Disk(worker, loop, drivers, bells, image, kept, broken)
        yield made
        worker.stop()
        del worker, drivers, made.worker, made.drivers
        gc.collect()  # and with the worker its thread, and the memory
    loop.close()
    fds.close_all([image, notes, *bells.values()])


@pytest.fixture
def event_idx() -> bool:
    """Whether the driver negotiates it."""
    return False


@pytest.fixture
def disk(event_idx: bool) -> Iterator[Disk]:
    # What is logged is kept, with the exceptions in it, their frames, and the disk in those.
    logging.disable(logging.CRITICAL)
    with disk_of_two(event_idx=event_idx) as made:
        made.start(event_idx=event_idx)
        made.turn()
        yield made
    logging.disable(logging.NOTSET)


def test_its_requests_are_carried_out_while_nobody_turns_the_loop(disk: Disk) -> None:
    disk.ask(THREADED, Request.OUT, 3, b"x" * SECTOR)
    assert disk.is_called(DEADLINE)
    disk.ask(THREADED, Request.IN, 3, room=SECTOR)
    assert disk.is_called(DEADLINE)

    assert disk.answers(THREADED)[1] == b"x" * SECTOR + bytes([Status.OK])
    assert os.pread(disk.image, SECTOR, 3 * SECTOR) == b"x" * SECTOR
    assert isinstance(disk.worker.queues[THREADED], ThreadedQueue)


def test_the_first_queue_is_the_loops(disk: Disk) -> None:
    # What the other does by itself, this one does not.
    disk.ask(FIRST, Request.IN, 3, room=SECTOR)
    disk.ask(THREADED, Request.IN, 3, room=SECTOR)
    assert disk.is_called(DEADLINE)
    assert disk.drivers[FIRST].used_idx == 0

    disk.turn()

    assert disk.drivers[FIRST].used_idx == 1


def test_what_it_declines_the_loop_does_in_its_place_and_it_goes_on(disk: Disk) -> None:
    for _ in range(3):
        disk.ask(THREADED, Request.OUT, 5, b"a" * SECTOR)
        disk.ask(THREADED, Request.GET_ID, room=20)
        disk.ask(THREADED, Request.IN, 1 << 40, room=SECTOR)
        disk.ask(THREADED, Request.IN, 5, room=SECTOR)
        disk.turn_until(THREADED)

    statuses = [answer[-1] for answer in disk.answers(THREADED)]
    assert statuses == [Status.OK, Status.OK, Status.IOERR, Status.OK] * 3
    counters = disk.worker.counters()
    assert counters["requestq.chains"] == 12
    assert counters["reads"] == counters["writes"] == counters["refused"] == 3


def test_counters_are_those_of_every_thread(disk: Disk) -> None:
    for index in (FIRST, THREADED, THREADED):
        disk.ask(index, Request.OUT, 0, b"y" * SECTOR)
    disk.turn_until(FIRST)
    disk.turn_until(THREADED)

    for _ in range(2):  # nothing is counted twice
        counters = disk.worker.counters()
    assert counters["writes"] == 3
    assert counters["requestq.chains"] == 3
    assert counters["requestq.bytes_read"] == 3 * (16 + SECTOR)


def test_interrupts_go_to_another_doorbell_while_it_serves(disk: Disk) -> None:
    disk.worker.queue(THREADED).call = disk.bells["other"]
    disk.turn()

    disk.ask(THREADED, Request.IN, 0, room=SECTOR)

    assert disk.is_called(DEADLINE, "other")
    assert not disk.is_called(0)


def test_a_ring_that_its_driver_breaks_stops_all_queues(disk: Disk) -> None:
    driver = disk.drivers[THREADED]
    driver.write16(driver.avail + 2, SIZE + 1)
    doorbell.ring(disk.bells["kick1"])

    while not disk.broken:
        disk.turn()

    assert disk.broken == ["requestq2: virtqueue broken by its driver: AVAIL_JUMP"]
    assert not disk.worker.is_running


def test_stopped_it_does_nothing_and_started_again_it_goes_on(disk: Disk) -> None:
    disk.worker.stop()
    disk.ask(THREADED, Request.OUT, 7, b"z" * SECTOR)
    assert disk.drivers[THREADED].used_idx == 0

    disk.start()
    disk.turn()

    assert disk.is_called(DEADLINE)
    assert os.pread(disk.image, SECTOR, 7 * SECTOR) == b"z" * SECTOR


def test_a_queue_is_drained_of_what_it_had_popped(disk: Disk) -> None:
    # The first is declined, and stands before the others.
    for kind in (Request.FLUSH, Request.IN, Request.IN):
        disk.drivers[THREADED].add(
            [struct.pack("<IIQ", kind, 0, 0)], [1] if kind is Request.FLUSH else [SECTOR, 1]
        )
    disk.drivers[THREADED].publish()
    doorbell.ring(disk.bells["kick1"])
    poller = select.poll()
    poller.register(disk.worker.queues[THREADED].descriptors[0], select.POLLIN)
    assert poller.poll(DEADLINE * 1000)  # it has parked

    queue = disk.worker.queue(THREADED)

    assert queue.drain() == 3
    assert queue.in_flight == 0
    assert [answer[-1] for answer in disk.answers(THREADED)] == [Status.OK] * 3


def test_a_limited_disk_has_no_threads() -> None:
    image = os.memfd_create("image", os.MFD_CLOEXEC)
    loop = Loop()

    worker = Worker(Blk, Config("", queues=3, iops=5), {"image": image}, None, None, loop, None)

    assert not any(isinstance(queue, ThreadedQueue) for queue in worker.queues)
    (limit,) = {queue.limit for queue in worker.queues}
    assert limit is not None
    loop.close()
    os.close(image)


def test_queues_are_numbered_where_there_are_several() -> None:
    assert [queue.name for queue in Blk.virtqueues(Config("", queues=2))] == [
        "requestq1",
        "requestq2",
    ]
    assert [queue.name for queue in Blk.virtqueues(Config(""))] == ["requestq"]


# Notifications, of a lane on either thread.

both_ways = pytest.mark.parametrize("event_idx", [False, True])
both_threads = pytest.mark.parametrize("index", [FIRST, THREADED])


@both_ways
@both_threads
def test_a_batch_is_one_kick_one_publication_and_one_call(disk: Disk, index: int) -> None:
    driver = disk.drivers[index]
    for _ in range(16):
        driver.add([struct.pack("<IIQ", Request.IN, 0, 0)], [SECTOR, 1])
    assert driver.publish()
    assert driver.want_interrupts() is False
    doorbell.ring(disk.bells[f"kick{index}"])
    disk.turn_until(index)

    assert doorbell.drain(disk.bells["call"]) == 1
    counters = disk.worker.counters()
    found = {what: counters[f"requestq.{what}"] for what in ("chains", "batches", "interrupts")}
    assert found == {"chains": 16, "batches": 1, "interrupts": 1}


@both_ways
@both_threads
def test_who_wants_no_interrupt_gets_none(disk: Disk, index: int) -> None:
    driver = disk.drivers[index]
    driver.suppress_interrupts()

    disk.ask(index, Request.IN, room=SECTOR)
    disk.turn_until(index)
    disk.worker.stop()  # whatever it does when it has published is done

    assert doorbell.drain(disk.bells["call"]) == 0
    assert driver.used_idx == 1


@both_ways
@both_threads
def test_no_kick_is_wanted_before_a_lane_sleeps_and_one_is_then(disk: Disk, index: int) -> None:
    # It asks for one, again and again, whenever it has found nothing: none is lost.
    driver = disk.drivers[index]
    for number in range(1, 4):
        driver.add([struct.pack("<IIQ", Request.IN, 0, 0)], [SECTOR, 1])
        while not (wanted := driver.publish()) and driver.used_idx != number:
            disk.turn()  # it was still looking out, and finds it by itself
        if wanted:
            doorbell.ring(disk.bells[f"kick{index}"])
        disk.turn_until(index)

    assert len(disk.answers(index)) == 3


@contextmanager
def idle_lane() -> Iterator[Any]:
    """A lane that was started, and whose driver asks for nothing."""
    with disk_of_two() as disk:
        driver = disk.drivers[FIRST]
        setup = QueueSetup(FIRST, SIZE, driver.desc, driver.avail, driver.used)
        disk.worker.start(disk.worker.features & ~bit(RingFeature.EVENT_IDX), [setup])
        disk.turn()
        yield disk.worker.queues[FIRST].lane  # type: ignore[attr-defined]


def test_looking_out_in_vain_is_done_more_and_more_seldom() -> None:
    with idle_lane() as lane:
        outlook, seen = lane.native.outlook, []
        outlook.doubt = outlook.skip = 0
        while outlook.doubt < 1023:
            lane.serve()
            seen.append((outlook.doubt, outlook.skip))
        del lane, outlook

    # One that was interrupted gives up for longest at once.
    doubts = [1, 3, 7, 15, 31, 63, 127, 255, 511, 1023]
    expected = [(doubt, skip) for doubt in doubts for skip in range(doubt, -1, -1)]
    assert seen[:-1] == expected[: len(seen) - 1]
    assert seen[-1] == (1023, 1023)


def test_who_wants_the_cpu_meanwhile_is_given_way_for_longest() -> None:
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        with idle_lane() as lane:
            outlook = lane.native.outlook
            # Each look may be the one in which the kernel gives the CPU to the other.
            for _ in range(20_000):
                outlook.doubt = outlook.skip = 0
                lane.serve()
                if outlook.doubt > 1:
                    break
            found = outlook.doubt, outlook.skip
            del lane, outlook
    finally:
        other.kill()
        other.wait()
        os.sched_setaffinity(0, cpus)

    assert found == (1023, 1023)
