"""Channels that come and go while the control thread runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest

from protocol.channel import Channel, new_context
from protocol.errors import DeviceGone, ProtocolError
from protocol.messages import FROM_DEVICE, TO_DEVICE, Done, Ping
from tests.support.leaks import descriptors
from vmm.control import Control

DEADLINE = 20.0


class Peer:
    def __init__(self) -> None:
        self.events: SimpleQueue[object] = SimpleQueue()

    def on_event(self, message: object) -> None:
        self.events.put(message)

    def on_request(self, message: object, sequence: int) -> None:
        raise ProtocolError("none")

    def on_violation(self, error: ProtocolError) -> None:
        self.events.put(error)


@pytest.fixture
def control() -> Iterator[Control]:
    made = Control()
    made.start()
    yield made
    made.end()


def talk(control: Control, path: Path) -> None:
    """One conversation: bound, used, and closed."""
    context = new_context()
    peer = Peer()
    bound = control.bind(str(path), FROM_DEVICE, 1, peer)
    other = Channel(context, TO_DEVICE, 1)
    other.connect(str(path))
    other.send(Done())  # a device speaks first
    peer.events.get(timeout=DEADLINE)
    reply = control.post(bound, Ping())
    asked = other.wait(DEADLINE)
    assert asked is not None
    other.send(Done(), asked.sequence)
    assert reply.result(DEADLINE) == Done()

    unanswered = control.post(bound, Ping())
    control.unbind(bound, "it is gone")
    with pytest.raises(DeviceGone, match="it is gone"):
        unanswered.result(DEADLINE)
    other.close()
    context.term()
    # Whoever comes too late is told so, once the channel is closed.
    late = control.post(bound, Ping())
    control.abandon(bound, "it is gone")
    with pytest.raises(DeviceGone):
        late.result(DEADLINE)
    control.send(bound, Ping())  # and this is dropped


def test_channels_are_made_and_closed_while_the_thread_runs(
    control: Control, tmp_path: Path
) -> None:
    talk(control, tmp_path / "0")
    before = len(descriptors())

    for number in range(1, 40):
        talk(control, tmp_path / str(number))

    # ZeroMQ closes in its own time: some of the last may be open still.
    assert len(descriptors()) - before < 15
    assert control.is_alive()
    assert len(list(tmp_path.iterdir())) < 5


def test_one_that_goes_leaves_the_others(control: Control, tmp_path: Path) -> None:
    context = new_context()
    peer = Peer()
    stays = control.bind(str(tmp_path / "stays"), FROM_DEVICE, 1, peer)
    other = Channel(context, TO_DEVICE, 1)
    other.connect(str(tmp_path / "stays"))
    other.send(Done())
    peer.events.get(timeout=DEADLINE)

    for number in range(5):
        control.unbind(control.bind(str(tmp_path / f"{number}"), FROM_DEVICE, 1, Peer()), "gone")
    reply = control.post(stays, Ping())
    asked = other.wait(DEADLINE)
    assert asked is not None
    other.send(Done(), asked.sequence)

    assert reply.result(DEADLINE) == Done()
    other.close()
    context.term()
