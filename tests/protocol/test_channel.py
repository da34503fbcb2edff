"""A channel is one peer, one generation, bounded."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from protocol.channel import Channel
from protocol.errors import Unheard
from protocol.messages import FROM_DEVICE, TO_DEVICE, Done, NeedsReset, Ping


@pytest.fixture
def context() -> Iterator["zmq.Context[zmq.Socket[bytes]]"]:
    with zmq.Context() as made:
        yield made


def test_a_request_and_its_answer(
    context: "zmq.Context[zmq.Socket[bytes]]", tmp_path: Path
) -> None:
    vmm = Channel(context, FROM_DEVICE)
    vmm.bind(f"{tmp_path}/c")
    device = Channel(context, TO_DEVICE)
    device.connect(f"{tmp_path}/c")

    device.send(NeedsReset("hello"))  # the side that connects speaks first
    assert vmm.wait(5) is not None
    vmm.send(Ping(), 5)
    request = device.wait(5)
    assert request is not None
    device.send(Done(), request.sequence)
    answer = vmm.wait(5)

    assert answer is not None
    assert (answer.message, answer.sequence) == (Done(), 5)
    vmm.close()
    device.close()


def test_who_listens_and_goes_is_an_end_and_not_connected_to_again(
    context: "zmq.Context[zmq.Socket[bytes]]", tmp_path: Path
) -> None:
    path = f"{tmp_path}/c"
    device = Channel(context, TO_DEVICE)
    with socket.socket(socket.AF_UNIX) as dying:
        dying.bind(path)
        dying.listen()
        device.connect(path)
        dying.settimeout(5)
        dying.accept()[0].close()  # it took the connection, and was no more

        assert device.wait(0.3) is None
        dying.settimeout(0)
        with pytest.raises(BlockingIOError):
            dying.accept()
    device.close()


def test_messages_of_another_generation_are_dropped(
    context: "zmq.Context[zmq.Socket[bytes]]", tmp_path: Path
) -> None:
    vmm = Channel(context, FROM_DEVICE, generation=2)
    vmm.bind(f"{tmp_path}/c")
    stale = Channel(context, TO_DEVICE, generation=1)
    stale.connect(f"{tmp_path}/c")

    stale.send(Done(), 5)

    assert vmm.wait(0.2) is None
    vmm.close()
    stale.close()


def test_a_peer_that_does_not_read_is_an_error_and_not_a_hang(
    context: "zmq.Context[zmq.Socket[bytes]]", tmp_path: Path
) -> None:
    vmm = Channel(context, FROM_DEVICE)
    vmm.bind(f"{tmp_path}/c")

    def flood() -> None:
        for _ in range(10_000):
            vmm.send(Ping())

    with pytest.raises(Unheard, match="does not read"):
        flood()
    vmm.close()
