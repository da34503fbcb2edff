"""The load guest (tests/kernels/load): started with a load to keep up, and its tape read.

::

    begin ── marks ── load … power button … ── marks ── tape ── power-off
             ':  both sides note the time of each, which brings the guest's clock to ours
"""

from __future__ import annotations

import os
import struct
import threading
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from launcher.api import VM
from launcher.experiment.file import Experiment, Load, device_id, with_path
from launcher.experiment.matrix import Cell
from protocol.errors import HostError
from protocol.virtio import DeviceId

SUBJECT = "subject"
"""The name of the device that is measured."""

_ENTRY = 0x100000
_PARAMETERS = 8  # where the image has them: a magic word, then operation, wait, depth, size
_READ, _WRITE, _TAKE = range(3)

_DISK_SIZE = 16 << 20  # arbitrary: it stays in the page cache, for the device is measured
_TAPE_SIZE = (16 << 20) + 4096  # by which the guest knows it
_HEADER = struct.Struct("<8s3Q16Q")
_MARKS, _RECORDS_AT = 8, 4096

# Seconds, arbitrary: for the guest to begin and to end, and beyond what it is to work, after which
# a machine whose experiment was killed ends by itself.
_PATIENCE, _ORPHANED = 60.0, 120.0


@dataclass(frozen=True, slots=True)
class Tape:
    """What the guest has noted: when each request was given and answered, in the order of the
    answers, in seconds of this host's CLOCK_MONOTONIC; how many failed, and how many came when the
    tape was full."""

    given: Sequence[float]
    answered: Sequence[float]
    failed: int
    dropped: int


class Loaded:
    """A machine ``vm`` under load; ``pid`` is the measured device's, ``log`` the machine's file."""

    def __init__(self, vm: VM, pid: int, log: Path, tape: Path, marks: _Marks) -> None:
        self.vm, self.pid, self.log = vm, pid, log
        self._tape, self._marks = tape, marks

    def end(self) -> Tape:
        """Press the power button; what the guest has noted."""
        self.vm.stop(timeout=_PATIENCE)
        self._marks.wait_for(2 * _MARKS)
        return read_tape(self._tape.read_bytes(), self._marks.times)


@contextmanager
def loaded(
    experiment: Experiment, cell: Cell, load: Load, folder: Path, *, inject: bool = False
) -> Iterator[Loaded]:
    """A machine with the device of ``cell``, held as that says, and the guest that loads it; its
    files are in ``folder``."""
    image, disk, tape = folder / "guest.raw", folder / "disk.img", folder / "tape.img"
    kind = device_id(cell.device)
    image.write_bytes(program(load, kind))
    if kind == DeviceId.BLOCK:
        disk.write_bytes(bytes(_DISK_SIZE))
    with tape.open("wb") as file:
        file.truncate(_TAPE_SIZE)
    held = f"isolation={cell.isolation}"
    devices = [f"{with_path(cell.device, str(disk))},id={SUBJECT},{held}"]
    if cell.grouping == "shared":
        held += ",process=shared"
        devices[0] += ",process=shared"
        devices += [f"rng,{held}", f"console,backend=pty,{held}"]
    devices.append(f"blk,path={tape},id=tape")
    terminal, theirs = os.pipe2(os.O_CLOEXEC)
    marks = _Marks(terminal)
    longest = experiment.seconds + experiment.strikes * (experiment.hang_after + 1)
    try:
        try:
            vm = VM(
                devices=devices,
                binary=image,
                entry=_ENTRY,
                mem="64M",
                hypervisor=experiment.hypervisor,
                hang_after=experiment.hang_after,
                stats=True,
                allow_inject=inject,
                timeout=longest + _ORPHANED,
                log="info",
                log_file=folder / "log",
                stdout=theirs,
            )
        finally:
            os.close(theirs)
        with vm:
            vm.wait_ready()
            pid = next(p.pid for p in vm.describe().processes if p.name == SUBJECT)
            marks.wait_for(_MARKS)
            yield Loaded(vm, pid, folder / "log", tape, marks)
    finally:
        marks.join(_PATIENCE)  # all who could write to it are gone


def program(load: Load, kind: DeviceId) -> bytes:
    """The image of the guest that keeps up ``load`` on a device of ``kind``."""
    try:
        image = bytearray(resources.files(__package__).joinpath("load.raw").read_bytes())
    except FileNotFoundError:
        raise HostError("the guest that makes load is not built: make") from None
    assert image[_PARAMETERS : _PARAMETERS + 4] == b"PARM"
    operation = {"read": _READ, "write": _WRITE}[load.operation]
    words = (_TAKE if kind == DeviceId.ENTROPY else operation, 1, load.depth, load.size)
    struct.pack_into("<4I", image, _PARAMETERS + 4, *words)
    return bytes(image)


def read_tape(tape: bytes, heard: Sequence[float]) -> Tape:
    """What is on ``tape``, of a guest whose marks were ``heard`` at these times."""
    magic, count, dropped, failed, *marks = _HEADER.unpack_from(tape)
    if magic != b"VIBELOAD":
        raise HostError("the load guest has written no tape")
    clock = Clock.of(marks, heard)
    cycles = array("Q", tape[_RECORDS_AT : _RECORDS_AT + 16 * count])
    return Tape(
        [clock.time(each) for each in cycles[0::2]],
        [clock.time(each) for each in cycles[1::2]],
        failed,
        dropped,
    )


@dataclass(frozen=True, slots=True)
class Clock:
    """The guest's: at cycle ``cycles`` it was ``seconds`` here, and one takes so long."""

    cycles: int
    seconds: float
    each: float

    @classmethod
    def of(cls, marks: Sequence[int], heard: Sequence[float]) -> Clock:
        """From when marks were sent, in cycles, and heard: half of them at the begin and half at
        the end. Some are late, none early: of each half the least late one counts."""
        half = len(marks) // 2
        rough = (heard[-1] - heard[0]) / (marks[-1] - marks[0])
        first, last = (
            min(part, key=lambda number: heard[number] - marks[number] * rough)
            for part in (range(half), range(half, 2 * half))
        )
        each = (heard[last] - heard[first]) / (marks[last] - marks[first])
        return cls(marks[first], heard[first], each)

    def time(self, cycles: int) -> float:
        """When the guest's clock said ``cycles``."""
        return self.seconds + (cycles - self.cycles) * self.each


class _Marks(threading.Thread):
    # When the guest has sent each of its marks, and what else it has said.

    def __init__(self, terminal: int) -> None:
        super().__init__(daemon=True)
        self._terminal = terminal
        self._came = threading.Condition()
        self._is_over = False
        self.times: list[float] = []
        self._said = bytearray()
        self.start()

    def run(self) -> None:
        while data := os.read(self._terminal, 4096):
            now = time.monotonic()
            with self._came:
                if not self._said and len(self.times) < 2 * _MARKS:
                    marks = len(data) - len(data.lstrip(b"."))
                    self.times += [now] * marks
                    data = data[marks:]
                self._said += data
                self._came.notify_all()
        os.close(self._terminal)
        with self._came:
            self._is_over = True
            self._came.notify_all()

    def wait_for(self, count: int) -> None:
        with self._came:
            done = self._came.wait_for(
                lambda: len(self.times) >= count or self._is_over or self._said, _PATIENCE
            )
            if len(self.times) < count:
                said = self._said.decode(errors="replace").strip()
                late = "" if done else f"has said nothing for {_PATIENCE:g} s"
                raise HostError(f"the load guest: {said or late or 'ended early'}")
