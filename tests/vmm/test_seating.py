"""Who sits where, with real channels; the processes only sleep, and speak through the test."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol import codec, doorbell, journal
from protocol.channel import Channel, new_context
from protocol.errors import HostError
from protocol.messages import (
    PROTOCOL_VERSION,
    STATE_VERSION,
    TO_DEVICE,
    DeviceAttached,
    DeviceFailed,
    DeviceOffers,
    Done,
    Failed,
    Hello,
    Sealed,
    Start,
    Switch,
    Unfit,
    Welcome,
)
from protocol.specs import BootSpec, DeviceSlot, MachineSpec, Successor
from tests.support.leaks import descriptors
from tests.support.seats import FakeWires, at_work, stand_in, waits_for
from vmm.control import Control
from vmm.seating import Seating

DEADLINE = 20.0
HELLO = Hello(PROTOCOL_VERSION, STATE_VERSION, "rng", 4, 7, (64,), b"")


class Process:
    """One that sleeps; the test speaks for it, at ``endpoint``."""

    def __init__(self, context: Any, endpoint: str, generation: int) -> None:
        self.process, self.ended = stand_in()
        self.pidfd = os.pidfd_open(self.process.pid)
        self.endpoint = endpoint
        self.channel = Channel(context, TO_DEVICE, generation)

    def connect(self) -> None:
        self.channel.connect(self.endpoint)

    def get_ready(self) -> None:
        self.channel.send(HELLO)
        self.expect(Welcome)
        self.channel.send(Sealed(60, ("memory",), ("pid",)))

    def expect(self, kind: type) -> codec.Envelope:
        envelope = self.channel.wait(DEADLINE)
        assert envelope is not None
        assert isinstance(envelope.message, kind)
        return envelope

    def answer(self, kind: type, reply: object) -> None:
        self.channel.send(reply, self.expect(kind).sequence)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()  # which closes its input

    def close(self) -> None:
        self.kill()
        self.channel.close()
        for fd in (self.pidfd, self.ended):
            os.close(fd)


class House:
    """Seating of a machine with one device, its main loop, and who has come so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.context = new_context()
        self.processes: list[Process] = []
        self.told: list[object] = []
        self.handlers: dict[int, Callable[[], None]] = {}
        self.wake = doorbell.create()
        self.control = Control()
        self.wires = FakeWires()
        first = self.process(1)
        slot = DeviceSlot("rng0", "rng", 4, 3, 11, (64,), (0,), 1, first.endpoint)
        boot = BootSpec(True, "", 0, None)
        where = str(folder / "vmm")
        spec = MachineSpec("m", "kvm", 1 << 20, 1, boot, (slot,), where, "reset", 400, False, 0)
        self.descriptors = {
            "rng0.pidfd": first.pidfd,
            "rng0.ended": first.ended,
            "rng0.journal": journal.create("j", (64,)),
            "rng0.call": doorbell.create(),
            "rng0.kick0": doorbell.create(),
        }
        self.seating = Seating(spec, self.descriptors, self.control, self.told.append)
        self.seating.on_change = lambda: doorbell.ring(self.wake)
        self.seating.watch = self.handlers.__setitem__
        self.seating.forget = lambda fd: self.handlers.pop(fd, None)
        self.seating.begin()
        self.control.start()
        first.connect()

    def process(self, generation: int) -> Process:
        made = Process(self.context, str(self.folder / f"rng0.{generation}"), generation)
        self.processes.append(made)
        return made

    def begin(self) -> Process:
        """The first is ready, and sits."""
        (first,) = self.processes
        first.get_ready()
        self.turn_until(lambda: self.seating.is_ready)
        (self.seat,) = self.seating.take()
        self.seat.connect(self.wires)
        return first

    def successor(self, *, waits: bool = False) -> Process:
        """The VMM is told of another, which connects."""
        number = len(self.processes) + 1
        made = self.process(number)
        handed = {
            "pidfd": os.dup(made.pidfd),
            "ended": os.dup(made.ended),
            "call": doorbell.create(),
            "kick0": doorbell.create(),
        }
        self.seating.expect(Successor("rng0", "rng", number, made.endpoint, waits), handed)
        made.connect()
        return made

    def turn(self) -> None:
        """One round of the main loop."""
        ready = select.select([self.wake, *self.handlers], [], [], DEADLINE)[0]
        assert ready
        for fd in ready:
            if fd in self.handlers:
                self.handlers[fd]()
        doorbell.drain(self.wake)
        self.seating.consider()

    def turn_until(self, condition: Callable[[], object]) -> None:
        while not condition():
            ready = select.select([self.wake, *self.handlers], [], [], DEADLINE)[0]
            assert ready, self.told
            for fd in ready:
                if fd in self.handlers:
                    self.handlers[fd]()
            doorbell.drain(self.wake)
            if hasattr(self, "seat"):
                self.seating.consider()

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.told if isinstance(event, kind)]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        self.control.end()
        for process in self.processes:
            process.close()
        self.context.term()
        os.close(self.wake)
        for name, fd in self.descriptors.items():
            if name not in ("rng0.pidfd", "rng0.ended"):
                os.close(fd)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.close()


def test_first_tells_what_it_offers(house: House) -> None:
    house.begin()

    assert house.told == [DeviceOffers("rng0", 1, 7, (64,), b"", 60, ("pid",))]


def test_first_that_dies_between_its_seal_and_the_start_ends_the_start(house: House) -> None:
    (first,) = house.processes
    first.get_ready()
    house.turn_until(lambda: house.seating.is_ready)
    first.kill()
    house.handlers[first.pidfd]()

    with pytest.raises(HostError, match="rng0 ended before the machine ran"):
        list(house.seating.take())


def test_successor_takes_the_place_of_the_dead(house: House) -> None:
    house.begin().kill()
    house.turn()
    assert house.seat.remote is None
    successor = house.successor()
    begun = time.monotonic_ns()

    successor.get_ready()
    house.turn_until(lambda: house.of(DeviceAttached))

    assert [type(event) for event in house.told[1:]] == [DeviceOffers, DeviceAttached]
    assert house.told[1].generation == house.told[2].generation == 2
    assert begun <= house.told[2].asked <= house.told[2].served <= time.monotonic_ns()
    assert house.wires.connected[-1] == house.seat.bells


def test_successor_is_ready_before_the_death_is_seen(house: House) -> None:
    first = house.begin()
    successor = house.successor()
    successor.get_ready()
    house.turn_until(lambda: len(house.of(DeviceOffers)) == 2)
    assert house.of(DeviceAttached) == []

    first.kill()
    house.turn_until(lambda: house.of(DeviceAttached))


@pytest.mark.parametrize("who", ["the first", "another"])
def test_successor_waits_for_what_the_kernel_does_for_the_dead(house: House, who: str) -> None:
    last = house.begin()
    if who == "another":
        last.kill()
        house.turn()
        last = house.successor()
        last.get_ready()
        house.turn_until(lambda: house.of(DeviceAttached))
    seated = len(house.of(DeviceAttached))
    successor = house.successor()
    successor.get_ready()
    work = at_work(last.ended)
    last.kill()
    watched = set(house.handlers)
    house.turn_until(lambda: set(house.handlers) != watched)
    seen = time.monotonic()
    house.turn_until(lambda: len(house.of(DeviceOffers)) == len(house.processes))
    house.seating.consider()
    assert house.seat.remote is not None
    assert len(house.of(DeviceAttached)) == seated

    waited = time.monotonic() - seen
    os.close(work)
    house.turn_until(lambda: len(house.of(DeviceAttached)) > seated)
    assert house.of(DeviceAttached)[-1].microseconds >= waited * 1e6
    assert len(house.handlers) == 1  # who serves


def test_a_machine_that_ends_has_one_deadline_for_what_goes_on_for_all(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmm.seating.DEADLINE", 0.1)
    monkeypatch.setattr("vmm.remote._FENCE_DEADLINE", 2 * DEADLINE)
    first = house.begin()

    assert not waits_for(at_work(first.ended), house.seating.quit, DEADLINE)


def test_successor_for_a_swap_waits_even_where_the_place_is_empty(house: House) -> None:
    first = house.begin()
    successor = house.successor(waits=True)
    successor.get_ready()
    house.turn_until(lambda: len(house.of(DeviceOffers)) == 2)
    first.kill()
    house.turn_until(lambda: house.seat.remote is None)
    house.seating.consider()
    assert house.of(DeviceAttached) == []

    assert house.seating.switch(Switch("rng0", 2)) == Done()

    assert len(house.of(DeviceAttached)) == 1


def test_candidate_that_dies_between_its_offer_and_the_switch(house: House) -> None:
    first = house.begin()
    successor = house.successor(waits=True)
    successor.get_ready()
    house.turn_until(lambda: len(house.of(DeviceOffers)) == 2)
    successor.kill()
    house.turn_until(lambda: successor.pidfd and not house.seating._candidates)

    answer = house.seating.switch(Switch("rng0", 2))

    assert isinstance(answer, Failed)
    assert first.process.poll() is None
    assert house.seat.remote is not None


def test_candidate_that_is_dead_and_not_seen_to_be_leaves_the_old_one(house: House) -> None:
    from protocol.messages import QueueSetup

    first = house.begin()
    asked = threading.Thread(target=first.answer, args=(Start, Done()))
    asked.start()
    assert house.seat.start(7, (QueueSetup(0, 64, 0, 0, 0),)) is None
    asked.join()
    successor = house.successor(waits=True)
    successor.get_ready()
    house.turn_until(lambda: len(house.of(DeviceOffers)) == 2)
    successor.kill()

    answer = house.seating.switch(Switch("rng0", 2))

    assert answer == Failed("rng0 has no successor 2 that is ready")
    assert first.process.poll() is None
    assert house.seat.remote is not None
    assert house.seat.remote.slot.generation == 1


def test_successor_that_dies_before_hello_is_forgotten(house: House) -> None:
    house.begin().kill()
    house.turn()
    successor = house.successor()

    successor.kill()
    house.turn_until(lambda: not house.seating._candidates)

    assert house.of(DeviceFailed) == []  # the launcher knows: it is its child


def test_every_process_has_as_long_for_an_answer_as_it_may_hang(house: House) -> None:
    house.begin()
    house.successor()

    (candidate,) = house.seating._candidates
    assert house.seat.remote is not None
    assert house.seat.remote.patience == candidate.patience == 0.4


def test_one_that_we_have_killed_is_told_of(house: House) -> None:
    house.begin()
    assert house.seat.remote is not None

    house.seat.remote.fence("it does not answer", hung=True)
    house.turn_until(lambda: house.of(DeviceFailed))

    assert house.of(DeviceFailed) == [DeviceFailed("rng0", 1, "it does not answer", True)]
    assert house.processes[0].process.wait(DEADLINE) == -signal.SIGKILL


def test_two_dozen_deaths_keep_what_two_of_them_had(house: House) -> None:
    house.begin().kill()
    house.turn()
    open_before = len(descriptors())
    held = []
    for number in range(1, 25):
        successor = house.successor()
        if number % 3:
            successor.get_ready()
            house.turn_until(lambda: house.seat.remote is not None)
        successor.kill()
        house.turn_until(lambda: not house.handlers)
        # The test's own: two of each process, and what a channel has.
        successor.channel.close()
        held.append(len(descriptors()) - open_before - 2 * number)

    # ZeroMQ closes in its own time; a set of doorbells kept from each death would be 48.
    assert max(held) < 12, held


def test_one_that_does_not_fit_is_told_of_and_lives(house: House) -> None:
    # It has seen nothing of the guest. Who started it by hand is told why by the launcher.
    first = house.begin()
    house.seat._features, house.seat._queues = 7 | 1 << 20, ()
    second = house.successor(waits=True)
    second.get_ready()
    house.turn_until(lambda: len(house.of(DeviceOffers)) == 2)

    reply = house.seating.switch(Switch("rng0", 2))

    assert reply == Unfit("it lacks negotiated features: 0x100000")
    assert second.process.poll() is None
    assert first.process.poll() is None
