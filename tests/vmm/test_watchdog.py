"""Which of two signs of a hang is seen when; and what is none."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from protocol.lifecycle import State
from protocol.memory import GuestMemory
from protocol.messages import Done, QueueSetup
from tests.support.ring_pair import LOW, guest_memory
from tests.support.seats import FakeRemote, Place, place
from vmm.watchdog import LOOKS, Watchdog

# As wide as SLOT's; the second owes nothing.
QUEUES = (QueueSetup(0, 64, 0x1000, 0x2000, 0x3000), QueueSetup(1, 16, 0x4000, 0x5000, 0x6000))


class Watched(FakeRemote):
    """Answers a Ping, unless it is ``deaf``."""

    deaf = False
    last: Future[Any]

    def ask(self, request: object) -> Future[Any]:
        reply = self.last = super().ask(request)
        if not self.deaf:
            reply.set_result(Done())
        return reply


class World:
    def __init__(self, here: Place, memory: GuestMemory) -> None:
        self.here, self.memory = here, memory
        self.remote = Watched()
        here.sit(self.remote, running=False)
        assert here.seat.start(7, QUEUES) is None
        self.dog = Watchdog([(here.seat, memory)])

    def set(self, ring: int, index: int) -> None:
        self.memory.write(ring + 2, index.to_bytes(2, "little"))

    def look(self, times: int = 1) -> str:
        for _ in range(times):
            self.dog.look()
        return self.remote.fenced


@pytest.fixture
def world() -> Iterator[World]:
    with place() as here, guest_memory() as memory:
        assert LOW.size > 0x8000
        yield World(here, memory)


def test_device_that_owes_an_answer_is_known_to(world: World) -> None:
    world.look(2)
    assert not world.remote.is_silent
    world.remote.deaf = True
    world.look()
    assert not world.remote.is_silent  # it has just been asked

    world.look()
    assert world.remote.is_silent

    owed, world.remote.deaf = world.remote.last, False
    owed.set_result(Done())
    assert world.look() == ""
    assert not world.remote.is_silent


def test_idle_device_may_be_idle_for_ever(world: World) -> None:
    assert world.look(10 * LOOKS) == ""


def test_work_without_progress_is_a_hang(world: World) -> None:
    world.look()
    world.set(0x2000, 3)
    world.look()  # the first that sees the work counts as well: used has not moved

    assert world.look(LOOKS - 2) == ""
    assert world.look() == "queue 0 has work, and makes no progress"


def test_a_little_progress_is_enough(world: World) -> None:
    world.set(0x2000, 1000)
    for used in range(20):
        world.set(0x3000, used)
        assert world.look(LOOKS - 1) == ""


def test_indices_that_wrap_around_are_no_work(world: World) -> None:
    world.set(0x2000, 65535)
    world.set(0x3000, 65535)
    assert world.look(2 * LOOKS) == ""


def test_queue_for_input_may_hold_chains(world: World) -> None:
    world.set(0x5000, 5)
    assert world.look(10 * LOOKS) == ""


def test_no_answer_is_a_hang(world: World) -> None:
    world.remote.deaf = True
    assert world.look(LOOKS) == ""
    assert world.look() == "it does not answer"


def test_successor_has_patience_of_its_own(world: World) -> None:
    world.remote.deaf = True
    world.look(LOOKS)
    world.here.seat.lost(world.remote)  # type: ignore[arg-type]
    world.look(LOOKS)
    successor = Watched()
    assert world.here.seat.attach(successor) is None  # type: ignore[arg-type]

    world.look(2 * LOOKS)

    assert (world.remote.fenced, successor.fenced) == ("", "")


def test_rings_that_nobody_has_looked_at_yet_are_not_looked_at(world: World) -> None:
    """A driver's addresses are anything until the device has said Done to Start."""
    world.here.seat.stop()
    world.remote.life.state = State.READY
    nowhere = (QueueSetup(0, 64, 1 << 60, 1 << 60, 1 << 60),)
    assert world.here.seat.start(7, nowhere) is None

    assert world.look(2 * LOOKS) == ""


def test_one_that_is_dead_does_not_hang(world: World) -> None:
    world.remote.deaf = True
    world.look()
    world.remote.died_at = 1.0

    assert world.look(10 * LOOKS) == ""


def test_one_that_was_started_by_hand_may_sit_at_a_breakpoint(world: World) -> None:
    world.remote.by_hand = world.remote.deaf = True
    world.look()
    world.set(0x2000, 3)

    assert world.look(10 * LOOKS) == ""
