"""The real `vibevmm`, with real processes, as a user starts it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

DEADLINE = 360.0 if "VIBE_LAB" in os.environ else 90.0
"""Seconds after which a run that should have ended has failed; arbitrary, and generous: the lab's
processors are emulated, and may stand still for a minute."""

# By so much sooner it stops by itself, and says what there was.
_SOONER = 30.0


def raw(folder: Path, code: bytes) -> list[str]:
    """Options that run ``code``, entered at 1 MiB in 64-bit mode, from a file in ``folder``."""
    guest = folder / "guest.raw"
    guest.write_bytes(code)
    return ["--binary", str(guest), "--entry", "0x100000", "--mem", "64M"]


def vibevmm(
    *options: str, typed: str = "", deadline: float = DEADLINE
) -> subprocess.CompletedProcess[str]:
    """`vibevmm run`, to its end, with ``typed`` in the pipe that is its standard input.

    It stops by itself, with status 4, before a test's patience ends, at ``deadline``.
    """
    sooner = str(deadline - _SOONER)
    return subprocess.run(
        [sys.executable, "-m", "launcher", "run", "--timeout", sooner, *options],
        cwd=ROOT,
        input=typed,
        capture_output=True,
        text=True,
        timeout=deadline,
    )


def every_device(folder: Path) -> list[str]:
    """Options for a device of each kind that the demo guest knows."""
    disk = folder / "disk.img"
    disk.write_bytes(bytes(64 * 512))
    return ["--disk", str(disk), "--console", "terminal", "--device", "rng"]


def run(folder: Path, image: bytes, *options: str) -> tuple[str, dict[str, Any]]:
    """What the guest printed, and the statistics; every kind of device is there. On a terminal the
    console's lines may fall into those of the serial port, which come a letter at a time."""
    stats, serial = folder / "stats.json", folder / "serial"
    files = ["--stats", str(stats), "--serial", f"file={serial}"]
    done = vibevmm(*raw(folder, image), *every_device(folder), *files, *options)
    assert done.returncode == 0, done.stderr
    return serial.read_text() + done.stdout, json.loads(stats.read_text())


def piped(command: list[str], typed: bytes, until: bytes) -> tuple[bytes, int]:
    """All that ``command`` prints, whose whole input is ``typed``, and its status: it has SIGTERM
    when it has printed ``until``."""
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(typed)
        process.stdin.close()
        printed = b""
        while until not in printed:
            data = os.read(process.stdout.fileno(), 4096)
            assert data, printed
            printed += data
        process.terminate()
        printed += process.stdout.read()
    return printed, process.returncode


class Running:
    """`vibevmm run` while it runs; ``screen`` is what it and its guest have written so far."""

    def __init__(self, process: subprocess.Popen[bytes], keyboard: int) -> None:
        assert process.stdout is not None
        self.process = process
        self.screen = ""
        self._keyboard = keyboard
        self._output = process.stdout.fileno()

    def type(self, keys: bytes) -> None:
        """Give ``keys`` to its standard input."""
        os.write(self._keyboard, keys)

    def wait_for(self, words: str) -> None:
        """Read the screen until it shows ``words``."""
        self._wait_for(words, 0)

    def wait_for_more(self, words: str) -> None:
        """Read the screen until it shows ``words`` behind what there is already."""
        self._wait_for(words, len(self.screen))

    def _wait_for(self, words: str, start: int) -> None:
        deadline = time.monotonic() + DEADLINE
        while words not in self.screen[start:]:
            left = deadline - time.monotonic()
            ready = select.select([self._output], [], [], max(0.0, left))[0]
            data = os.read(self._output, 4096) if ready else b""
            assert data, f"no {words!r}; the screen has {self.screen!r}"
            self.screen += data.decode()


@contextlib.contextmanager
def started(*options: str) -> Iterator[Running]:
    """`vibevmm run` on a terminal of its own; killed if it still runs when the block ends."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "launcher", "run", "--timeout", "60", *options],
        cwd=ROOT,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    os.close(theirs)
    try:
        with process:
            try:
                yield Running(process, ours)
            finally:
                process.kill()  # nothing, if it has ended
    finally:
        os.close(ours)
