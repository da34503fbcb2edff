"""The table of lifecycle.py is the law."""

import pytest

from protocol.errors import ProtocolError
from protocol.lifecycle import Event, Lifecycle, State


def test_the_straight_way_leads_to_running_and_back() -> None:
    life = Lifecycle()

    steps = [life.advance(event) for event in (Event.HELLO, Event.SEALED, Event.START, Event.STOP)]

    assert steps == [State.GREETED, State.READY, State.RUNNING, State.READY]


def test_no_chain_before_the_seal() -> None:
    life = Lifecycle()
    life.advance(Event.HELLO)

    with pytest.raises(ProtocolError, match="start makes no sense while greeted"):
        life.advance(Event.START)


def test_a_broken_ring_needs_a_reset_and_nothing_else_helps() -> None:
    life = Lifecycle()
    for event in (Event.HELLO, Event.SEALED, Event.START, Event.BROKEN):
        life.advance(event)

    with pytest.raises(ProtocolError):
        life.advance(Event.START)
    assert life.advance(Event.STOP) is State.READY


def test_death_ends_every_state_and_nothing_follows_it() -> None:
    life = Lifecycle()
    life.advance(Event.GONE)

    with pytest.raises(ProtocolError):
        life.advance(Event.HELLO)
