"""A stream that several see and type to, of whom none holds up the guest."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.loop import Loop
from launcher.relay import Relay
from launcher.streams import SocketEnd

DEADLINE = 20.0


class Shared:
    """A relay whose own user keeps what it receives; ``guest`` is the guest's end."""

    def __init__(self, path: str) -> None:
        self.loop = Loop()
        ours, self.guest = socket.socketpair()
        self._ours = ours
        ours.setblocking(False)
        self.relay = Relay(self.loop, SocketEnd(ours), path)
        self.shown = b""
        self.relay.listen(self.loop, self._show, lambda: None)
        self.loop.after(DEADLINE, self._give_up)
        self._attached: list[socket.socket] = []

    def _show(self) -> None:
        data = self.relay.receive()
        self.shown += data or b""
        if data == b"":
            self.relay.unlisten()

    def _give_up(self) -> None:
        raise AssertionError("it never came")

    def attach(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX)
        made.connect(self.relay.open())
        made.setblocking(False)
        self._attached.append(made)
        self.turn()
        return made

    def turn(self) -> None:
        """One turn of the loop, at least."""
        self.loop.after(0, self.loop.end)
        self.loop.run()
        self.loop.after(0.01, self.loop.end)
        self.loop.run()

    def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self.turn()

    def comes(self, end: socket.socket, wanted: bytes) -> None:
        """``wanted`` is what ``end`` receives."""
        got = b""

        def receive() -> bool:
            nonlocal got
            try:
                got += end.recv(4096)
            except BlockingIOError:
                return False
            return got == wanted

        self.until(receive)

    def close(self) -> None:
        for end in (*self._attached, self.guest):
            end.close()
        self.relay.close()
        self._ours.close()


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Shared]:
    made = Shared(str(tmp_path / "serial.stream"))
    yield made
    made.close()


def test_all_see_what_the_guest_writes(shared: Shared) -> None:
    one, other = shared.attach(), shared.attach()
    shared.guest.send(b"hello")

    shared.comes(one, b"hello")
    shared.comes(other, b"hello")
    assert shared.shown == b"hello"


def test_who_comes_late_sees_the_last_screen(shared: Shared) -> None:
    shared.guest.send(b"early" + b"x" * 5000 + b"late")
    shared.until(lambda: shared.shown.endswith(b"late"))

    shared.comes(shared.attach(), b"x" * 4092 + b"late")


def test_all_may_type(shared: Shared) -> None:
    shared.guest.setblocking(False)
    one, other = shared.attach(), shared.attach()

    one.send(b"a")
    shared.comes(shared.guest, b"a")
    other.send(b"b")
    shared.comes(shared.guest, b"b")
    shared.relay.send(b"c")
    shared.comes(shared.guest, b"c")


@pytest.mark.slow
def test_guest_that_takes_no_input_gets_it_whole_when_it_does(shared: Shared) -> None:
    end, data = shared.attach(), bytes(range(256)) * 4096
    sent = 0
    for _ in range(200):
        try:
            sent += end.send(data[sent:])
        except BlockingIOError:
            shared.turn()
    assert sent < len(data)  # all buffers are full

    got = b""
    shared.guest.setblocking(False)
    while len(got) < len(data):
        try:
            got += shared.guest.recv(1 << 20)
        except BlockingIOError:
            shared.turn()
        if sent < len(data):
            try:
                sent += end.send(data[sent:])
            except BlockingIOError:
                shared.turn()

    assert got == data


@pytest.mark.slow
def test_who_does_not_read_misses_something_and_is_told_and_the_guest_is_not_held_up(
    shared: Shared,
) -> None:
    end = shared.attach()
    for _ in range(200):
        shared.guest.sendall(b"x" * 4096)
        size = len(shared.shown) + 4096
        shared.until(lambda size=size: len(shared.shown) == size)

    got = b""

    def note() -> bool:
        nonlocal got
        with contextlib.suppress(BlockingIOError):
            got += end.recv(1 << 20)
        return got.endswith(b"bytes were not shown here]\r\n")

    shared.until(note)

    missed = int(got.split(b"[vibevmm: ")[1].split()[0])
    assert got.count(b"x") + missed == 200 * 4096


def test_one_more_than_the_most_is_sent_away_with_a_word(shared: Shared) -> None:
    for _ in range(8):
        shared.attach()

    end = shared.attach()

    shared.comes(end, b"\r\n[vibevmm: 8 are attached already]\r\n")
    assert end.recv(1) == b""


def test_who_left_makes_room_and_the_end_of_the_stream_is_everybodys(shared: Shared) -> None:
    for _ in range(20):
        shared.attach().close()
    end = shared.attach()
    shared.guest.close()

    shared.until(lambda: shared.relay._attached == [])
    assert end.recv(1) == b""
