"""docs/add-a-device.md: its commands are run, in order, and print what stands there."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.guest import KERNELS, build

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "add-a-device.md").read_text()

DEADLINE = 60.0
MARK = "-- that was all --"
# Commands that only look: what they look for may take a moment to happen.
LOOKING = ("cat ",)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def steps() -> Iterator[tuple[str, str]]:
    """Every command on the page, with what it prints."""
    for block in blocks("console"):
        for step in block.removeprefix("$ ").split("\n$ "):
            command, _, output = step.partition("\n")
            yield command, output if not output or output.endswith("\n") else output + "\n"


class Shell:
    """A shell in ``folder``."""

    def __init__(self, folder: Path, runtime: str) -> None:
        path = f"{Path(sys.executable).parent}:{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"
        self._process = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env={**os.environ, "PATH": path, "GUESTS": str(KERNELS), "XDG_RUNTIME_DIR": runtime},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._printed = ""

    def run(self, command: str, wanted: str) -> None:
        """Run ``command``, until it has printed ``wanted``."""
        until = time.monotonic() + DEADLINE
        while True:
            self._type(f"{command}\necho '{MARK}'\n")
            printed = self._read(until, MARK + "\n").replace(MARK + "\n", "")
            while command.endswith("&") and printed.count("\n") < wanted.count("\n"):
                printed += self._read(until, "\n")
            if without_numbers(printed) == without_numbers(wanted):
                return
            assert command.startswith(LOOKING), f"{command}: {printed}"
            assert time.monotonic() < until, f"{command}: {printed}"
            time.sleep(0.05)

    def _type(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode())
        self._process.stdin.flush()

    def _read(self, until: float, end: str) -> str:
        assert self._process.stdout is not None
        while end not in self._printed:
            left = max(0.0, until - time.monotonic())
            ready = select.select([self._process.stdout], [], [], left)[0]
            data = os.read(self._process.stdout.fileno(), 4096) if ready else b""
            assert data, f"no {end!r} in {self._printed!r}"
            # What a shell says of a process of its own that was killed.
            self._printed = re.sub(r"bash: line .* Killed .*\n", "", self._printed + data.decode())
        found, _, self._printed = self._printed.partition(end)
        return found + end

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


def without_numbers(text: str) -> str:
    return re.sub(r"\d+(\.\d+)?", "N", text)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    build()
    with tempfile.TemporaryDirectory(prefix="vibe-") as runtime:
        made = Shell(tmp_path, runtime)
        yield made
        made.close()


def test_device_is_complete_in_under_40_lines() -> None:
    (device,) = blocks("python")

    assert device == (ROOT / "tests" / "support" / "shout.py").read_text()
    assert device.count("\n") < 40


@pytest.mark.slow
def test_commands_print_what_the_page_says(shell: Shell, tmp_path: Path) -> None:
    (device,) = blocks("python")
    (tmp_path / "shout.py").write_text(device)
    done = []

    for command, wanted in steps():
        shell.run(command, wanted)
        done.append(command.split()[:2])

    # All that the page promises.
    assert ["vibevmm", "run"] in done
    assert ["vibevmm", "device"] in done
    assert ["vibevmm", "kill"] in done
    assert ["vibevmm", "swap"] in done
    shell.run("wait %1; echo $?", "0\n")
    assert (tmp_path / "log").read_text().count("recovered") == 1
