"""What is done in a cell: one function a trial, which returns raw samples, and their table.

Raw samples are what JSON knows; times are in microseconds from the begin of the load. Figures are
made of them later (measures), and again whenever somebody wants others.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.api import VM
from launcher.attack.machine import attacked
from launcher.attack.table import ATTACKS
from launcher.experiment import surface
from launcher.experiment.faults import FAULTS
from launcher.experiment.file import Experiment
from launcher.experiment.guest import SUBJECT, Tape, loaded
from launcher.experiment.matrix import Cell
from protocol.control import Event
from protocol.errors import HostError
from protocol.messages import MachineStats

# Seconds, all arbitrary: until a load is steady; before a fault, for a process is healthy for the
# supervisor when it has served for 0.1; behind one, for the guest goes on.
_WARM_UP, _BEFORE, _AFTER = 0.2, (0.15, 0.25), 0.1

# Seconds for a device to come back (arbitrary, beside those after which it hangs).
_PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Setting:
    """In what a trial is carried out: a ``folder`` for its files, which goes with it, and the seed
    of all that is left to chance."""

    experiment: Experiment
    folder: Path
    seed: int


Samples = dict[str, Any]


def load(cell: Cell, setting: Setting) -> Samples:
    """A device under load: requests, and the CPU time, exits and chains that they cost."""
    experiment = setting.experiment
    with loaded(experiment, cell, experiment.load_of(cell.name), setting.folder) as machine:
        time.sleep(_WARM_UP)
        before = _Counters.of(machine.vm, machine.pid)
        time.sleep(experiment.seconds)
        after = _Counters.of(machine.vm, machine.pid)
        tape = machine.end()
    begin, end = before.at, after.at
    return {
        "seconds": end - begin,
        **_requests(tape, begin, end),
        "cpu_ns": {name: after.cpu[name] - before.cpu[name] for name in before.cpu},
        "exits": after.exits - before.exits,
        "exits_of_all": after.exits_of_all - before.exits_of_all,
    }


def fault(cell: Cell, setting: Setting) -> Samples:
    """The same, struck by a fault again and again: when, and the steps until it was over."""
    experiment = setting.experiment
    kind = FAULTS[cell.name]
    chance = random.Random(f"{setting.seed}/{cell.stem}")
    strikes: list[tuple[float, Event, Event]] = []
    under = experiment.load_of(experiment.under)
    with loaded(experiment, cell, under, setting.folder, inject=True) as machine:
        vm, begin = machine.vm, time.monotonic()
        events = _events(vm)
        for _ in range(experiment.strikes):
            time.sleep(chance.uniform(*_BEFORE))
            at = kind.strike(vm, SUBJECT)
            noticed, ended = _until(events, kind.ends)
            if noticed is ended:  # until then somebody served
                at = (ended.monotonic - (ended.took or 0)) / 1e9
            strikes.append((at, noticed, ended))
        time.sleep(_AFTER)
        end = time.monotonic()
        tape = machine.end()
    return {
        **_requests(tape, begin, end),
        "strikes": [
            {
                "at_us": _microseconds(at - begin),
                "noticed_us": _microseconds(noticed.monotonic / 1e9 - begin),
                "ended_us": _microseconds(ended.monotonic / 1e9 - begin),
                "took_us": (ended.took or 0) / 1e3,
                "steps_us": {step: took / 1e3 for step, took in ended.steps.items()},
            }
            for at, noticed, ended in strikes
        ],
    }


def attack(cell: Cell, setting: Setting) -> Samples:
    """All attacks, on machines of their own, and what came of each, by its name."""
    experiment = setting.experiment
    attacks = [ATTACKS[name] for name in experiment.attacks]
    found = attacked(attacks, cell.isolation, experiment.hypervisor, cell.grouping)
    return {name: asdict(outcome) for name, outcome in found.items()}


def reach(cell: Cell, setting: Setting) -> Samples:
    """What a device can reach, that is under load."""
    experiment = setting.experiment
    under = experiment.load_of(experiment.under)
    with loaded(experiment, cell, under, setting.folder) as machine:
        found = surface.measure(cell.isolation, machine.pid, machine.vm.describe(), machine.log)
        machine.end()
    return found


TRIALS: dict[str, Callable[[Cell, Setting], Samples]] = {
    "surface": reach,
    "load": load,
    "fault": fault,
    "attack": attack,
}
"""Every trial by its name, which a cell has."""


@dataclass(frozen=True, slots=True)
class _Counters:
    # At a moment, of time.monotonic(): nanoseconds of CPU by process, exits at the device's
    # registers and all exits.
    at: float
    cpu: dict[str, int]
    exits: int
    exits_of_all: int

    @classmethod
    def of(cls, vm: VM, device: int) -> _Counters:
        vmm = next(process.pid for process in vm.describe().processes if process.kind == "vmm")
        measured: MachineStats = vm.stats()
        return cls(
            time.monotonic(),
            {"vmm": cpu_time(vmm), "device": cpu_time(device)},
            sum(row.count for row in measured.exits if row.device == SUBJECT),
            sum(row.count for row in measured.exits),
        )


def cpu_time(pid: int) -> int:
    """Nanoseconds that the threads of ``pid`` have been on a CPU so far, those that have ended not
    counted."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            total += int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0])
    return total


def _requests(tape: Tape, begin: float, end: float) -> Samples:
    # Of those that were answered between begin and end: when, and how long that took.
    kept = [
        (_microseconds(answered - begin), _microseconds(answered - given))
        for given, answered in zip(tape.given, tape.answered, strict=True)
        if begin <= answered < end
    ]
    return {
        "answered_us": [answered for answered, _ in kept],
        "latency_us": [latency for _, latency in kept],
        "failed": tape.failed,
        "dropped": tape.dropped,
    }


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 1)


def _events(vm: VM) -> Iterator[Event]:
    return (e for e in vm.events() if isinstance(e, Event) and e.device == SUBJECT)


def _until(events: Iterator[Event], kind: str) -> tuple[Event, Event]:
    # The first that says that something is wrong, or if nothing is the last; and that last.
    first = None
    for event in events:
        if event.kind in ("died", "hung"):
            first = first or event
        elif event.kind == kind:
            return first or event, event
        elif event.kind == "failed":
            raise HostError(f"{SUBJECT} did not come back: {event.detail}")
    raise HostError("the machine ended before its device had come back")
