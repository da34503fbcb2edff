"""The user's terminal, on a pty: raw while the machine runs, and as it was whatever ends it."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.leaks import children
from tests.support.vibevmm import piped

PROJECT = Path(__file__).parents[2]
DEADLINE = 30.0


class Session:
    """vibevmm, its VMM a fake that echoes in brackets, on a terminal of its own."""

    def __init__(self, binary: str, *options: str) -> None:
        self.screen = ""
        self._ours, self._theirs = pty.openpty()
        self.before = termios.tcgetattr(self._ours)
        arguments = ["--binary", binary, "--entry", "0x10000", "--name", "echo", *options]
        # setsid -c: a session whose controlling terminal is the pty, as a shell's would be.
        command = ["setsid", "-c", sys.executable, "-m", "tests.support.fake_launcher", "run"]
        self.process = subprocess.Popen(
            [*command, *arguments],
            cwd=PROJECT,
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
        )

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def wait_for(self, words: str) -> None:
        """Read the screen until it shows ``words``."""
        self._until(lambda: words in self.screen, words)

    def end(self) -> int:
        """The exit status, when it has ended."""
        self._until(lambda: self.process.poll() is not None, "its end")
        while select.select([self._ours], [], [], 0)[0]:
            self.screen += os.read(self._ours, 4096).decode()
        return self.process.returncode

    def flags(self) -> int:
        """The terminal's local modes."""
        return int(termios.tcgetattr(self._ours)[3])

    def wait_until_restored(self) -> None:
        """Wait until the terminal is what it was before."""
        self._until(lambda: termios.tcgetattr(self._ours) == self.before, "the old modes")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, f"no {what!r}; the screen has {self.screen!r}"
            if select.select([self._ours], [], [], 0.05)[0]:
                self.screen += os.read(self._ours, 4096).decode()


@pytest.fixture
def start(binary: str, runtime: Path) -> Iterator[Callable[..., Session]]:
    """Starts sessions, and ends what is left of them."""
    started: list[Session] = []

    def make(*options: str) -> Session:
        started.append(Session(binary, *options))
        return started[-1]

    yield make
    for session in started:
        session.close()


def test_keys_go_to_the_guest_and_are_not_echoed(start: Callable[..., Session]) -> None:
    session = start()
    session.type(b"one")
    session.wait_for("[one]")

    # Neither Ctrl-C nor Ctrl-Z nor return is anything special; nothing shows but the guest's echo.
    session.screen = ""
    session.type(b"\x03\x1a\r")
    session.wait_for("]")

    assert session.screen == "[\x03\x1a\r]"
    assert not session.flags() & (termios.ECHO | termios.ICANON | termios.ISIG)


def test_escape_x_stops_the_machine_and_restores_the_terminal(
    start: Callable[..., Session],
) -> None:
    session = start()
    session.type(b"a")
    session.wait_for("[a]")

    session.type(b"\x01x")

    assert session.end() == 0
    assert "stopped by Ctrl-A x" in session.screen
    session.wait_until_restored()


def test_escape_twice_sends_one_and_escape_h_helps(start: Callable[..., Session]) -> None:
    session = start()
    session.type(b"\x01\x01.")
    session.wait_for("[\x01.]")

    session.type(b"\x01h")

    session.wait_for("Ctrl-A and: x stop")


def test_escape_c_switches_between_serial_port_and_consoles(
    start: Callable[..., Session],
) -> None:
    session = start("--console", "terminal,id=hvc0")
    session.type(b"to serial")
    session.wait_for("[to serial]")

    session.type(b"\x01c")
    session.wait_for("input goes to hvc0")
    session.type(b"lost on a fake console")
    session.type(b"\x01c")
    session.wait_for("input goes to serial")
    session.type(b"again")

    session.wait_for("[again]")
    assert "[lost" not in session.screen


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_terminal_is_restored_after_a_signal(
    number: signal.Signals, start: Callable[..., Session]
) -> None:
    session = start()
    session.type(b"a")
    session.wait_for("[a]")

    session.process.send_signal(number)

    assert session.end() == 0
    session.wait_until_restored()


@pytest.mark.slow
def test_killed_launcher_leaves_no_process_no_directory_and_a_sane_terminal(
    start: Callable[..., Session], runtime: Path
) -> None:
    session = start("--device", "rng")
    session.type(b"a")
    session.wait_for("[a]")
    left = children(session.process.pid)
    assert len(left) >= 2  # and the zygote, until it has been reaped

    session.process.kill()

    session.end()
    session.wait_until_restored()
    session._until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left), "their end")
    session._until(lambda: list((runtime / "vibevmm").iterdir()) == [], "an empty directory")


def test_terminal_of_somebody_else_is_left_alone(
    binary: str, runtime: Path, start: Callable[..., Session]
) -> None:
    """In the background, the launcher neither reads the terminal nor changes its modes."""
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(ours)
    script = (
        f"{sys.executable} -m tests.support.fake_launcher run --binary {binary} "
        "--entry 0x10000 --name flood > /dev/null & wait $!"
    )

    # -m: job control, so that what runs in the background has a process group of its own.
    done = subprocess.run(
        ["setsid", "-c", "bash", "-m", "-c", script], cwd=PROJECT, stdin=theirs, check=False
    )

    assert done.returncode == 0
    assert termios.tcgetattr(ours) == before
    os.close(ours)
    os.close(theirs)


@pytest.mark.slow
def test_piped_input_goes_to_the_guest_up_to_its_end(binary: str, runtime: Path) -> None:
    command = [sys.executable, "-m", "tests.support.fake_launcher", "run", "--binary", binary]

    command += ["--entry", "0x10000", "--name", "echo", "--timeout", "60"]

    assert piped(command, b"hello\x01x", b"]") == (b"[hello\x01x]", 0)


def test_end_of_the_reader_stops_the_machine(binary: str, runtime: Path) -> None:
    command = [sys.executable, "-m", "tests.support.fake_launcher", "run", "--binary", binary]
    reading, writing = os.pipe()
    os.close(reading)

    done = subprocess.run(
        [*command, "--entry", "0x10000", "--name", "flood"], cwd=PROJECT, stdout=writing
    )

    os.close(writing)
    assert done.returncode == 0
