"""Landlock, with nothing else around: the other parts of a cell keep from the same, and would hide
that it does not."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from protocol import jail
from tests.support.vibevmm import ROOT

# What is tried, and from which version on it is kept from; see landlock.c.
ATTEMPTS = {
    "read a file": ("open(folder + '/file').close()", 1),
    "write a file": ("open(folder + '/file', 'a').close()", 1),
    "make a file": ("open(folder + '/new', 'x').close()", 1),
    "list a directory": ("os.listdir(folder)", 1),
    "truncate a file": ("os.truncate(folder + '/file', 0)", 3),
    "connect to a port": ("socket.create_connection(('127.0.0.1', port)).close()", 4),
    "bind a port": ("socket.socket().bind(('127.0.0.1', 0))", 4),
    "connect to an abstract socket": ("socket.socket(socket.AF_UNIX).connect(abstract)", 6),
    "signal its parent": ("os.kill(os.getppid(), signal.SIGCONT)", 6),
}


def tried(folder: Path, attempt: str, hold: str) -> str:
    """What comes of ``attempt`` in a process that is in nothing but what ``hold`` makes of it."""
    with socket.create_server(("127.0.0.1", 0)) as port, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("")  # the kernel chooses
        abstract.listen()
        program = f"""
import os, signal, socket
from protocol import jail
from protocol.jail._jail import lib
folder, port, abstract = {str(folder)!r}, {port.getsockname()[1]}, {abstract.getsockname()!r}
assert lib.jail_no_new_privileges() == 0
cell = jail.Cell()
{hold}
try:
    {attempt}
except PermissionError:
    print("no", cell.parts)
else:
    print("yes", cell.parts)
"""
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30
        )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def version_here() -> int:
    """Of this kernel's Landlock; the test is skipped if it has none."""
    try:
        return jail.landlock_version()
    except OSError as error:
        pytest.skip(f"no Landlock: {error.strerror}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with a file."""
    version_here()
    (tmp_path / "file").touch()
    return tmp_path


@pytest.mark.parametrize("what", ATTEMPTS)
def test_it_alone_keeps_a_process_from(folder: Path, what: str) -> None:
    attempt, version = ATTEMPTS[what]
    if version_here() < version:
        pytest.skip(f"Landlock {version} keeps from that")

    assert tried(folder, attempt, "pass") == "yes ()"
    (folder / "new").unlink(missing_ok=True)
    assert tried(folder, attempt, "cell.restrict([])") == "no ('landlock',)"


def test_what_it_is_told_may_be_done_may_be(folder: Path) -> None:
    hold = "cell.restrict([(os.open(folder, os.O_PATH), jail.READ)])"

    assert tried(folder, "open(folder + '/file').close()", hold) == "yes ('landlock',)"
    assert tried(folder, "open(folder + '/file', 'a').close()", hold) == "no ('landlock',)"
    assert tried(folder, "os.listdir(folder + '/..')", hold) == "no ('landlock',)"


def test_who_is_not_to_be_alone_signals_others_still(folder: Path) -> None:
    attempt, _ = ATTEMPTS["signal its parent"]

    assert tried(folder, attempt, "cell.restrict([], alone=False)") == "yes ('landlock',)"
