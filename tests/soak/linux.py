"""Linux as the guest of a soak: Debian's kernel, a file system and raw blocks on one disk."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from launcher.api import VM
from tests.soak.harness import PATIENCE, Gap, GuestClock, Problem, Verdict
from tests.soak.program import program
from tests.support import initramfs
from tests.support.kernels import debian
from tests.support.packages import program as installed

MODULES = ("virtio_mmio", "virtio_blk", "virtio_console", "virtio-rng")
# The file system has the first half; the rest is for raw blocks (linux_init.sh).
DISK_SIZE, FILE_SYSTEM = 64 << 20, "32M"
# Seconds until it is under load (arbitrary: a boot takes ten, more on a busy machine).
BOOT = 180.0


class Linux:
    """On ``hypervisor``, its devices held by ``isolation``; with ``fio``, a static program, the raw
    blocks are that's for ``seconds``, which must be more than the steps take."""

    devices = ("blk0", "rng0", "console0")
    expected = ""

    def __init__(
        self,
        hypervisor: str,
        fio: Path | None = None,
        seconds: int = 60,
        isolation: str = "jail",
    ) -> None:
        self._isolation = isolation
        self._hypervisor, self._fio, self._seconds = hypervisor, fio, seconds
        self._reader: _Reader | None = None
        self._begun = self._ended = 0.0

    def options(self, folder: Path) -> dict[str, Any]:
        """See harness.Guest."""
        kernel, image = image_of(self._fio)
        self._disk, self._serial = folder / "disk.img", folder / "serial"
        with self._disk.open("wb") as file:
            file.truncate(DISK_SIZE)
        make = [installed("mkfs.ext4"), "-q", "-F", str(self._disk), FILE_SYSTEM]
        subprocess.run(make, check=True)
        self._socket = folder / "console"
        self._socket.unlink(missing_ok=True)
        return {
            "kernel": kernel,
            "initrd": image,
            "cmdline": f"console=ttyS0 panic=-1 quiet soak.seconds={self._seconds}",
            "mem": "512M",
            "hypervisor": self._hypervisor,
            "isolation": self._isolation,
            "stdout": self._serial.open("wb"),
            "disk": self._disk,
            "console": f"backend=socket,path={self._socket}",
            "devices": ["rng"],
        }

    def begin(self, vm: VM) -> None:
        """See harness.Guest."""
        self._wait_for("listening")
        self._reader = _Reader(self._socket)
        self._reader.type(b"begin\n")
        self._begun = self._wait_for("begun")

    def end(self, vm: VM) -> None:
        """See harness.Guest."""
        assert self._reader is not None
        self._reader.type(b"end\n")
        with contextlib.suppress(Problem):  # it is gone, which the verdict says
            self._ended = self._wait_for("ended", BOOT + self._seconds)
        vm.wait(BOOT + self._seconds)
        self._reader.join(PATIENCE)

    def verdict(self) -> Verdict:
        """See harness.Guest."""
        assert self._reader is not None
        said = self._said()
        verdict = Verdict(errors=re.findall(r"soak: FAILED: (.*?)\r?$", said, re.MULTILINE))
        if not re.search(r"^soak: done", said, re.MULTILINE):
            verdict.errors.append(f"the guest did not finish: {said[-500:]!r}")
            return verdict
        counts = dict(re.findall(r"^soak: (raw|files|entropy|lines) (\d+)", said, re.MULTILINE))
        if fio := re.search(r"^soak: fio total=(\d+),(\d+)", said, re.MULTILINE):
            counts["raw"] = str(int(fio[1]) + int(fio[2]))
        verdict.gaps = stalls(said, self._begun, self._ended)
        verdict.requests = {what: int(count) for what, count in counts.items()}
        corrupt = re.compile(r"differs|verif", re.IGNORECASE)
        verdict.corrupted = sum(corrupt.search(error) is not None for error in verdict.errors)
        wrong = check_lines(self._reader.said(), verdict.requests["lines"])
        verdict.lost += len(wrong)
        verdict.errors += wrong
        check = [installed("e2fsck"), "-f", "-n", str(self._disk)]
        checked = subprocess.run(check, capture_output=True, text=True)
        if checked.returncode:
            verdict.errors.append(f"the file system is not clean: {checked.stdout[-300:]}")
        return verdict

    def close(self) -> None:
        """See harness.Guest."""
        if self._reader is not None:
            self._reader.close()

    def _wait_for(self, what: str, patience: float = BOOT) -> float:
        # The time at which the guest was there.
        deadline = time.monotonic() + patience
        while f"soak: {what}" not in self._said():
            if time.monotonic() >= deadline:
                raise Problem(f"it is not {what}: {self._said()[-500:]!r}")
            time.sleep(0.002)  # the guest's clock is brought to ours by when it said so
        return time.monotonic()

    def _said(self) -> str:
        return self._serial.read_text(errors="replace")


def check_lines(said: str, count: int) -> list[str]:
    """What is wrong with ``said``, of which all ``count`` lines must be there, in order."""
    wanted = [*map(line, range(count)), "the end"]
    found = said.splitlines()
    if found == wanted:
        return []
    pairs = zip(wanted, found, strict=False)
    number = next((at for at, (one, other) in enumerate(pairs) if one != other), len(found))
    what = found[number] if number < len(found) else "missing"
    return [f"of {count} lines of hvc0, line {number} is {what!r}"]


def stalls(said: str, begun: float, ended: float) -> list[Gap]:
    """The requests that took long, as the guest has told, whose clock was read at ``begun`` and
    ``ended`` of time.monotonic()."""
    then, now = (
        int(time) for time in re.findall(r"^soak: (?:begun|ended) (\d+)", said, re.MULTILINE)
    )
    clock = GuestClock((then, begun), (now, ended))
    return [
        clock.gap(device, int(end) - int(took), int(end))
        for device, took, end in re.findall(
            r"^soak: stall (\w+) (\d+) until (\d+)", said, re.MULTILINE
        )
    ]


def line(number: int) -> str:
    """What io.c says as the ``number``-th line of hvc0."""
    return f"line {number} of the guest, numbered and with nothing left out"


def image_of(fio: Path | None = None) -> tuple[Path, Path]:
    """Kernel and initramfs; what is missing is downloaded and built."""
    init = Path(__file__).with_name("linux_init.sh").read_text()
    files = {"io": program()} | ({"fio": fio} if fio is not None else {})
    kernel = debian("cloud-amd64")
    return kernel.image, initramfs.build(kernel, init, MODULES, files)


class _Reader(threading.Thread):
    # The host's end of hvc0.

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(path))
        self._heard = bytearray()
        self.start()

    def run(self) -> None:
        """Until the machine hangs up."""
        try:
            while data := self._socket.recv(65536):
                self._heard += data
        except OSError:
            return

    def type(self, words: bytes) -> None:
        self._socket.sendall(words)

    def said(self) -> str:
        return self._heard.decode(errors="replace")

    def close(self) -> None:
        self._socket.close()
