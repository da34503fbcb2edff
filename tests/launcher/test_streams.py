"""Where streams lead: a pty and the clients of a socket, with the device played by the test."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from launcher.host import Host, Streams
from launcher.locks import Locks
from launcher.loop import Loop
from launcher.streams import Bridge, LogEnd
from protocol import stream
from protocol.errors import BadInput
from protocol.fds import close_all
from protocol.stream import CAPACITY

DEADLINE = 20.0


class Device:
    """The device's half of a stream, and the launcher's loop, which turns while one waits."""

    def __init__(self, fds: dict[str, int], loop: Loop) -> None:
        self.fds = fds
        self.loop = loop
        self.wake = fds["wake"]
        self._mapped = stream.Stream(fds["stream"])
        self.output = stream.Producer(self._mapped.output)
        self.input = stream.Consumer(self._mapped.input)

    def until(self, condition: Callable[[], object]) -> None:
        """Turn the launcher's loop until then."""
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline
            self.loop.after(0.001, self.loop.end)
            self.loop.run()

    def print(self, data: bytes) -> None:
        """Have the launcher take all of ``data``."""
        start = self.output.head
        done = 0

        def all_is_out() -> bool:
            nonlocal done
            done = self.output.write(start, [data])
            stream.wake(self.wake)
            return done == len(data) and self.output.room == CAPACITY

        self.until(all_is_out)

    def waiting(self) -> bytes:
        """Input that is there."""
        return b"".join(self.input.peek())

    def read(self, size: int) -> bytes:
        """Wait for ``size`` bytes of input, and take them."""
        self.until(lambda: len(self.waiting()) >= size)
        data = self.waiting()[:size]
        self.input.consume(self.input.tail + size)
        stream.wake(self.wake)
        return data

    def close(self) -> None:
        self._mapped.close()
        close_all(self.fds.values())


@pytest.fixture
def open_stream(_no_leaks: None) -> Iterator[Callable[..., tuple[Device, Bridge]]]:
    """Make a stream as a device's ``open`` does: the device's half, and what moves its bytes."""
    with ExitStack() as stack:

        def make(backend: str, path: str = "") -> tuple[Device, Bridge]:
            streams, loop = Streams(), Loop()
            stack.callback(streams.close)
            device = Device(Host("console0", streams, Locks()).stream(backend, path), loop)
            stack.callback(device.close)
            (bridge,) = streams.bridges
            bridge.connect(loop)
            bridge.announced = streams.announcements  # type: ignore[attr-defined]
            return device, bridge

        yield make


def read(fd: int, device: Device, size: int) -> bytes:
    """Exactly ``size`` bytes of what came out of the launcher at ``fd``."""
    data = b""

    def has_come() -> bool:
        nonlocal data
        if select.select([fd], [], [], 0)[0]:
            data += os.read(fd, size - len(data))
        return len(data) == size

    device.until(has_come)
    return data


# A pty.


@pytest.fixture
def pty(open_stream: Callable[..., tuple[Device, Bridge]]) -> tuple[Device, Bridge, str]:
    """A stream to a pty, and the name of what the user opens."""
    device, bridge = open_stream("pty")
    (announced,) = bridge.announced  # type: ignore[attr-defined]
    name, word, path = announced.split()
    assert (name, word) == ("console0:", "pty")
    return device, bridge, path


def open_terminal(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)


def test_a_pty_carries_bytes_both_ways_as_they_are(pty: tuple[Device, Bridge, str]) -> None:
    device, _, path = pty
    user = open_terminal(path)
    try:
        device.print(b"login:\n")
        assert read(user, device, 7) == b"login:\n"
        os.write(user, b"root\r\x03")
        assert device.read(6) == b"root\r\x03"
        # Nothing of it was echoed to the guest or to the user.
        assert device.waiting() == b""
        assert not select.select([user], [], [], 0)[0]
    finally:
        os.close(user)


def test_a_pty_that_nobody_has_open_drops_output_and_takes_the_next_user(
    pty: tuple[Device, Bridge, str],
) -> None:
    device, bridge, path = pty
    device.print(b"unseen")
    assert bridge.counters["dropped_bytes"] == 6

    for name in (b"first", b"second"):
        user = open_terminal(path)
        os.write(user, name)
        assert device.read(len(name)) == name
        device.print(b"hello " + name)
        assert read(user, device, 6 + len(name)) == b"hello " + name
        os.close(user)
        device.print(b"unseen")
    assert bridge.counters["dropped_bytes"] == 18


def test_a_pty_that_nobody_has_open_costs_no_time(pty: tuple[Device, Bridge, str]) -> None:
    device, bridge, path = pty
    os.close(open_terminal(path))
    turns = 0

    def pump() -> None:
        nonlocal turns
        turns += 1
        bridge._pump()

    device.loop.on_readable(bridge._epoll.fileno(), pump)
    device.loop.after(0.05, device.loop.end)
    device.loop.run()

    # Hung up, it must sleep in its loop, and not spin on the end of the file.
    assert turns <= 2


def test_a_pty_whose_reader_is_slow_loses_nothing(pty: tuple[Device, Bridge, str]) -> None:
    device, _, path = pty
    user = open_terminal(path)
    data = os.urandom(3 * CAPACITY)
    written = 0
    received = b""

    def all_is_read() -> bool:
        nonlocal written, received
        written = device.output.write(0, [data])
        stream.wake(device.wake)
        if select.select([user], [], [], 0)[0]:
            received += os.read(user, 1000)
        return len(received) == len(data)

    device.until(all_is_read)
    assert received == data
    os.close(user)


# A Unix socket.


@pytest.fixture
def listening(
    open_stream: Callable[..., tuple[Device, Bridge]], tmp_path: Path
) -> Iterator[tuple[Device, Bridge, Callable[[], socket.socket]]]:
    """A stream to a socket, and a way to connect to it."""
    path = str(tmp_path / "console.sock")
    device, bridge = open_stream("socket", path)
    clients = []

    def connect() -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        clients.append(client)
        client.settimeout(DEADLINE)
        client.connect(path)
        return client

    yield device, bridge, connect
    for client in clients:
        client.close()


Listening = tuple[Device, Bridge, Callable[[], socket.socket]]


def test_a_socket_serves_its_client_both_ways(listening: Listening) -> None:
    device, bridge, connect = listening
    device.print(b"nobody is here")
    assert bridge.counters["dropped_bytes"] == 14
    client = connect()
    client.send(b"hi")
    assert device.read(2) == b"hi"

    device.print(b"hello")

    assert client.recv(16) == b"hello"


def test_the_next_client_waits_until_the_first_has_left(listening: Listening) -> None:
    device, bridge, connect = listening
    first = connect()
    first.send(b"first")
    assert device.read(5) == b"first"
    second = connect()
    second.send(b"second")
    device.print(b"to the first")
    assert first.recv(64) == b"to the first"
    assert device.waiting() == b""

    first.close()

    assert device.read(6) == b"second"
    device.print(b"to the second")
    assert second.recv(64) == b"to the second"
    assert bridge.counters["clients"] == 2


def test_a_client_that_resets_its_connection_ends_only_that(listening: Listening) -> None:
    device, bridge, connect = listening
    rude = connect()
    rude.send(b"a")
    device.read(1)
    fill(device, bytes(1 << 20))
    rude.close()

    device.until(lambda: device.output.room == CAPACITY)
    assert bridge.counters["dropped_bytes"] == CAPACITY
    connect().send(b"polite")
    assert device.read(6) == b"polite"


def test_input_that_the_guest_does_not_read_waits_outside(listening: Listening) -> None:
    device, _, connect = listening
    client = connect()
    client.setblocking(False)
    data = os.urandom(16 * CAPACITY)
    sent = 0

    def is_full() -> bool:
        nonlocal sent
        try:
            sent += client.send(data[sent:])
        except BlockingIOError:
            return len(device.waiting()) == CAPACITY
        return False

    device.until(is_full)
    assert sent < len(data)

    received = b""
    while len(received) < sent:
        received += device.read(min(4096, sent - len(received)))
    assert received == data[:sent]


def fill(device: Device, data: bytes) -> int:
    """Print ``data`` to a client that never reads, until socket and stream are full."""
    size = 0

    def is_stuck() -> bool:
        nonlocal size
        before, size = size, device.output.write(0, [data])
        stream.wake(device.wake)
        return before == size > CAPACITY and device.output.room == 0

    device.until(is_stuck)
    return size


def test_what_was_printed_last_reaches_a_client_that_is_slow(listening: Listening) -> None:
    device, bridge, connect = listening
    client = connect()
    device.until(lambda: bridge.counters["clients"])
    data = os.urandom(1 << 20)
    size = fill(device, data)
    write, has_tried = bridge._write, threading.Event()

    def write_and_tell() -> None:
        write()
        has_tried.set()

    bridge._write = write_and_tell  # type: ignore[method-assign]
    finishing = threading.Thread(target=bridge.finish)
    finishing.start()
    assert has_tried.wait(DEADLINE)
    received = b""
    while len(received) < size:
        received += client.recv(1000)
    finishing.join(DEADLINE)

    assert received == data[:size]


def test_a_device_that_dies_in_the_middle_is_followed_by_its_successor(
    listening: Listening,
) -> None:
    device, _, connect = listening
    client = connect()
    device.print(b"before, ")
    device.output.write(8, [b"half"])  # and no wake-up any more

    successor = Device({name: os.dup(fd) for name, fd in device.fds.items()}, device.loop)
    stream.wake(successor.wake)
    assert successor.output.write(8, [b"half and half"]) == 13
    stream.wake(successor.wake)
    successor.until(lambda: successor.output.room == CAPACITY)

    assert client.recv(64) == b"before, half and half"
    successor.close()


def test_more_wake_ups_than_a_socket_holds_lose_none(listening: Listening) -> None:
    device, bridge, _ = listening
    for _ in range(10_000):
        stream.wake(device.wake)
    device.loop.after(0.02, device.loop.end)
    device.loop.run()

    device.output.write(0, [b"unread"])
    stream.wake(device.wake)

    device.until(lambda: bridge.counters["dropped_bytes"] == 6)


# A hostile device.


def forge(device: Device, log: str, cursor: int, value: int) -> None:
    view: memoryview = getattr(device._mapped, log)
    view[cursor : cursor + 8] = value.to_bytes(8, "little")
    stream.wake(device.wake)


@pytest.mark.parametrize(
    ("log", "cursor", "value"),
    [("output", 0, 1 << 40), ("output", 0, (1 << 64) - 1), ("input", 64, 1 << 40)],
)
def test_a_device_that_forges_a_cursor_is_cut_off_and_named(
    listening: Listening, log: str, cursor: int, value: int
) -> None:
    device, bridge, connect = listening
    complaints: list[str] = []
    bridge.end.on_broken = complaints.append
    client = connect()
    device.print(b"honest")
    assert client.recv(16) == b"honest"

    forge(device, log, cursor, value)
    client.send(b"typed")
    device.until(lambda: complaints)
    forge(device, log, cursor, value)
    device.loop.after(0.02, device.loop.end)
    device.loop.run()

    assert len(complaints) == 1
    assert "a log " in complaints[0]


def test_a_device_that_floods_does_not_keep_the_launcher_from_others(
    listening: Listening,
) -> None:
    device, bridge, _ = listening
    # Whenever the launcher has taken something, there is more.
    take, taken = bridge.end.take, []

    def take_and_refill(size: int) -> None:
        take(size)
        taken.append(size)
        device.output.write(device.output.head, [bytes(CAPACITY)])
        stream.wake(device.wake)
        assert len(taken) < 100

    bridge.end.take = take_and_refill  # type: ignore[method-assign]
    device.output.write(0, [bytes(CAPACITY)])

    bridge._pump()

    assert taken == [CAPACITY]


def test_an_end_that_is_cut_off_reads_as_closed_and_swallows_input() -> None:
    end = LogEnd("console0")
    device = Device(end.fds, Loop())
    assert end.receive() is None
    forge(device, "output", 0, 1 << 40)

    assert end.receive() == b""
    forge(device, "input", 64, 1 << 40)
    assert end.send(b"typed") == 5
    assert end.room == 0

    device.close()
    end.close()


# What can be wrong with a path.


def test_a_socket_is_made_where_nothing_is_and_removed_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "console.sock"
    streams = Streams()

    close_all(Host("console0", streams, Locks()).stream("socket", str(path)).values())

    assert path.is_socket()
    assert streams.cleanup == [str(path)]
    streams.close()
    assert not path.exists()


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("there", "exists already"),
        ("missing/console.sock", "No such file or directory"),
        ("x" * 200, "too long"),
        ("a\0b", "null"),
    ],
)
def test_a_path_that_cannot_be_a_socket_is_bad_input(
    tmp_path: Path, name: str, complaint: str
) -> None:
    (tmp_path / "there").write_text("not ours")
    streams = Streams()

    with pytest.raises(BadInput, match=f"^path: .*{complaint}"):
        Host("console0", streams, Locks()).stream("socket", f"{tmp_path}/{name}")

    assert streams.cleanup == []
    assert (tmp_path / "there").read_text() == "not ours"
