"""The console: bytes both ways, whoever is slow, and whoever comes and goes."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devices.console import Config, Console
from protocol import messages
from protocol.errors import BadInput
from tests.support.device_host import DEADLINE, DeviceHost, FakeHost

Boot = Callable[..., DeviceHost]

RECEIVEQ, TRANSMITQ = 0, 1


def give_room(host: DeviceHost, *sizes: int) -> None:
    """Offer buffers for input."""
    for size in sizes:
        host.drivers[RECEIVEQ].add([], [size])
    host.publish(RECEIVEQ)


def read(fd: int, size: int) -> bytes:
    """Exactly ``size`` bytes."""
    data = b""
    while len(data) < size:
        assert select.select([fd], [], [], DEADLINE)[0], f"only {data!r} came"
        data += os.read(fd, size - len(data))
    return data


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process does."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def terminal(boot: Boot) -> DeviceHost:
    """A started console on the launcher's terminal."""
    host = boot("console", Config(cols=132, rows=43))
    host.start()
    return host


@pytest.fixture
def end(terminal: DeviceHost) -> socket.socket:
    """The launcher's end of its stream."""
    return terminal.host.terminals[0]


def test_it_has_one_port_and_its_size(terminal: DeviceHost) -> None:
    assert terminal.hello is not None

    assert struct.unpack("<HHII", terminal.hello.config) == (132, 43, 1, 0)
    assert terminal.hello.features & 1  # VIRTIO_CONSOLE_F_SIZE


def test_output_comes_out_in_order_whatever_its_buffers(
    terminal: DeviceHost, end: socket.socket
) -> None:
    driver = terminal.drivers[TRANSMITQ]
    driver.add([b"one ", b"two "])
    driver.add([b"three"])
    terminal.publish(TRANSMITQ)

    assert read(end.fileno(), 13) == b"one two three"
    assert [used.written for used in terminal.collect(2, TRANSMITQ)] == [0, 0]


def test_input_fills_the_buffers_in_order(terminal: DeviceHost, end: socket.socket) -> None:
    give_room(terminal, 3, 100)
    end.send(b"abcdef")

    assert [used.data for used in terminal.collect(2, RECEIVEQ)] == [b"abc", b"def"]


def test_input_waits_outside_until_there_is_room_for_it(
    terminal: DeviceHost, end: socket.socket
) -> None:
    end.setblocking(False)
    sent = 0
    while select.select([], [end], [], 0.1)[1]:  # until it is full, and stays so
        sent += end.send(b"x" * 4096)

    received = 0
    while received < sent:
        give_room(terminal, 4096)
        received += terminal.collect(1, RECEIVEQ)[0].written
    assert terminal.counters()["input_bytes"] == sent


def test_a_slow_reader_loses_nothing_and_holds_up_nobody_else(
    terminal: DeviceHost, end: socket.socket
) -> None:
    blocks = [bytes([number]) * 65536 for number in range(16)]
    driver = terminal.drivers[TRANSMITQ]
    for block in blocks:
        driver.add([block])
    terminal.publish(TRANSMITQ)
    terminal.request(messages.Ping(), messages.Done)
    until(lambda: terminal.counters().get("output_bytes", 0) > 0)
    assert driver.used_idx < 16

    give_room(terminal, 16)
    end.send(b"typed meanwhile")
    assert terminal.collect(1, RECEIVEQ)[0].data == b"typed meanwhile"
    output = read(end.fileno(), 16 * 65536)

    assert output == b"".join(blocks)
    assert len(terminal.collect(16, TRANSMITQ)) == 16


def test_a_reset_drops_what_was_not_written_and_starts_clean(
    terminal: DeviceHost, end: socket.socket
) -> None:
    # Hazard 13: half of a chain is out, the driver takes its memory back.
    for _ in range(8):
        terminal.drivers[TRANSMITQ].add([b"x" * 65536])
    terminal.publish(TRANSMITQ)
    until(lambda: terminal.counters().get("output_bytes", 0) > 0)

    terminal.stop()
    before = terminal.counters()["output_bytes"]
    assert read(end.fileno(), before) == b"x" * before
    terminal.start()
    terminal.drivers[TRANSMITQ].add([b"fresh"])
    terminal.publish(TRANSMITQ)

    assert read(end.fileno(), 5) == b"fresh"
    terminal.collect(1, TRANSMITQ)


def test_output_after_the_other_end_is_gone_is_dropped(
    terminal: DeviceHost, end: socket.socket
) -> None:
    end.close()

    terminal.send([b"into the void"], index=TRANSMITQ)

    assert terminal.counters()["dropped_bytes"] == 13


# A pty.


@pytest.fixture
def pty(boot: Boot) -> tuple[DeviceHost, str]:
    """A started console on a pty, and the name of what the user opens."""
    host = boot("console", Config(backend="pty"))
    host.start()
    (announced,) = host.host.announced
    word, path = announced.split()
    assert word == "pty"
    return host, path


def open_terminal(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)


def test_a_pty_carries_bytes_both_ways_as_they_are(pty: tuple[DeviceHost, str]) -> None:
    host, path = pty
    give_room(host, 16, 16)
    user = open_terminal(path)
    try:
        host.send([b"login:\n"], index=TRANSMITQ)
        assert read(user, 7) == b"login:\n"
        os.write(user, b"root\r\x03")
        assert host.collect(1, RECEIVEQ)[0].data == b"root\r\x03"
        # Nothing of it was echoed to the guest or to the user.
        host.request(messages.Ping(), messages.Done)
        assert not select.select([user], [], [], 0)[0]
        assert host.drivers[RECEIVEQ].pending == 1
    finally:
        os.close(user)


def test_a_pty_that_nobody_has_open_drops_output_and_takes_the_next_user(
    pty: tuple[DeviceHost, str],
) -> None:
    host, path = pty
    give_room(host, 16, 16)
    host.send([b"unseen"], index=TRANSMITQ)
    assert host.counters()["dropped_bytes"] == 6

    for name in (b"first", b"second"):
        user = open_terminal(path)
        os.write(user, name)
        assert host.collect(1, RECEIVEQ)[0].data == name
        host.send([b"hello " + name], index=TRANSMITQ)
        assert read(user, 6 + len(name)) == b"hello " + name
        os.close(user)
        host.send([b"unseen"], index=TRANSMITQ)
    assert host.counters()["dropped_bytes"] == 18


def test_a_pty_that_nobody_has_open_costs_no_time(pty: tuple[DeviceHost, str]) -> None:
    host, path = pty
    os.close(open_terminal(path))
    stat = Path(f"/proc/{host.process.pid}/stat")

    def state() -> str:
        return stat.read_text().rpartition(")")[2].split()[0]

    # Hung up, it must sleep in its loop, and not spin on the end of the file.
    for _ in range(20):
        until(lambda: state() == "S")


# A Unix socket.


@pytest.fixture
def listening(
    boot: Boot, tmp_path: Path
) -> Iterator[tuple[DeviceHost, Callable[[], socket.socket]]]:
    """A started console on a socket, and a way to connect to it."""
    path = str(tmp_path / "console.sock")
    host = boot("console", Config(backend="socket", path=path))
    host.start()
    clients = []

    def connect() -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        clients.append(client)
        client.settimeout(DEADLINE)
        client.connect(path)
        return client

    yield host, connect
    for client in clients:
        client.close()


def test_a_socket_serves_its_client_both_ways(
    listening: tuple[DeviceHost, Callable[[], socket.socket]],
) -> None:
    host, connect = listening
    host.send([b"nobody is here"], index=TRANSMITQ)
    assert host.counters()["dropped_bytes"] == 14
    give_room(host, 16)
    client = connect()
    client.send(b"hi")
    assert host.collect(1, RECEIVEQ)[0].data == b"hi"

    host.send([b"hello"], index=TRANSMITQ)

    assert client.recv(16) == b"hello"


def test_the_next_client_waits_until_the_first_has_left(
    listening: tuple[DeviceHost, Callable[[], socket.socket]],
) -> None:
    host, connect = listening
    give_room(host, 16, 16, 16)
    first = connect()
    first.send(b"first")
    assert host.collect(1, RECEIVEQ)[0].data == b"first"
    second = connect()
    second.send(b"second")
    host.send([b"to the first"], index=TRANSMITQ)
    assert first.recv(64) == b"to the first"
    assert host.drivers[RECEIVEQ].pending == 2

    first.close()

    assert host.collect(1, RECEIVEQ)[0].data == b"second"
    host.send([b"to the second"], index=TRANSMITQ)
    assert second.recv(64) == b"to the second"
    assert host.counters()["clients"] == 2


def test_a_client_that_resets_its_connection_ends_only_that(
    listening: tuple[DeviceHost, Callable[[], socket.socket]],
) -> None:
    host, connect = listening
    give_room(host, 1)
    rude = connect()
    rude.send(b"ab")
    host.collect(1, RECEIVEQ)
    host.drivers[TRANSMITQ].add([b"x" * (1 << 20)])  # more than a socket takes
    host.publish(TRANSMITQ)
    until(lambda: host.counters().get("output_bytes", 0) > 0)

    rude.close()  # with "b" and most of the output unread

    host.collect(1, TRANSMITQ)
    give_room(host, 16)
    connect().send(b"polite")
    assert host.collect(1, RECEIVEQ)[0].data == b"polite"


def test_a_client_survives_a_reset_of_the_device(
    listening: tuple[DeviceHost, Callable[[], socket.socket]],
) -> None:
    host, connect = listening
    client = connect()
    give_room(host, 16)
    client.send(b"before")
    host.collect(1, RECEIVEQ)

    host.stop()
    host.start()
    give_room(host, 16)
    client.send(b"after")

    assert host.collect(1, RECEIVEQ)[0].data == b"after"


# In the launcher.


def test_a_socket_is_made_where_nothing_is_and_removed_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "console.sock"
    host = FakeHost()

    os.close(Console.open(Config(backend="socket", path=str(path)), host)["listener"])

    assert path.is_socket()
    assert host.to_remove == [str(path)]


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
    host = FakeHost()

    with pytest.raises(BadInput, match=f"^path: .*{complaint}"):
        Console.open(Config(backend="socket", path=f"{tmp_path}/{name}"), host)

    assert host.to_remove == []
    assert (tmp_path / "there").read_text() == "not ours"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"backend": "socket"}, "needs one"),
        ({"backend": "pty", "path": "x"}, "take none"),
        ({"cols": 65536}, "65536 by "),
    ],
)
def test_options_that_make_no_console_are_refused(
    options: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        Config(**options)  # type: ignore[arg-type]
