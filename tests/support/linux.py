"""A stock Debian guest: its kernel, an initramfs that tries every device, and what it reports."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support import initramfs
from tests.support.kernels import debian
from tests.support.packages import PROJECT

VIBEVMM = Path(sys.executable).with_name("vibevmm")

COMMAND_LINE = "console=ttyS0 quiet panic=-1"

_MODULES = ("virtio_mmio", "virtio_blk", "virtio_console", "virtio-rng", "pvpanic-mmio")


@dataclass(frozen=True, slots=True)
class Report:
    """How a run of the guest ended: exit status, the serial port's text, the console's text."""

    status: int
    serial: str
    console: str

    def says(self, pattern: str) -> re.Match[str] | None:
        """The first of the guest's own lines that matches ``pattern`` as a whole."""
        return re.search(rf"^guest: {pattern}\r?$", self.serial, re.MULTILINE)


def kernel() -> Path:
    """The unmodified bzImage of Debian's cloud kernel."""
    return debian("cloud-amd64").image


def vmlinux() -> Path:
    """The ELF file in that bzImage, which has a PVH entry."""
    return debian("cloud-amd64").vmlinux()


def initrd() -> Path:
    """The image whose init is ``tests/lab/l2_init.sh``."""
    script = (PROJECT / "tests" / "lab" / "l2_init.sh").read_text()
    return initramfs.build(debian("cloud-amd64"), script, _MODULES)


def make_disk(path: Path, size: int) -> Path:
    """An empty ext4 file system of ``size`` bytes in a new sparse file."""
    with path.open("wb") as file:
        file.truncate(size)
    subprocess.run(["/sbin/mkfs.ext4", "-q", "-F", str(path)], check=True)
    return path
