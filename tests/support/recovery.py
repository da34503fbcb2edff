"""A machine whose processes a test kills, and what the launcher tells of it."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.leaks import children
from tests.support.vibevmm import DEADLINE, ROOT, raw


class Victim:
    """`vibevmm run` while it runs, with the log of its launcher in ``log``."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.printed = ""
        self._log = log

    @property
    def log(self) -> str:
        """All lines so far."""
        return self._log.read_text() if self._log.exists() else ""

    def pids(self) -> dict[str, int]:
        """The launcher's children: those that it started by their modules (``vmm``, ``zygote``),
        those that were forked by what they call themselves."""
        found = {}
        for pid in children(self.process.pid):
            with contextlib.suppress(OSError):  # it ended meanwhile
                name = Path(f"/proc/{pid}/comm").read_text().strip()
                module = Path(f"/proc/{pid}/cmdline").read_bytes()
                if not module or b"launcher" in module:
                    continue  # it has ended, or is a guardian, which is there while it is needed
                if not name.startswith("python"):
                    found[name] = pid
                else:  # the zygote comes before those of its children that have no name yet
                    found.setdefault("zygote" if b"zygote" in module else "vmm", pid)
        return found

    def send(self, name: str, number: signal.Signals) -> int:
        """Send a signal to the process of that name, once there is one; its pid."""
        sent: list[int] = []

        def send() -> bool:
            pid = self.pids().get(name)
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):  # it ended meanwhile: the next one
                    os.kill(pid, number)
                    sent.append(pid)
            return bool(sent)

        self.until(send, f"a process {name}")
        return sent[0]

    def kill(self, name: str) -> int:
        """SIGKILL; the pid."""
        return self.send(name, signal.SIGKILL)

    def wait_for(self, pattern: str, count: int = 1) -> list[str]:
        """Wait until ``count`` lines of the log match; those lines."""

        def lines() -> list[str]:
            return [line for line in self.log.splitlines() if re.search(pattern, line)]

        self.until(lambda: len(lines()) >= count, f"{count} of {pattern!r}")
        return lines()

    def wait_for_print(self, words: str) -> None:
        """Wait until the guest has printed ``words``."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + DEADLINE
        while words not in self.printed:
            left = max(0.0, deadline - time.monotonic())
            ready = select.select([self.process.stdout], [], [], left)[0]
            data = os.read(self.process.stdout.fileno(), 4096) if ready else b""
            assert data, f"no {words!r} in {self.printed!r}; the log has {self.log}"
            self.printed += data.decode()

    def until(self, condition: object, what: str) -> None:
        """Look until ``condition()`` is true; a failure if the run ends before, or at DEADLINE."""
        assert callable(condition)
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert self.process.poll() is None, f"it ended without {what}; the log has {self.log}"
            assert time.monotonic() < deadline, f"no {what}; the log has {self.log}"
            time.sleep(0.002)

    def end(self) -> tuple[int, str]:
        """Wait until it ends by itself; its status, and what it and the guest have written."""
        out, _ = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, self.printed + out.decode()


@contextlib.contextmanager
def victim(
    folder: Path,
    image: bytes,
    *options: str,
    on_death: str = "restart",
    before: Sequence[str] = (),
    external: str = "",
    setting: str = "queues=1",
) -> Iterator[Victim]:
    """A machine that runs ``image``, with a disk of that ``setting``, which is an ``external``
    device maybe, a console and entropy; killed at the block's end if it still runs. ``before`` are
    the words of a command that runs it."""
    disk = folder / "disk.img"
    if not external:
        disk.write_bytes(bytes(8 << 20))
        disk.chmod(0o666)  # whoever runs it
    log = folder / "log"
    devices = (
        *(
            ("--device", external)
            if external
            else ("--disk", f"{disk},on-death={on_death},{setting}")
        ),
        *("--console", "terminal"),
        *("--device", "rng"),
    )
    process = subprocess.Popen(
        [
            *before,
            *(sys.executable, "-m", "launcher", "run", "--timeout", str(DEADLINE - 30)),
            *(*raw(folder, image), *devices, "--log", "info", "--log", "launcher=debug"),
            *("--log-file", str(log), *options),
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    with process:
        try:
            yield Victim(process, log)
        finally:
            process.kill()  # nothing, if it has ended
