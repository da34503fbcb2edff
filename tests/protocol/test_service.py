"""One server and many clients: who reads, who does not, who leaves, and who comes in hundreds."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from protocol import channel
from protocol.service import MOST_CLIENTS, Client, Sent, Service
from tests.support.leaks import none_left

DEADLINE = 20.0


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "control")


@pytest.fixture
def service(path: str) -> Iterator[Service]:
    with none_left():
        context = channel.new_context()
        made = Service(context, path)
        try:
            yield made
        finally:
            made.close()
            context.destroy(linger=0)


def until(condition: Callable[[], object]) -> None:
    """Wait for it, to the deadline."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def received(service: Service) -> tuple[bytes, bytes | None]:
    """The next message."""
    found: list[tuple[bytes, bytes | None] | None] = [None]

    def look() -> bool:
        found[0] = service.receive()
        return found[0] is not None

    until(look)
    assert found[0] is not None
    return found[0]


def test_request_and_reply(service: Service, path: str) -> None:
    client = Client(path)
    client.send(b"question")
    sender, frame = received(service)

    assert frame == b"question"
    assert service.send(sender, b"answer") is Sent.QUEUED
    assert client.receive(DEADLINE) == b"answer"
    client.close()


def test_message_of_several_frames_is_none_of_ours(service: Service, path: str) -> None:
    client = Client(path)
    client.send(b"one", b"two")
    client.send(b"three")

    assert [received(service)[1], received(service)[1]] == [None, b"three"]
    client.close()


def test_what_a_client_does_not_read_is_dropped_and_who_has_left_is_gone(
    service: Service, path: str
) -> None:
    client = Client(path)
    client.send(b"hello")
    sender, _ = received(service)

    # More than all buffers on the way hold together.
    sent = {service.send(sender, bytes(60_000)) for _ in range(3000)}
    client.close()

    assert Sent.DROPPED in sent
    until(lambda: service.receive() or service.send(sender, b"x") is Sent.GONE)


def test_frame_that_is_too_long_costs_its_sender_the_connection_and_nobody_else(
    service: Service, path: str
) -> None:
    big, other = Client(path), Client(path)
    big.send(bytes(65_537))
    other.send(b"hello")

    assert received(service)[1] == b"hello"
    assert service.receive() is None
    big.close()
    other.close()


def test_at_the_most_clients_the_door_is_shut_until_one_leaves(service: Service, path: str) -> None:
    crowd = []
    for _ in range(MOST_CLIENTS):
        crowd.append(socket.socket(socket.AF_UNIX))
        crowd[-1].connect(path)
    until(lambda: service.count() or not Path(path).exists())

    for one in crowd:
        one.close()
    until(lambda: service.count() or Path(path).exists())
    client = Client(path)
    client.send(b"at last")

    assert received(service)[1] == b"at last"
    client.close()


def test_path_where_there_can_be_no_socket_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    from protocol.errors import HostError

    with none_left():
        context = channel.new_context()
        with pytest.raises(HostError, match="nowhere"):
            Service(context, str(tmp_path / "nowhere" / "control"))
        context.destroy(linger=0)
