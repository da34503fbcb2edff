"""A machine that is attacked from within, and what was seen of that.

::

    hostile devices ──► their chains     the guest: how they ended, whether its canary lives,
         │                               whether the victim, a device beside them, answers
         ├──► bait: a secret file, sockets that somebody listens on
         └──► the log: what they say, and what is said of them

What a hostile device claims counts only where it has evidence of what it cannot know otherwise.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from devices import hostile
from launcher import guardian, rundir
from launcher.api import VM
from launcher.attack.table import Attack, Outcome
from protocol.errors import HostError, VibeError

AT_ONCE = 11
"""Devices of one machine that may be hostile: the slots of any type, but one for the victim."""

VICTIM = "victim"
"""The name of the device that has nothing to do with it."""

# What all devices are in where they share a process.
_SHARED = "shared"

_KIND = "devices.hostile:Hostile"
_ENTRY, _PARAMETERS = 0x100000, 8
_FIRST_SLOT = 3  # of devices of any type (docs/architecture.md)

# What a hostile device's chain may take, in 2^30 cycles of the guest; seconds of the whole; those
# after which a device hangs: all arbitrary.
_PATIENCE, _LONGEST, _HANG_AFTER = 24, 60.0, 2.0

# Seconds between two looks at the VMM (arbitrary).
_LOOK = 0.05

_DISK_SECTORS = 64
_GREETING = b"bait"
_LOGGED = re.compile(r"^\S+ (\S+) (\w+) (.*)$")
_REPORT = re.compile(
    r"forbidden system call \S+ \(\d+\)|(?:is killed|was killed|was refused).*|needs? .*reset.*"
    r"|.*lines were held back.*|hangs.*|hung.*|.*broke.*|.*bug: .*"
)


@dataclass(slots=True)
class _Seen:
    # Of one machine: lines of the guest about each device or mistake, log lines by device, and how
    # the machine ended; by how many bytes the VMM has grown meanwhile.
    said: dict[str, dict[str, str]]
    cases: dict[str, list[str]]
    logged: dict[str, list[str]]
    status: int
    is_over: bool
    bait: _Bait
    secret: str
    grown: int = 0


def attacked(
    attacks: Sequence[Attack], level: str, hypervisor: str = "auto", grouping: str = "own"
) -> dict[str, Outcome]:
    """What comes of each of ``attacks`` by devices that are held at ``level``; those of guests on a
    disk held so. ``shared``: all devices of a machine are in one process. HostError."""
    by_devices = [attack for attack in attacks if attack.by == "device"]
    # With a neighbour in its process nobody is told apart: then each has a machine of its own.
    most = 1 if grouping == "shared" else AT_ONCE
    found: dict[str, Outcome] = {}
    for first in range(0, len(by_devices), most):
        some = by_devices[first : first + most]
        seen = _run([attack.name for attack in some], level, hypervisor, grouping)
        found |= {attack.name: _of_device(attack, seen) for attack in some}
    if by_guest := [attack for attack in attacks if attack.by == "guest"]:
        seen = _run(["change-config"], level, hypervisor, grouping, with_disk=True)
        found |= {attack.name: _of_guest(attack, seen) for attack in by_guest}
    return {attack.name: found[attack.name] for attack in attacks}


def _of_device(attack: Attack, seen: _Seen) -> Outcome:
    name = attack.name
    said, lines = seen.said.get(name), seen.logged.get(name, [])
    if said is None or not seen.is_over or seen.status != 0:
        return Outcome("succeeded", f"the machine did not survive it: status {seen.status}")
    if said["canary"] != "intact" and name != "write-canary":
        return Outcome("succeeded", "the guest's canary is overwritten")
    if int(said["victim"]) == 0:
        return Outcome("succeeded", "the device beside it did not answer any more")
    claimed = _after(lines, hostile.SUCCEEDED)
    if (proof := _proof(name, said, claimed, seen)) is not None:
        return Outcome("succeeded", proof)
    reports = [report.group(0)[:120] for line in lines if (report := _REPORT.search(line))]
    if told := [report for report in reports if re.search(attack.told, report)]:
        return Outcome("reported", told[0])
    if reports:
        return Outcome("contained", f"by what is not meant to: {reports[0]}")
    failed = _after(lines, hostile.FAILED)
    return Outcome("contained", failed or f"the guest: {_told(said)}")


def _proof(name: str, said: Mapping[str, str], claimed: str | None, seen: _Seen) -> str | None:
    # That it did what it wanted, or None: by the guest where it has to notice, else by what was
    # to be found out, else by what was claimed where only who did it can know.
    match name:
        case "write-canary":
            return "the guest's canary is overwritten" if said["canary"] != "intact" else None
        case "write-late" | "write-given-back":
            return "the buffer changed later" if said["late"] == "changed" else None
        case "corrupt-used":
            return f"the guest was lied to: {said['lie']}" if said["lie"] != "no" else None
        case "read-canary":
            return f"canary {claimed}" if claimed == seen.secret else None
        case "read-file" | "early-read-file" | "receive-descriptor":
            return f"secret {claimed}" if claimed == seen.bait.secret else None
        case "send-unending":
            return f"the VMM grew by {seen.grown >> 20} MiB" if seen.grown > _MUCH else None
        case "send-descriptor":
            return claimed if seen.bait.received else None
        case _:
            return claimed


# Bytes by which no honest device lets the VMM grow (arbitrary: it is 1 MiB with one).
_MUCH = 16 << 20


def _of_guest(attack: Attack, seen: _Seen) -> Outcome:
    said = seen.said.get(attack.name)
    if said is None or not seen.is_over or seen.status != 0:
        return Outcome("succeeded", f"the machine did not survive it: status {seen.status}")
    if said["canary"] != "intact":
        return Outcome("succeeded", "the canary is overwritten")
    if said["wrong"] == "yes" or said["serves"] != "yes":
        return Outcome("succeeded", f"the disk: {_told(said)}")
    if attack.name == "many-errors" and len(seen.logged.get("disk", [])) > _MOST_LINES:
        return Outcome("succeeded", f"{len(seen.logged['disk'])} lines of log")
    return Outcome("contained", ", ".join(seen.cases[attack.name]))


# Of the disk's, in the log: what a burst and some seconds allow (launcher.logs), and much less
# than there were errors.
_MOST_LINES = 1500


def _told(said: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in said.items())


def _after(lines: Sequence[str], mark: str) -> str | None:
    return next((line.partition(mark)[2] for line in lines if mark in line), None)


def _run(
    names: Sequence[str], level: str, hypervisor: str, grouping: str, *, with_disk: bool = False
) -> _Seen:
    held, dies = f"isolation={level}", ",on-death=fail-io"
    if grouping == "shared":  # what becomes of one becomes of all
        held, dies = f"{held},process={_SHARED}", ""
    machine = f"attack-{secrets.token_hex(4)}"
    secret = secrets.token_bytes(12)
    with guardian.folder("vibevmm-attack-") as folder, _Bait(str(folder)) as bait:
        image = folder / "guest.raw"
        image.write_bytes(program(_PATIENCE, secret))
        devices = [f"rng,id={VICTIM},{held}"]
        run = rundir.path_of(machine)
        options = f"machine={run},bait={folder},port={bait.port},victim={VICTIM}"
        devices += [f"{_KIND},id={name}{dies},{held},attack={name},{options}" for name in names]
        if with_disk:
            disk = folder / "disk.img"
            disk.write_bytes(b"\x5a" * 512 * _DISK_SECTORS)
            devices.append(f"blk,path={disk},id=disk,{held}")
        with VM(
            name=machine,
            devices=devices,
            binary=image,
            entry=_ENTRY,
            mem="64M",
            hypervisor=hypervisor,
            hang_after=_HANG_AFTER,
            timeout=_LONGEST,
            serial=f"file={folder / 'serial'}",
            log_file=folder / "log",
        ) as vm:
            with contextlib.suppress(HostError):  # it ends soon enough to be gone already
                vm.wait_ready()
            status, grown = _watch(vm)
        serial = _read(folder / "serial")
        if not serial:
            raise HostError(f"the guest said nothing; {_read(folder / 'log').strip()}")
        logged: dict[str, list[str]] = {}
        for line in _read(folder / "log").splitlines():
            if matched := _LOGGED.match(line):
                who, _, text = matched.groups()
                # What others say of it begins with its name; a shared process has its own.
                about = text.split(" ", 1)[0].rstrip(":;,")
                about = names[0] if who == _SHARED else about
                logged.setdefault(about if about in names else who, []).append(text)
        said, cases = _understood(serial, names)
        return _Seen(said, cases, logged, status, _OVER in serial, bait, secret.hex(), grown)


_OVER = "attack: over"


def _understood(
    serial: str, names: Sequence[str]
) -> tuple[dict[str, dict[str, str]], dict[str, list[str]]]:
    # By device, or by mistake: what the guest said of it, and of each case of a mistake.
    said: dict[str, dict[str, str]] = {}
    cases: dict[str, list[str]] = {}
    pending: list[str] = []
    for line in serial.splitlines():
        kind, _, rest = line.partition(": ")
        if kind not in ("attack", "hazard") or "=" not in rest:
            continue
        words = dict(word.split("=", 1) for word in rest.split())
        if "slot" in words:
            at = int(words.pop("slot")) - _FIRST_SLOT - 1
            said[names[at]] = words
        elif "case" in words:
            pending.append(f"{words['case']} {words['end']} {words['status']}")
        elif "name" in words:
            name = words.pop("name")
            said[name], cases[name], pending = words, pending, []
    return said, cases


def _watch(vm: VM) -> tuple[int, int]:
    # Its exit status, and by how many bytes its VMM has grown until then.
    first = last = 0
    vmm = 0
    with contextlib.suppress(VibeError, StopIteration):
        vmm = next(each.pid for each in vm.describe().processes if each.kind == "vmm")
        first = last = _memory(vmm)
    for _ in range(int((_LONGEST + 30) / _LOOK)):
        last = max(last, _memory(vmm))
        with contextlib.suppress(HostError):
            return vm.wait(_LOOK), last - first
    raise HostError("the machine does not end")


def _memory(pid: int) -> int:
    # Bytes that it has had at most; 0 if it is gone, or somebody else's.
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def program(patience: int, secret: bytes) -> bytes:
    """The image of the guest, whose canary has ``secret``, of 12 bytes."""
    try:
        image = bytearray(resources.files(__package__).joinpath("attack.raw").read_bytes())
    except FileNotFoundError:
        raise HostError("the guest that is attacked is not built: make") from None
    assert image[_PARAMETERS : _PARAMETERS + 4] == b"PARM"
    struct.pack_into("<I12s", image, _PARAMETERS + 4, patience, secret)
    return bytes(image)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""


@dataclass
class _Bait:
    # Outside of the machine: a secret file, and listeners which greet, and give the file away.
    folder: str
    port: int = 0
    secret: str = field(default_factory=lambda: secrets.token_hex(16))
    received: int = 0
    _listening: list[socket.socket] = field(default_factory=list)

    def __enter__(self) -> _Bait:
        path = os.path.join(self.folder, "socket")
        Path(self.folder, "secret").write_text(self.secret)
        for family, address in (
            (socket.AF_INET, ("127.0.0.1", 0)),
            (socket.AF_UNIX, path),
            (socket.AF_UNIX, f"\0{path}"),
        ):
            listener = socket.socket(family)
            listener.bind(address)
            listener.listen()
            self._listening.append(listener)
            threading.Thread(target=self._greet, args=[listener], daemon=True).start()
        self.port = self._listening[0].getsockname()[1]
        return self

    def __exit__(self, *error: object) -> None:
        for listener in self._listening:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _greet(self, listener: socket.socket) -> None:
        while True:
            try:
                found, _ = listener.accept()
            except OSError:  # closed
                return
            with found, contextlib.suppress(OSError):
                self._talk(found)

    def _talk(self, found: socket.socket) -> None:
        if found.family is not socket.AF_UNIX:
            found.send(_GREETING)
            return
        with open(os.path.join(self.folder, "secret"), "rb") as secret:
            socket.send_fds(found, [_GREETING], [secret.fileno()])
        found.settimeout(0.5)
        _, fds, _, _ = socket.recv_fds(found, 64, 1)
        for fd in fds:
            self.received += 1
            os.close(fd)
