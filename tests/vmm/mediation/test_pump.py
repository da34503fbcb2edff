"""Mediators run by a thread of their own, between doorbells that a hostile device holds too."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from protocol import doorbell
from protocol.errors import VibeError
from protocol.ring import RingBroken, RingError
from tests.support.mediated import Mediated, mediated, shadow_ring
from vmm.mediation import MediatorBroken, MediatorError
from vmm.mediation.pump import DoorbellFilled, Pump

FULL = (1 << 64) - 2
"""What an eventfd holds at most (eventfd(2))."""

# Seconds for what happens at once on a machine that is not busy.
PATIENCE = 30.0


@dataclass
class Pumped:
    """``bells`` are the device's doorbells, ``faults`` what the pump told of."""

    them: Mediated
    pump: Pump
    bells: dict[str, int]
    faults: list[VibeError]
    told: threading.Semaphore

    def ask(self, text: bytes, room: int = 16) -> int:
        """A request of the guest's; its head."""
        head = self.them.driver.add([text], [room])
        self.them.driver.publish()
        doorbell.ring(self.pump.kicks[0])
        return head

    def answer(self) -> list[bytes]:
        """Let the device, once it was rung, answer all with their texts backwards."""
        wait_for(self.bells["kick0"])
        texts = []
        while chains := self.them.device.pop():
            for chain in chains:
                texts.append(chain.readable.read())
                chain.writable.write(texts[-1][::-1])
            self.them.device.push([(chain.head, chain.writable.written) for chain in chains])
        doorbell.ring(self.bells["call"])
        return texts

    def fault(self) -> VibeError:
        assert self.told.acquire(timeout=PATIENCE), "nobody told"
        return self.faults[-1]


def wait_for(fd: int) -> None:
    assert select.select([fd], [], [], PATIENCE)[0], "nobody rang"
    doorbell.drain(fd)


@contextmanager
def made_bells() -> Iterator[dict[str, int]]:
    bells = {name: doorbell.create() for name in ("kick0", "call")}
    try:
        yield bells
    finally:
        for fd in bells.values():
            os.close(fd)


@contextmanager
def pumped(size: int = 16) -> Iterator[Pumped]:
    faults: list[VibeError] = []
    told = threading.Semaphore(0)

    def hear(fault: VibeError) -> None:
        faults.append(fault)
        told.release()

    with mediated(size, arena=0x1_0000, event_idx=True) as them, made_bells() as bells:
        pump = Pump("device", 1, hear)
        pump.connect(bells)
        try:
            yield Pumped(them, pump, bells, faults, told)
        finally:
            pump.close()


@pytest.fixture
def running() -> Iterator[Pumped]:
    with pumped() as it:
        it.pump.serve({0: it.them.mediator})
        yield it


def test_a_request_goes_to_the_device_and_its_answer_interrupts_the_guest(running: Pumped) -> None:
    head = running.ask(b"request")
    assert running.answer() == [b"request"]
    wait_for(running.pump.line)
    assert [(used.head, used.data) for used in running.them.driver.collect()] == [
        (head, b"tseuqer")
    ]


def test_a_storm_of_calls_for_nothing_does_not_reach_the_guest(running: Pumped) -> None:
    for _ in range(1000):
        doorbell.ring(running.bells["call"])
        os.sched_yield()  # so that the pump takes some of them one by one
    running.ask(b"request")
    running.answer()
    assert select.select([running.pump.line], [], [], PATIENCE)[0], "nobody rang"

    assert doorbell.drain(running.pump.line) == 1


def test_thousands_of_them_are_neither_lost_nor_repeated(running: Pumped) -> None:
    total, stop, driver = 3000, threading.Event(), running.them.driver

    def device() -> None:
        while not stop.is_set():
            if select.select([running.bells["kick0"]], [], [], 0.1)[0]:
                running.answer()

    thread = threading.Thread(target=device)
    thread.start()
    expected: dict[int, bytes] = {}
    added = done = 0
    try:
        while done < total:
            while added < total and driver.pending < 5:
                text = b"%d" % added
                expected[driver.add([text], [16])] = text[::-1]
                added += 1
            if driver.publish():
                doorbell.ring(running.pump.kicks[0])
            if not driver.want_interrupts():
                wait_for(running.pump.line)
            for used in driver.collect():
                assert used.data == expected.pop(used.head)
                done += 1
    finally:
        stop.set()
        thread.join()
    assert not expected
    assert not running.faults


def test_what_there_was_before_is_looked_at_without_a_ring() -> None:
    with pumped() as it:
        it.them.driver.add([b"early"], [16])
        it.them.driver.publish()
        it.pump.serve({0: it.them.mediator})
        assert it.answer() == [b"early"]
        wait_for(it.pump.line)


def test_when_it_is_halted_nothing_moves_and_afterwards_everything_does(running: Pumped) -> None:
    running.ask(b"first")
    running.answer()
    wait_for(running.pump.line)
    running.pump.serve({})
    running.ask(b"second")
    assert running.them.mediator.in_flight == 0
    assert running.them.mediator.counters.chains == 1

    running.pump.serve({0: running.them.mediator})
    assert running.answer() == [b"second"]


def test_a_successor_is_led_to_the_guest_and_finds_the_ring_as_it_was(running: Pumped) -> None:
    them = running.them
    running.ask(b"unanswered")
    wait_for(running.bells["kick0"])
    shadow = them.device_memory.view(them.shadow.desc, 16 * 16)
    shadow[:] = b"\xa5" * len(shadow)  # the last that it did
    with made_bells() as fresh:
        running.pump.connect(fresh)
        doorbell.ring(running.bells["call"])  # says nothing any more
        with shadow_ring(them.device_memory, them.shadow) as successor:
            (chain,) = successor.pop()
            assert chain.readable.read() == b"unanswered"
            chain.writable.write(b"answered")
            successor.push([(chain.head, 8)])
            doorbell.ring(fresh["call"])
            wait_for(running.pump.line)
            assert [used.data for used in them.driver.collect()] == [b"answered"]
            running.pump.connect(running.bells)


def test_one_that_is_to_come_to_an_end_gets_nothing_new_until_somebody_is_connected(
    running: Pumped,
) -> None:
    running.ask(b"before")
    wait_for(running.bells["kick0"])
    running.pump.halt()
    running.ask(b"meanwhile")
    (chain,) = running.them.device.pop()
    running.them.device.push([(chain.head, 0)])
    assert not running.pump.is_running
    assert running.them.device.pop() == []

    running.pump.connect(running.bells)
    wait_for(running.pump.line)
    assert len(running.them.driver.collect()) == 1
    assert running.answer() == [b"meanwhile"]


# A hostile device.


def test_one_that_fills_its_doorbell_is_told_of(running: Pumped) -> None:
    os.eventfd_write(running.bells["kick0"], FULL)
    running.ask(b"x")
    assert isinstance(running.fault(), DoorbellFilled)
    assert "queue 0" in str(running.faults[0])


def test_one_whose_full_doorbell_blocks_holds_nobody_up_who_halts_the_pump(
    running: Pumped,
) -> None:
    bell = running.bells["kick0"]
    os.eventfd_write(bell, FULL)
    flags = fcntl.fcntl(bell, fcntl.F_GETFL)
    fcntl.fcntl(bell, fcntl.F_SETFL, flags & ~os.O_NONBLOCK)
    running.ask(b"x")
    until(lambda: waits_in_write(running.pump))

    running.pump.serve({})

    assert not running.faults
    assert running.pump.thread is not None
    assert running.pump.thread.is_alive()
    with made_bells() as fresh:
        running.pump.connect(fresh)
        running.pump.serve({0: running.them.mediator})
        running.them.driver.add([b"y"], [16])
        running.them.driver.publish()
        doorbell.ring(running.pump.kicks[0])
        wait_for(fresh["kick0"])
        running.pump.connect(running.bells)
        os.eventfd_read(bell)
        fcntl.fcntl(bell, fcntl.F_SETFL, flags)


def waits_in_write(pump: Pump) -> bool:
    assert pump.thread is not None
    with open(f"/proc/self/task/{pump.thread.native_id}/syscall") as call:
        number = call.read().split()[0]
    return number == "1" if os.uname().machine == "x86_64" else number == "64"


def until(condition: Callable[[], bool]) -> None:
    for _ in range(int(PATIENCE * 1000)):
        if condition():
            return
        threading.Event().wait(0.001)
    raise AssertionError("it did not happen")


def test_one_that_breaks_its_ring_is_told_of_and_nothing_goes_on(running: Pumped) -> None:
    them = running.them
    head = running.ask(b"x")
    wait_for(running.bells["kick0"])
    them.device_memory.write(them.shadow.used + 2, struct.pack("<H", 9))
    doorbell.ring(running.bells["call"])
    fault = running.fault()
    assert isinstance(fault, MediatorBroken)
    assert fault.reason == MediatorError.USED_JUMP
    until(lambda: not running.pump.is_running)
    assert them.driver.collect() == [], head


@pytest.mark.parametrize("fault", ["ring", "doorbell"])
def test_a_successor_of_one_that_broke_its_ring_is_not_blamed_and_serves_others(
    running: Pumped, fault: str
) -> None:
    them = running.them
    running.ask(b"x")
    wait_for(running.bells["kick0"])
    if fault == "ring":
        them.device_memory.write(them.shadow.used + 2, struct.pack("<H", 9))
        doorbell.ring(running.bells["call"])
    else:
        os.eventfd_write(running.bells["kick0"], FULL)
        running.ask(b"y")
    running.fault()
    with made_bells() as fresh, mediated(16, arena=0x1_0000, event_idx=True) as after_reset:
        running.pump.connect(fresh)
        doorbell.ring(fresh["call"])
        doorbell.ring(running.pump.kicks[0])
        assert not running.told.acquire(timeout=0.2)
        assert not running.pump.is_running

        running.pump.serve({0: after_reset.mediator})

        again = Pumped(after_reset, running.pump, fresh, running.faults, running.told)
        again.ask(b"z")
        assert again.answer() == [b"z"]
        wait_for(running.pump.line)
        assert len(running.faults) == 1
        running.pump.serve({})
        running.pump.connect(running.bells)


def test_a_guest_that_breaks_its_ring_is_told_of_once_and_has_its_answers(running: Pumped) -> None:
    running.ask(b"good")
    running.them.driver.offer(99)
    running.them.driver.publish()
    for _ in range(3):
        doorbell.ring(running.pump.kicks[0])
    fault = running.fault()
    assert isinstance(fault, RingBroken)
    assert fault.reason == RingError.HEAD_OUT_OF_RANGE
    running.answer()
    wait_for(running.pump.line)
    until(lambda: running.them.driver.used_idx == 1)
    assert len(running.faults) == 1


def test_who_is_told_may_halt_it_and_close_it() -> None:
    closed = threading.Semaphore(0)

    def close(_: VibeError) -> None:
        pump.serve({})
        pump.close()
        closed.release()

    with mediated(16, arena=0x1000) as them, made_bells() as bells:
        pump = Pump("device", 1, close)
        pump.connect(bells)
        them.driver.offer(99)
        them.driver.publish()
        pump.serve({0: them.mediator})
        assert closed.acquire(timeout=PATIENCE)
        pump.close()


def test_one_that_never_ran_closes_too() -> None:
    pump = Pump("device", 3, print)
    assert len(pump.kicks) == 3
    pump.close()
    pump.close()
