"""Runs a guest under load, does to its devices what a schedule says, and looks what is left.

A :class:`Guest` knows what load is and what is right; this knows machines, processes and time::

    Guest.options ─► VM ─► Guest.begin ─► the steps ─► all serve again ─► Guest.end ─► Guest.verdict
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from launcher import rundir
from launcher.api import VM
from launcher.client import Gone, Refused
from protocol.control import Event, Lost
from protocol.errors import VibeError
from protocol.faults import DELAY, DUPLICATE_USED
from tests.soak.schedule import Step
from tests.support.leaks import children, started_as

PATIENCE = 60.0
"""Seconds for what has to happen sooner or later; arbitrary, and generous."""

HANG_AFTER = 0.4
"""Seconds after which a device hangs: short, so that a run has many."""

# By how many descriptors a process may have more than before: doorbells of the last dead are kept
# (vmm.seating), and ZeroMQ closes in its own time.
_MORE_DESCRIPTORS = 40

_LOOK = 0.002

# How processes end, and successors do not come so far, if we, or the VMM on account of what we did,
# had a hand in it. What else they die of is theirs. 137 is a kill by injection, in a namespace.
_OURS = (
    "SIGKILL|status 137|answer|no progress|in time|not ready|no successor|ended|gone|"
    "does not read|ends"
)

# Seconds in which a death is told, if it is (arbitrary).
_HEARD = 2.0

# Seconds after which a process has not died young (launcher.policy): the next comes at once.
_GROWN = 0.12


class Problem(Exception):
    """What must not be; the run has failed."""


@dataclass(frozen=True, slots=True)
class Gap:
    """From ``begin`` to ``end``, of time.monotonic(), ``device`` completed nothing though it had
    requests."""

    device: str
    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class GuestClock:
    """A guest's clock, brought to ours by two moments, each in its units and in seconds of
    time.monotonic()."""

    begun: tuple[int, float]
    ended: tuple[int, float]

    def gap(self, device: str, begin: int, end: int) -> Gap:
        """A gap between two of its times."""
        return Gap(device, self._ours(begin), self._ours(end))

    def _ours(self, time: int) -> float:
        (begun, ours), (ended, then) = self.begun, self.ended
        return ours + (time - begun) * (then - ours) / (ended - begun)


@dataclass(slots=True)
class Verdict:
    """What the guest and its checker found: requests completed, by device; how many were never
    completed, or came back other than they were written; what else is wrong, in words."""

    requests: Mapping[str, int] = field(default_factory=dict)
    lost: int = 0
    corrupted: int = 0
    errors: list[str] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)


class Guest(Protocol):
    """A guest that loads its devices, and knows what they must have done."""

    devices: Sequence[str]
    """Those that steps are drawn for."""
    expected: str
    """A pattern of what processes end by on the guest's own account, or never come to; empty: of
    nothing."""

    def options(self, folder: Path) -> dict[str, Any]:
        """Of launcher.api.VM, all but name, hang_after and the log. ``folder`` is the run's."""

    def begin(self, vm: VM) -> None:
        """Return when it is under load."""

    def end(self, vm: VM) -> None:
        """Have it finish, and return when the machine is gone."""

    def verdict(self) -> Verdict:
        """When the machine is gone: whether all is right."""

    def close(self) -> None:
        """Let go of everything, whatever happened."""


@dataclass(frozen=True, slots=True)
class Took:
    """Nobody served ``device`` for ``seconds``, until ``end`` of time.monotonic()."""

    kind: str
    device: str
    seconds: float
    end: float


@dataclass(slots=True)
class Outcome:
    """``done``: steps by kind; ``deaths``: of the processes that were killed, those whose death
    the machine has told, for one that was about to go anyway is not missed; ``seen``: the
    machine's events by kind; ``took``: of recoveries and swaps; ``problems``: empty if all is
    right."""

    done: Counter[str] = field(default_factory=Counter)
    deaths: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    took: list[Took] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


def run(guest: Guest, steps: Sequence[Step], folder: Path, **options: Any) -> Outcome:
    """The whole of it; ``options`` are further ones of the machine. Does not raise for what it
    finds: the outcome tells."""
    outcome = Outcome()
    begun = time.monotonic()
    with contextlib.ExitStack() as undo:
        undo.callback(guest.close)
        vm = undo.enter_context(
            VM(
                hang_after=HANG_AFTER,
                log="info",
                log_file=folder / "log",
                **guest.options(folder) | options,
            )
        )
        launcher = -1
        try:
            vm.wait_ready()
            launcher = vm.describe().pid
            _drive(guest, vm, launcher, steps, outcome)
            outcome.verdict = guest.verdict()
            outcome.problems += outcome.verdict.errors
        except (Problem, VibeError) as error:
            outcome.problems.append(str(error))
    outcome.seconds = time.monotonic() - begun
    outcome.problems += _left_behind(vm.name, launcher)
    return outcome


def _drive(guest: Guest, vm: VM, launcher: int, steps: Sequence[Step], outcome: Outcome) -> None:
    processes = _Processes(launcher)
    watcher = _Watcher(vm, guest.devices, outcome, guest.expected)
    guest.begin(vm)
    held = processes.descriptors()
    operator = _Operator(vm.name, watcher, outcome)
    killed: Counter[int] = Counter()
    at = 0.0
    for step in steps:
        # After the one before, however long that took: what was late does not come in a burst.
        time.sleep(step.at - at)
        at = step.at
        if not processes.are_there():
            break  # the guest found something: it will tell
        match step.action:
            case "kill":
                killed[processes.send(step.device, signal.SIGKILL, watcher)] += 1
            case "hang":
                processes.send(step.device, signal.SIGSTOP, watcher)
                outcome.done["hang"] += 1
            case _:
                operator.put(step)
    operator.put(None)
    operator.join()
    _kill_more(guest, processes, watcher, killed, sum(step.action == "kill" for step in steps))
    outcome.done["kill"] = killed.total()
    outcome.deaths = watcher.deaths_of(killed)
    if processes.are_there():
        more = {name: count - held.get(name, 0) for name, count in processes.descriptors().items()}
        outcome.problems += [
            f"{name} holds {count} descriptors more than before"
            for name, count in more.items()
            if count > _MORE_DESCRIPTORS
        ]
    guest.end(vm)
    watcher.join()


def _kill_more(
    guest: Guest, processes: _Processes, watcher: _Watcher, killed: Counter[int], wanted: int
) -> None:
    # A signal may have hit a process that was about to go: until so many have died of it. As many
    # as are missing at a time, for each look at whether they were told of takes its time.
    devices = itertools.cycle(guest.devices)
    deadline = time.monotonic() + PATIENCE
    while processes.are_there():
        watcher.until_all_serve()
        if watcher.hears_of(killed, wanted):
            return
        if time.monotonic() > deadline:
            raise Problem(f"of {killed.total()} kills, {watcher.deaths_of(killed)} were told")
        for device in itertools.islice(devices, wanted - watcher.deaths_of(killed)):
            killed[processes.send(device, signal.SIGKILL, watcher)] += 1


class _Processes:
    # The children of a launcher, by name: devices by what they call themselves.

    def __init__(self, launcher: int) -> None:
        self._launcher = launcher

    def are_there(self) -> bool:
        try:
            return _state(self._launcher) != "Z"
        except OSError:
            return False

    def pids(self, name: str) -> list[int]:
        found = []
        with contextlib.suppress(OSError):
            for pid in children(self._launcher):
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                        found.append(pid)
        return found

    def send(self, device: str, number: signal.Signals, watcher: _Watcher) -> int:
        """To a process of that name, whatever it is about to do; if there is none, to the next
        that has served for a while. Its pid; 0 if the machine is gone."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.are_there():
            for pid in self.pids(device):
                with contextlib.suppress(OSError):
                    if _state(pid) in ("Z", "T" if number == signal.SIGSTOP else ""):
                        continue  # that would be no news to it
                    os.kill(pid, number)
                    return pid
            watcher.until_serves(device)
            time.sleep(_GROWN)
        if self.are_there():
            raise Problem(f"there was no process of {device} for {PATIENCE:g} s")
        return 0

    def descriptors(self) -> dict[str, int]:
        """How many the launcher and the VMM have open."""
        found = {}
        vmm = started_as("vmm.entry", self._launcher)
        for name, pids in (("the launcher", [self._launcher]), ("the VMM", vmm)):
            for pid in pids:
                with contextlib.suppress(OSError):
                    found[name] = len(os.listdir(f"/proc/{pid}/fd"))
        return found


def _state(pid: int) -> str:
    # A letter (proc(5)).
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


class _Watcher(threading.Thread):
    # Follows the machine's events.

    def __init__(
        self, vm: VM, devices: Sequence[str], outcome: Outcome, expected: str = ""
    ) -> None:
        super().__init__(daemon=True)
        self._ours = re.compile(f"{_OURS}|{expected}") if expected else re.compile(_OURS)
        self._events = vm.events()
        self._outcome = outcome
        self._change = threading.Condition()
        self._serves = dict.fromkeys(devices, True)
        self._generations = dict.fromkeys(devices, 1)
        self._told: Counter[int] = Counter()
        self.start()

    def run(self) -> None:
        with contextlib.suppress(VibeError):  # it is gone
            for event in self._events:
                with self._change:
                    self._note(event)
                    self._change.notify_all()

    def _note(self, event: Event | Lost) -> None:
        if isinstance(event, Lost):
            self._outcome.problems.append(f"{event.count} events of the machine were lost")
            return
        self._outcome.seen[event.kind] += 1
        if event.kind in ("died", "failed"):
            self._told[event.pid] += 1
        if event.kind in ("died", "failed") and not self._ours.search(event.detail):
            self._outcome.problems.append(f"{event.device} {event.kind}: {event.detail}")
        if event.device not in self._serves:
            return
        if event.kind in ("died", "hung"):
            # One that hung may be told of when another serves.
            if event.generation == self._generations[event.device]:
                self._serves[event.device] = False
        elif event.kind in ("recovered", "swapped"):
            self._serves[event.device] = True
            self._generations[event.device] = event.generation
            took = (event.took or 0) / 1e9
            self._outcome.took.append(Took(event.kind, event.device, took, event.monotonic / 1e9))

    def deaths_of(self, pids: Counter[int]) -> int:
        """How many of these were told to have died, or failed on their way."""
        return (pids & self._told).total()

    def hears_of(self, pids: Counter[int], wanted: int) -> bool:
        """Whether so many of them were, or are in a moment."""
        with self._change:
            return self._change.wait_for(lambda: self.deaths_of(pids) >= wanted, _HEARD)

    def until_all_serve(self) -> None:
        """Return when there is a process at every device's place."""
        with self._change:
            if not self._change.wait_for(lambda: all(self._serves.values()), PATIENCE):
                down = [name for name, serves in self._serves.items() if not serves]
                raise Problem(f"{', '.join(down)} did not come back")

    def until_serves(self, device: str) -> None:
        """The same of one; returns after some time in any case."""
        with self._change:
            self._change.wait_for(lambda: self._serves[device], PATIENCE)


class _Operator(threading.Thread):
    # Who speaks to the control interface: what it asks for takes its time, and signals do not
    # wait for that.

    def __init__(self, name: str, watcher: _Watcher, outcome: Outcome) -> None:
        super().__init__(daemon=True)
        self._name, self._watcher, self._outcome = name, watcher, outcome
        self._steps: queue.Queue[Step | None] = queue.Queue()
        self.put = self._steps.put
        self.start()

    def run(self) -> None:
        try:
            with contextlib.closing(VM.connect(self._name)) as vm:
                while (step := self._steps.get()) is not None:
                    self._persist(vm, step)
        except Gone:
            pass  # the guest found something: it will tell
        except VibeError as error:
            self._outcome.problems.append(f"control interface: {error}")

    def _persist(self, vm: VM, step: Step) -> None:
        # What a kill comes across is refused, rightly; it is wanted all the same.
        deadline = time.monotonic() + PATIENCE
        while True:
            self._watcher.until_serves(step.device)
            try:
                self._do(vm, step)
            except Refused as error:
                self._outcome.done["refused"] += 1
                if time.monotonic() >= deadline:
                    self._outcome.problems.append(f"{step}: {error}")
                    return
                time.sleep(_LOOK)
            else:
                self._outcome.done[step.action] += 1
                return

    def _do(self, vm: VM, step: Step) -> None:
        if step.action == "restart":
            vm.restart(step.device)
        elif step.action == "swap":
            words = step.detail.split()
            settings = dict(word.split("=", 1) for word in words if "=" in word)
            vm.swap(step.device, "".join(word for word in words if "=" not in word), **settings)
        else:
            time.sleep(_GROWN)
            fault, *points = step.detail.split()
            if fault == DUPLICATE_USED:
                # The next completion would cover it before the guest looks.
                vm.inject(step.device, DELAY, at="handle", lasts=PATIENCE)
            for point in points:
                vm.inject(step.device, fault, at=point)
            self._see_struck(vm, step)

    def _see_struck(self, vm: VM, step: Step) -> None:
        deadline = time.monotonic() + PATIENCE
        while not all(fault.strikes for fault in vm.inject(step.device)):
            if time.monotonic() >= deadline:
                self._outcome.problems.append(f"{step.device}: {step.detail} did not strike")
                break
            time.sleep(_LOOK)
        vm.inject(step.device, "none")


def _left_behind(name: str, launcher: int) -> list[str]:
    # The machine began a session of its own, and every process of it is in there.
    left = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            what, _, rest = stat.read_text().rpartition(")")
            if rest.split()[3] == str(launcher):
                left.append(f"process {what}) was left behind")
    if os.path.exists(rundir.path_of(name)):
        left.append(f"{rundir.path_of(name)} was left behind")
    return left
