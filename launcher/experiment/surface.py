"""What a device process can reach: measured from outside, where that can be, or counted.

A compromised device is taken for one that runs code of its own: it has what it holds and what the
kernel lets it call, and can send whatever is decoded from it.
"""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path
from typing import Any

from protocol import control, messages
from protocol.control import Description

ROOT = Path(__file__).parents[2]

# What stands between a compromised device and the rest, by level: of the jail what is enforced by
# our code (the kernel's is not counted), and what decodes what the device can send.
_CHANNEL = (
    "protocol/channel.py",
    "protocol/codec.py",
    "protocol/messages.py",
    "launcher/logs.py",
    "vmm/control.py",
    "vmm/remote.py",
)
_SEAL = (
    "devices/runtime/seal.py",
    "vmm/seal.py",
    "protocol/jail/*.py",
    "protocol/jail/[a-z]*.[ch]",
)
_MEDIATION = ("vmm/mediation/*.py", "vmm/mediation/[a-z]*.[ch]")
TRUSTED: dict[str, tuple[str, ...]] = {
    "none": (*_CHANNEL, "protocol/control.py", "protocol/service.py", "launcher/control.py"),
    "jail": (*_CHANNEL, *_SEAL),
    "bounce": (*_CHANNEL, *_SEAL, *_MEDIATION),
}

_SEALED = re.compile(r"subject sealed: (\d+) system calls")


def measure(isolation: str, pid: int, machine: Description, log: Path) -> dict[str, Any]:
    """Of the device with process ``pid`` of ``machine``, whose log is ``log``. What cannot be found
    out here is None."""
    readable, writable = guest_memory(pid, machine.name, machine.memory)
    kinds = len(messages.FROM_DEVICE)
    if isolation == "none":  # it may speak to the control interface, as its user
        kinds += len(control.TO_LAUNCHER)
    return {
        "readable_bytes": readable,
        "writable_bytes": writable,
        "system_calls": system_calls(isolation, log),
        "descriptors": descriptors(pid),
        "message_types": kinds,
        "trusted_lines": trusted_lines(isolation),
        "command": trusted_command(isolation),
    }


def descriptors(pid: int) -> int | None:
    """How many ``pid`` holds."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None


def guest_memory(pid: int, machine: str, size: int) -> tuple[int | None, int | None]:
    """Bytes of the memory of the guest of ``machine``, which has ``size``, that ``pid`` can read,
    and write: all of it by a descriptor, else what it has mapped."""
    name = f"/memfd:vibevmm-{machine} (deleted)"
    read = write = 0
    try:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            area, rights, _, _, _, *path = line.split(maxsplit=5)
            if path != [name]:
                continue
            begin, end = (int(address, 16) for address in area.split("-"))
            read += (end - begin) * ("r" in rights)
            write += (end - begin) * ("w" in rights)
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                if os.readlink(f"/proc/{pid}/fd/{fd}") != name:
                    continue
            except FileNotFoundError:
                continue  # closed meanwhile
            mode = int(_field(f"/proc/{pid}/fdinfo/{fd}", "flags:"), 8) & os.O_ACCMODE
            read = size if mode != os.O_WRONLY else read
            write = size if mode != os.O_RDONLY else write
    except OSError:
        return None, None
    return min(read, size), min(write, size)  # behind it there may be rings that are not its


def _field(path: str, name: str) -> str:
    lines = Path(path).read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(name))


def system_calls(isolation: str, log: Path) -> int | None:
    """How many a device may make: those of its filter, or if it has none the kernel's."""
    sealed = _SEALED.search(log.read_text(errors="replace"))
    if isolation != "none" and sealed and int(sealed[1]):
        return int(sealed[1])
    try:
        symbols = Path("/proc/kallsyms").read_text()
    except OSError:
        return None
    return len(set(re.findall(r" T __(?:x64|arm64)_sys_(\w+)", symbols))) or None


def trusted_lines(isolation: str) -> int:
    """Lines of what :data:`TRUSTED` has for this level."""
    return sum(len(Path(path).read_bytes().splitlines()) for path in _trusted(isolation))


def trusted_command(isolation: str) -> str:
    """What counts the same, in the project's folder; not what cffi writes, in C."""
    return f"cat {' '.join(TRUSTED[isolation])} | wc -l"


def _trusted(isolation: str) -> list[str]:
    return sorted(path for pattern in TRUSTED[isolation] for path in glob.glob(str(ROOT / pattern)))
