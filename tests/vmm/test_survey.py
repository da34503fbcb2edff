"""Counters of all devices: who hangs holds up nobody, and says so in its row."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from protocol.errors import DeviceGone
from protocol.lifecycle import State
from protocol.messages import DeviceReport, DeviceStats
from tests.support.seats import FakeRemote, Place, place
from vmm.survey import Survey


class World:
    """A device that has been asked, or not, and how often an answer was heard of."""

    def __init__(self, here: Place) -> None:
        self.heard = 0
        self.remote = here.sit(FakeRemote())
        self._seats = [here.seat]

    def survey(self) -> Survey:
        return Survey(self._seats, self._hear)

    def _hear(self) -> None:
        self.heard += 1


@pytest.fixture
def world() -> Iterator[World]:
    with place() as here:
        yield World(here)


def test_answer_is_heard_of_and_is_in_the_report(world: World) -> None:
    survey = world.survey()
    assert (survey.is_done, world.heard) == (False, 0)

    world.remote.counted.set_result(DeviceStats({"chains": 7}))

    assert (survey.is_done, world.heard) == (True, 1)
    assert survey.reports() == (DeviceReport("rng0", "running", {"chains": 7}),)


def test_device_that_is_known_to_hang_is_not_asked(world: World) -> None:
    world.remote.is_silent = True

    survey = world.survey()

    assert "ask_counters" not in world.remote.calls
    assert survey.is_done
    assert survey.reports() == (DeviceReport("rng0", "no answer", {}),)


def test_device_that_is_found_to_hang_is_not_waited_for(world: World) -> None:
    survey = world.survey()
    assert not survey.is_done

    world.remote.is_silent = True

    assert survey.is_done
    assert survey.reports() == (DeviceReport("rng0", "no answer", {}),)
    assert world.remote.fenced == ""


def test_what_does_not_come_in_time_is_left_out_and_nobody_is_killed(world: World) -> None:
    survey = world.survey()

    survey.until = 0.0

    assert survey.is_done
    assert survey.reports() == (DeviceReport("rng0", "no answer", {}),)
    assert world.remote.fenced == ""


def test_device_that_dies_meanwhile_is_gone(world: World) -> None:
    survey = world.survey()

    world.remote.life.state = State.GONE
    world.remote.counted.set_exception(DeviceGone("rng0 is gone"))

    assert (survey.is_done, world.heard) == (True, 1)
    assert survey.reports() == (DeviceReport("rng0", "gone", {}),)


def test_empty_seat_has_a_row() -> None:
    with place() as here:
        survey = Survey([here.seat], lambda: None)

    assert survey.is_done
    assert survey.reports() == (DeviceReport("rng0", "gone", {}),)


def test_device_that_quits_after_it_has_told_was_what_it_was_when_it_was_asked(
    world: World,
) -> None:
    survey = world.survey()
    world.remote.counted.set_result(DeviceStats({"chains": 7}))

    world.remote.life.state = State.GONE

    assert survey.reports() == (DeviceReport("rng0", "running", {"chains": 7}),)
