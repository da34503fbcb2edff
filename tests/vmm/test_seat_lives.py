"""The place of a device, across the lives of its machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import cast

import pytest

from protocol import journal
from protocol.errors import DeviceGone
from protocol.journal import Journal
from protocol.messages import QueueSetup
from protocol.specs import DeviceSlot
from vmm.remote import RemoteDevice
from vmm.seat import Seat

SLOT = DeviceSlot("rng0", "rng", 4, 3, 10, (64,), (0,), 1, "")
QUEUES = (QueueSetup(0, 8, 0x1000, 0x2000, 0x3000),)
BELLS = {"kick0": 1, "call": 2}


class FakeRemote:
    """A process that starts and stops as it is told, or is gone."""

    name, features, queue_sizes, config, died_at = "rng0", 0, (64,), b"", None

    def __init__(self, bells: Mapping[str, int] = BELLS, *, gone: bool = False) -> None:
        self.bells = bells
        self.gone = gone
        self.calls: list[str] = []

    def start(self, features: int, queues: tuple[QueueSetup, ...], state: bytes) -> str | None:
        self._called("start")
        return None

    def stop(self) -> None:
        self._called("stop")

    def has_ended(self) -> bool:
        return True

    def _called(self, what: str) -> None:
        self.calls.append(what)
        if self.gone:
            raise DeviceGone("rng0 is gone")


class FakeWires:
    def __init__(self) -> None:
        self.led: list[Mapping[str, int]] = []

    def connect(self, bells: Mapping[str, int]) -> None:
        self.led.append(bells)

    def halt(self) -> None:
        pass


@pytest.fixture
def seat() -> Iterator[Seat]:
    fd = journal.create("test", SLOT.queues)
    with Journal(fd, SLOT.queues) as mapped:
        yield Seat(SLOT, mapped)
    os.close(fd)


def sit(seat: Seat, remote: FakeRemote) -> FakeRemote:
    assert seat.attach(cast(RemoteDevice, remote)) is None
    return remote


def test_the_wires_of_each_life_lead_the_doorbells_of_who_sits_there(seat: Seat) -> None:
    sit(seat, FakeRemote())
    first, second = FakeWires(), FakeWires()

    seat.connect(first)
    seat.connect(second)
    sit(seat, FakeRemote(later := {"kick0": 3, "call": 4}))

    assert (first.led, second.led) == ([BELLS], [BELLS, later])


def test_a_life_that_begins_while_nobody_sits_there_has_wires_all_the_same(seat: Seat) -> None:
    remote = sit(seat, FakeRemote())
    seat.connect(FakeWires())
    assert seat.lost(cast(RemoteDevice, remote))

    seat.connect(wires := FakeWires())

    assert wires.led == [BELLS]


def test_a_successor_begins_with_what_the_driver_wants_in_this_life(seat: Seat) -> None:
    remote = sit(seat, FakeRemote())
    assert seat.start(0, QUEUES) is None
    assert seat.lost(cast(RemoteDevice, remote))

    seat.stop()  # the machine is reset
    successor = sit(seat, FakeRemote())
    assert successor.calls == []

    assert seat.start(0, QUEUES) is None
    assert successor.calls == ["start"]


def test_a_device_that_is_gone_holds_up_no_reset_and_leaves_a_fresh_journal(seat: Seat) -> None:
    remote = sit(seat, FakeRemote())
    assert seat.start(0, QUEUES) is None
    seat._journal.queue(0).region[:] = b"\xaa" * len(seat._journal.queue(0).region)
    remote.gone = True

    seat.stop()

    assert seat.running == ()
    assert not any(seat._journal.queue(0).region)


def test_one_that_goes_while_it_is_to_start_has_just_left(seat: Seat) -> None:
    sit(seat, FakeRemote(gone=True))
    assert not seat.empty_since

    assert seat.start(0, QUEUES) is None

    assert seat.remote is None
    assert seat.empty_since
