"""The same of qemu-storage-daemon's vhost-user-blk under QEMU, and of ours beside it.

Both run Debian's Linux on a CPU in software, ours on Unicorn and QEMU's on TCG, with the program
of tests/soak/io.c as all of its load: it tells of each read that took long, by the guest's clock.
The daemon is started again the moment that it is dead; QEMU connects again a second later, which
is the shortest that it can be told (``reconnect=1``).
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from launcher.api import VM
from protocol.errors import HostError
from tests.soak.program import program
from tests.support import initramfs
from tests.support.kernels import debian

KILLS = 10
# Seconds, arbitrary: between two kills, longer than either needs; for a guest to boot.
BETWEEN, BOOT = 3.0, 90.0
MODULES = ("virtio_mmio", "virtio_blk")
COMMAND_LINE = "console=ttyS0 quiet panic=-1"
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
for module in /modules/*; do insmod "$module"; done
echo load
exec /io stalls /dev/vda
"""


def measure() -> dict[str, object]:
    """Milliseconds without a completion after each kill."""
    try:
        kernel = debian("cloud-amd64")
        image = initramfs.build(kernel, INIT, MODULES, {"io": program()})
        found: dict[str, object] = {}
        for name, machine in {"vibevmm": _ours, "qemu-storage-daemon": _qemu}.items():
            with tempfile.TemporaryDirectory() as folder:
                waits = machine(Path(folder), kernel.image, image)
                found[f"in Linux on a software CPU, crash to completion, {name}"] = {
                    "median": round(statistics.median(waits), 1),
                    "all": [round(wait, 1) for wait in sorted(waits)],
                }
        return found
    except HostError as error:
        return {"against qemu-storage-daemon": str(error)}


def _ours(folder: Path, kernel: Path, image: Path) -> list[float]:
    disk = _disk(folder)
    reader, writer = os.pipe()
    with (
        open(reader, "rb", 0) as lines,
        open(writer, "wb", 0) as stdout,
        VM(
            kernel=kernel,
            initrd=image,
            cmdline=COMMAND_LINE,
            mem="256M",
            hypervisor="software",
            disk=disk,
            stdout=stdout,
        ) as vm,
    ):
        vm.wait_ready()
        return _waits(_Lines(lines.fileno()), lambda: vm.kill("blk0"))


def _qemu(folder: Path, kernel: Path, image: Path) -> list[float]:
    for name in ("qemu-system-x86_64", "qemu-storage-daemon"):
        if shutil.which(name) is None:
            raise HostError(f"no {name} here")
    with contextlib.ExitStack() as undo:
        daemon = _Daemon(folder)
        undo.callback(daemon.end)
        # fmt: off
        machine = subprocess.Popen(
            [
                "qemu-system-x86_64", "-M", "microvm,acpi=on,memory-backend=ram",
                "-accel", "tcg", "-cpu", "max", "-m", "256M",
                "-object", "memory-backend-memfd,id=ram,size=256M,share=on",
                "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio",
                "-global", "virtio-mmio.force-legacy=false",
                "-kernel", str(kernel), "-initrd", str(image), "-append", COMMAND_LINE,
                "-chardev", f"socket,id=blk,path={daemon.socket},reconnect=1",
                "-device", "vhost-user-blk,chardev=blk",
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        # fmt: on
        undo.callback(machine.wait)
        undo.callback(machine.kill)
        assert machine.stdout is not None
        return _waits(_Lines(machine.stdout.fileno()), daemon.crash)


class _Daemon:
    # qemu-storage-daemon, which serves a disk in ``folder``.

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "blk"
        self._disk = _disk(folder)
        self._process = self._start()
        until = time.monotonic() + BOOT
        while not self.socket.exists():
            if self._process.poll() is not None or time.monotonic() > until:
                raise HostError("qemu-storage-daemon does not start")
            time.sleep(0.01)

    def _start(self) -> subprocess.Popen[bytes]:
        # fmt: off
        return subprocess.Popen([
            "qemu-storage-daemon",
            "--blockdev", f"file,node-name=disk,filename={self._disk}",
            "--export", "vhost-user-blk,id=export,node-name=disk,writable=on,"
            f"addr.type=unix,addr.path={self.socket}",
        ])
        # fmt: on

    def crash(self) -> None:
        self.end()
        self._process = self._start()

    def end(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


class _Lines:
    # What a guest prints, line by line.

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rest = b""

    def until(self, deadline: float) -> Iterator[str]:
        """Those that come before that time of time.monotonic(); HostError if it ends."""
        while ready := select.select([self._fd], [], [], max(0, deadline - time.monotonic()))[0]:
            assert ready
            data = os.read(self._fd, 4096)
            if not data:
                raise HostError(f"the guest has ended: {self._rest.decode(errors='replace')}")
            *lines, self._rest = (self._rest + data).split(b"\n")
            yield from (line.decode(errors="replace").strip() for line in lines)


def _waits(lines: _Lines, kill: object) -> list[float]:
    # The longest of the guest's reads after each kill.
    assert callable(kill)
    if not any("load" in line for line in lines.until(time.monotonic() + BOOT)):
        raise HostError(f"the guest does not boot within {BOOT:g} s")
    waits = []
    list(lines.until(time.monotonic() + 1.0))
    for number in range(KILLS):
        kill()
        said = list(lines.until(time.monotonic() + BETWEEN))
        told = [int(took) for took in re.findall(r"^stall (\d+)", "\n".join(said), re.MULTILINE)]
        if not told:
            raise HostError(f"kill {number + 1}: no read ended late; the guest said {said}")
        waits.append(max(told) / 1e3)
    return waits


def _disk(folder: Path) -> Path:
    disk = folder / "disk.img"
    disk.write_bytes(bytes(4 << 20))
    return disk
