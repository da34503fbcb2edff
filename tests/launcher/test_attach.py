"""``vibevmm attach`` on a terminal of its own: keys, commands, and a terminal that is put back."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.leaks import children
from tests.support.machines import Start
from tests.support.vibevmm import piped

# Nearly each starts a machine.
pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2]
DEADLINE = 30.0


class Attached:
    """The command in a terminal, whose other side this is."""

    def __init__(self, target: str) -> None:
        self.ours, self._theirs = pty.openpty()
        self.before = self.mode()
        self.screen = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "launcher", "attach", target],
            cwd=PROJECT,
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            process_group=0,
        )

    def mode(self) -> list[Any]:
        return termios.tcgetattr(self._theirs)

    def type(self, keys: bytes) -> None:
        os.write(self.ours, keys)

    def shows(self, words: bytes) -> None:
        """Wait for them."""
        until = time.monotonic() + DEADLINE
        while words not in self.screen:
            ready = select.select([self.ours], [], [], max(0.0, until - time.monotonic()))[0]
            assert ready, f"no {words!r} in {self.screen!r}"
            self.screen += os.read(self.ours, 4096)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self._theirs)


@pytest.fixture
def attached(start: Start) -> Iterator[Attached]:
    """Attached to a guest that prints what is typed, in brackets."""
    start("echo")
    made = Attached("serial")
    made.shows(b"Ctrl-A d detaches")
    made.type(b"a")
    made.shows(b"[a]")  # so it is raw now
    yield made
    made.close()


def test_keys_go_to_the_guest_and_nothing_is_echoed(attached: Attached) -> None:
    attached.type(b"\x03")  # Ctrl-C is the guest's, too

    attached.shows(b"[\x03]")
    assert b"^C" not in attached.screen
    assert attached.mode() != attached.before


def test_detached_the_terminal_is_as_before_and_the_machine_runs_on(
    attached: Attached, start: Start
) -> None:
    attached.type(b"bye\x01d never sent")

    assert attached.process.wait(DEADLINE) == 0
    assert attached.mode() == attached.before
    again = Attached("echo/serial")
    try:
        again.shows(b"bye")
        assert b"never" not in again.screen
    finally:
        again.close()


def test_help_and_ctrl_a_itself(attached: Attached) -> None:
    attached.type(b"\x01h")
    attached.shows(b"d detach")

    attached.type(b"\x01\x01")
    attached.shows(b"[\x01]")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT])
def test_signal_puts_the_terminal_back(attached: Attached, number: signal.Signals) -> None:
    attached.process.send_signal(number)

    assert attached.process.wait(DEADLINE) == 128 + number
    assert attached.mode() == attached.before


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGUSR2, signal.SIGALRM, signal.SIGABRT, signal.SIGSEGV]
)
def test_terminal_is_put_back_for_who_is_killed_and_all_its_job(
    attached: Attached, number: signal.Signals
) -> None:
    os.killpg(attached.process.pid, number)

    assert attached.process.wait(DEADLINE) == -number
    until = time.monotonic() + DEADLINE
    while attached.mode() != attached.before:
        assert time.monotonic() < until, "the terminal stays raw"
        time.sleep(0.001)


def test_guardian_that_is_killed_leaves_it_to_who_is_guarded(attached: Attached) -> None:
    (guardian,) = children(attached.process.pid)
    os.kill(guardian, signal.SIGKILL)
    attached.type(b"b")
    attached.shows(b"[b]")

    attached.type(b"\x01d")

    assert attached.process.wait(DEADLINE) == 0
    assert attached.mode() == attached.before


def test_end_of_the_machine_puts_the_terminal_back(start: Start) -> None:
    machine = start("echo")
    made = Attached("serial")
    try:
        made.shows(b"Ctrl-A d detaches")
        machine.stop(force=True)

        assert made.process.wait(DEADLINE) == 0
        assert made.mode() == made.before
    finally:
        made.close()


def test_without_a_terminal_what_comes_is_typed(start: Start) -> None:
    start("echo")
    command = [sys.executable, "-m", "launcher", "attach", "serial"]

    got, _ = piped(command, b"\x01d is no command here", b"here]")

    assert got.replace(b"][", b"") == b"[\x01d is no command here]"
