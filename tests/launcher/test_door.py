"""Who is let in to be a device: this user's processes, each known for certain by its pidfd."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher import door as doors
from launcher.door import Door, Hand, Wishes
from launcher.host import Streams
from launcher.locks import Locks
from launcher.loop import Loop
from protocol import codec, fds
from protocol.specs import Notice, Volunteer

VOLUNTEER = Volunteer("rng0", "mine.py", True)
ANSWER = codec.pack(codec.to_plain(VOLUNTEER))


class Guarded:
    """A door, who came through it, and what it noted of those who did not."""

    def __init__(self, folder: Path) -> None:
        self.loop = Loop()
        self.came: list[tuple[Hand, Volunteer]] = []
        self.notes: list[str] = []
        self.door = Door(self.loop, str(folder / "door"), self._came, self.notes.append)
        self.path = self.door.open()

    def _came(self, hand: Hand, wanted: Volunteer) -> None:
        self.came.append((hand, wanted))

    def turn_until(self, condition: Callable[[], object]) -> None:
        until = time.monotonic() + 20

        def look() -> None:
            assert time.monotonic() < until
            if condition():
                self.loop.end()
            else:
                self.loop.after(0.01, look)

        look()
        self.loop.run()

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(20)
        connection.connect(self.path)
        return connection


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    made = Guarded(tmp_path)
    yield made
    made.door.close()


VISITOR = """
import socket, sys
here = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
here.connect(sys.argv[1])
here.recv(100)
here.send(bytes.fromhex(sys.argv[2]))
here.recv(1 << 16)
here.recv(1)
"""


@pytest.fixture
def visitor(guarded: Guarded) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", VISITOR, guarded.path, ANSWER.hex()]) as process:
        yield process
        process.kill()


def test_process_that_comes_is_known_by_a_pidfd(
    guarded: Guarded, visitor: subprocess.Popen[bytes]
) -> None:
    guarded.turn_until(lambda: guarded.came)
    ((hand, wanted),) = guarded.came

    assert wanted == VOLUNTEER
    assert hand.pid == visitor.pid
    assert not hand.reap()
    hand.tell(Notice(True))
    hand.kill()
    assert visitor.wait(20) == -signal.SIGKILL
    assert hand.reap()  # though it was somebody else's child
    hand.kill()
    hand.close()
    hand.close()


def test_a_new_file_has_its_name_while_whom_it_is_for_is_there(
    guarded: Guarded, visitor: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    guarded.turn_until(lambda: guarded.came)
    ((hand, _),) = guarded.came
    locks, names = Locks(), [str(tmp_path / name) for name in ("new", "nowhere/new")]
    wishes = Wishes(guarded.loop, hand, "blk0", Streams(), locks)
    files = [os.open(tmp_path, os.O_RDWR | os.O_TMPFILE) for _ in names]

    assert wishes.lock(files[0], shared=False, name=names[0])
    assert not wishes.lock(files[1], shared=False, name=names[1])
    assert os.path.exists(names[0])
    locks.keep_only("blk0", [])  # as when it ends (launcher.session)

    assert not os.path.exists(names[0])
    wishes.end()
    hand.close()
    fds.close_all(files)


def test_another_user_is_turned_away(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors.os, "geteuid", lambda: os.getuid() + 1)
    with guarded.connect() as connection:
        guarded.turn_until(lambda: guarded.notes)

        assert connection.recv(100) == b""
    assert "of user" in guarded.notes[0]
    assert guarded.came == []


def test_one_that_answers_for_another_is_turned_away(guarded: Guarded) -> None:
    # Who has connected gives the connection to a child. Its pid is not that of the pidfd.
    with guarded.connect() as connection:
        guarded.turn_until(lambda: guarded.door._greeted)
        assert connection.recv(100)
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                connection.send(ANSWER)
            os._exit(0)
        os.waitpid(child, 0)
        guarded.turn_until(lambda: guarded.notes)

        assert connection.recv(100) == b""
    assert "it is not who it was" in guarded.notes[0]
    assert guarded.came == []


@pytest.mark.parametrize("answer", [b"garbage", codec.pack({"device": "rng0"})])
def test_garbage_is_turned_away(guarded: Guarded, answer: bytes) -> None:
    with guarded.connect() as connection:
        guarded.turn_until(lambda: guarded.door._greeted)
        connection.recv(100)
        connection.send(answer)
        guarded.turn_until(lambda: guarded.notes)

        assert connection.recv(100) == b""
    assert guarded.came == []


def test_one_that_says_nothing_is_hung_up_on(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors, "_PATIENCE", 0.0)
    with guarded.connect() as connection:
        connection.setblocking(False)
        received = []

        def is_over() -> bool:
            with contextlib.suppress(BlockingIOError):
                received.append(connection.recv(100))
            return b"" in received

        guarded.turn_until(is_over)
    assert len(received) == 2


def test_descriptors_that_come_along_are_closed(guarded: Guarded) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with guarded.connect() as connection:
        guarded.turn_until(lambda: guarded.door._greeted)
        connection.recv(100)
        socket.send_fds(connection, [ANSWER], [0, 0, 0])
        guarded.turn_until(lambda: guarded.came or guarded.notes)
    for hand, _ in guarded.came:  # this process itself: only closed, not killed
        hand.status = 0
        hand.close()

    assert len(os.listdir("/proc/self/fd")) == before
