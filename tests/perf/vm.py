"""A VM from the command line, for figures about whole processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Prints one byte on the serial port with its second instruction.
_PRINT = bytes.fromhex("66baf803 ee")  # mov $0x3f8, %dx; out %al, (%dx)
SLEEP = _PRINT + bytes.fromhex("fa f4 ebfd")  # cli; 1: hlt; jmp 1b
# mov $0x604, %dx; mov $SLP_EN | 5 << 10, %ax; out %ax, (%dx): ACPI's S5
POWER_OFF = _PRINT + bytes.fromhex("66ba0406 66b80034 66ef") + SLEEP


def start(folder: Path, program: bytes, *options: str) -> subprocess.Popen[bytes]:
    """``vibevmm run`` of ``program``, with three devices; its stdout is a pipe."""
    guest = folder / "guest.raw"
    guest.write_bytes(program)
    disk = folder / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    command = [sys.executable, "-m", "launcher", "run", "--binary", guest, "--entry", "0x100000"]
    devices = ["--disk", disk, "--console", "pty", "--device", "rng"]
    return subprocess.Popen(
        [*map(str, command), "--mem", "64M", *map(str, devices), *options],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
