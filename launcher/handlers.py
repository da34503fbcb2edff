"""What each request of protocol.control does to the machine: one table, one method a verb.

What there is to tell of the machine is what its events say; nothing is kept twice.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from launcher.control import Handler, Reply
from launcher.events import Events
from launcher.loop import Loop
from launcher.plan import Plan
from launcher.relay import Relay
from launcher.run import VMM
from launcher.scout import Scouts
from launcher.supervisor import Served, Supervisor
from launcher.swap import Swaps
from protocol import control as wire
from protocol import messages
from protocol.errors import BadInput, HostError, VibeError
from protocol.specs import PARTS, Part

if TYPE_CHECKING:
    from protocol.faults import Board

# Requests that may wait for the VMM, or it for devices, and the seconds between two: it cuts off a
# peer that sends more than 500 messages a second (arbitrary, and below that).
_MOST_WAITING, _BETWEEN = 64, 0.005

# Nanoseconds that a guest may be given to power off: a day (arbitrary).
_LONGEST = 86_400 * 10**9

Answered = Callable[[object], None]


@dataclass(frozen=True, slots=True)
class Machine:
    """What the verbs may use of a machine: its ``plan`` and ``name``, its devices'
    ``supervisor`` if it has any, the parts that its VMM's jail lacks (``vmm_lacks``), its
    ``relays`` by stream, its ``boards`` by device, where faults may be injected, its ``scouts``;
    ``ask`` the VMM, ``hold`` the guest whatever devices come back, or let it go, ``stop`` in
    somebody's name, and ``open_door`` to those who come by hand: the door's path."""

    name: str
    plan: Plan
    loop: Loop
    events: Events
    supervisor: Supervisor | None
    vmm_lacks: tuple[Part, ...]
    relays: Mapping[str, Relay]
    boards: Mapping[str, Board]
    scouts: Scouts
    ask: Callable[[object, Answered], None]
    hold: Callable[[bool], None]
    stop: Callable[[str], None]
    open_door: Callable[[], str]


@dataclass(slots=True)
class _Seen:
    # What the events have told so far.
    began: int = 0
    state: wire.MachineState = "starting"
    processes: dict[str, wire.Process] = field(default_factory=dict)
    started: dict[str, int] = field(default_factory=dict)
    ended: str = ""


class Verbs:
    """The verbs of one machine; :attr:`table` is what launcher.control serves."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._seen = _Seen()
        self._kinds = {device.name: device.kind for device in machine.plan.devices}
        self._swaps = Swaps(machine.plan, machine.scouts)
        self._stopping: list[tuple[Reply, list[str]]] = []
        self._waiting: deque[tuple[object, Answered]] = deque()
        self._unanswered = 0
        self._is_pausing = False  # between two
        machine.events.listen(self._heard)
        self.table: Mapping[type, Handler] = {
            wire.Describe: self._describe,
            wire.Measure: self._measure,
            wire.Pause: partial(self._hold, messages.Pause(), "paused"),
            wire.Resume: partial(self._hold, messages.Resume(), "running"),
            wire.Shutdown: self._shut_down,
            wire.Kill: self._kill,
            wire.Restart: self._restart,
            wire.Swap: self._swap,
            wire.Inject: self._inject,
            wire.SetLink: self._set_link,
            wire.Enlist: self._enlist,
            wire.Attach: self._attach,
        }

    # ── ps, stats ─────────────────────────────────────────────────────────────────────

    def _describe(self, _: wire.Describe, reply: Reply) -> None:
        options, seen, now = self._machine.plan.options, self._seen, time.monotonic_ns()
        reply(
            wire.Description(
                name=self._machine.name,
                state=seen.state,
                pid=os.getpid(),
                uptime=now - seen.began,
                hypervisor=self._machine.plan.backend.name,
                architecture=self._machine.plan.boot.architecture,
                cpus=options.cpus,
                memory=options.memory,
                processes=tuple(
                    replace(
                        process,
                        state=self._state(process),
                        uptime=now - seen.started[name],
                        **self._isolation(name),
                    )
                    for name, process in seen.processes.items()
                ),
                streams=tuple(self._machine.relays),
            )
        )

    def _kind(self, name: str) -> str:
        # Of what serves now: it may have been swapped.
        supervisor = self._machine.supervisor
        return supervisor.device(name).kind if supervisor and name in self._kinds else name

    def _state(self, process: wire.Process) -> wire.ProcessState:
        supervisor, name = self._machine.supervisor, process.name
        is_by_hand = name in self._kinds and supervisor and supervisor.is_by_hand(name)
        return "by hand" if process.state == "running" and is_by_hand else process.state

    def _isolation(self, name: str) -> dict[str, Any]:
        if name == VMM:
            return {"lacks": self._machine.vmm_lacks}
        supervisor = self._machine.supervisor
        offers = supervisor.offers_of(name) if supervisor and name in self._kinds else None
        if supervisor is None or offers is None:
            return {}
        if not offers.syscalls:  # as it was wanted, or started by hand
            return {"isolation": "none"}
        level = supervisor.device(name).isolation.level
        holds = set(offers.parts) - {"cgroup"}  # which is nothing that a device can know
        child = supervisor.child(name)
        if child is None or (child.group is not None and child.group.is_whole):
            holds.add("cgroup")
        return {"isolation": level, "lacks": tuple(part for part in PARTS if part not in holds)}

    def _measure(self, _: wire.Measure, reply: Reply) -> None:
        self._ask(messages.GetMachineStats(), partial(_pass_on, reply))

    # ── pause, resume ─────────────────────────────────────────────────────────────────

    def _hold(self, request: object, wanted: wire.MachineState, _: object, reply: Reply) -> None:
        def answered(answer: object) -> None:
            if isinstance(answer, messages.Done):
                self._machine.hold(wanted == "paused")
                if self._seen.state != wanted and self._seen.state != "ending":
                    self._machine.events.emit("paused" if wanted == "paused" else "resumed")
                reply(wire.Done())
            else:
                _pass_on(reply, answer)

        self._ask(request, answered)

    # ── stop ──────────────────────────────────────────────────────────────────────────

    def _shut_down(self, request: wire.Shutdown, reply: Reply) -> None:
        if request.timeout > _LONGEST:
            raise BadInput("--timeout", f"{_LONGEST // 10**9} seconds at most")
        if len(self._stopping) >= _MOST_WAITING:
            raise HostError("too many wait for this machine's end already")
        if request.force and self._seen.state == "ending":
            self._machine.stop("vibevmm stop")  # the second time it is meant
        if self._seen.state == "ending":
            reply(wire.Stopped(self._seen.ended, ""))
            return
        forced: list[str] = []  # why, once it is
        self._stopping.append((reply, forced))
        if request.force:
            self._force(forced, "as asked for")
            return
        if self._seen.state == "paused":
            self._hold(messages.Resume(), "running", None, lambda _: None)  # to hear the button

        def pressed(answer: object) -> None:
            if isinstance(answer, messages.Failed):
                self._force(forced, answer.reason)
                return
            seconds = request.timeout / 1e9
            why = f"the guest did not power off within {seconds:g} s"
            self._machine.loop.after(seconds, partial(self._force, forced, why))

        self._ask(messages.PressPowerButton(), pressed)

    def _force(self, forced: list[str], why: str) -> None:
        # On its way to the end it needs no force, and a second stop would be a kill.
        if self._seen.state != "ending":
            forced.append(why)
            self._machine.stop("vibevmm stop")

    # ── kill, attach ──────────────────────────────────────────────────────────────────

    def _kill(self, request: wire.Kill, reply: Reply) -> None:
        supervisor = self._supervisor_of(request.device)
        child = supervisor.child(request.device)
        if child is None or child.status is not None:
            raise HostError(f"{request.device} has no process now")
        child.kill()
        reply(wire.Killed(child.pid, supervisor.companions(request.device)))

    # ── restart, swap ─────────────────────────────────────────────────────────────────

    def _supervisor_of(self, device: str) -> Supervisor:
        if self._machine.supervisor is None or device not in self._kinds:
            raise BadInput(repr(device), f"no such device; {_known(self._kinds)}")
        return self._machine.supervisor

    def _restart(self, request: wire.Restart, reply: Reply) -> None:
        self._supervisor_of(request.device).restart(request.device, partial(_served, reply))

    def _swap(self, request: wire.Swap, reply: Reply) -> None:
        self._swaps.begin(self._supervisor_of(request.device), request, partial(_served, reply))

    def _inject(self, request: wire.Inject, reply: Reply) -> None:
        supervisor = self._supervisor_of(request.device)
        if (board := self._machine.boards.get(request.device)) is None:
            raise BadInput("inject", "this machine was not started with --allow-inject")
        # Imported only in a machine that has imported it.
        from launcher import inject

        inject.obey(request, supervisor.device(request.device).model.queues, board)
        reply(inject.armed(board))

    def _set_link(self, request: wire.SetLink, reply: Reply) -> None:
        self._supervisor_of(request.device)
        networks = self._machine.plan.streams.networks
        known = {} if networks is None else networks.by_device
        if (network := known.get(request.device)) is None:
            raise BadInput(repr(request.device), f"no network interface; {_known(known)}")
        network.link.set(wanted=request.up)
        reply(wire.Done())

    def _enlist(self, request: wire.Enlist, reply: Reply) -> None:
        supervisor = self._supervisor_of(request.device)
        device = supervisor.device(request.device)
        why = supervisor.why_bound(device.name)
        place = device.place(self._machine.plan.backend)
        if why := why or place.why_not(request.device_id):
            raise BadInput("device run", why)
        path = self._machine.open_door()
        reply(wire.Enlisted(path, device.queues, device.model.settings))

    def _attach(self, request: wire.Attach, reply: Reply) -> None:
        relay = self._machine.relays.get(request.stream)
        if relay is None:
            raise BadInput(
                repr(request.stream), f"no stream to attach to; {_known(self._machine.relays)}"
            )
        try:
            reply(wire.Attached(relay.open()))
        except OSError as error:
            raise HostError(f"the socket of {request.stream}: {error.strerror}") from error

    # ── what happens ──────────────────────────────────────────────────────────────────

    def _heard(self, event: wire.Event) -> None:
        seen, name = self._seen, event.device
        seen.began = seen.began or event.monotonic
        match event.kind:
            case "started":
                seen.processes[name] = wire.Process(
                    name, self._kind(name), event.pid, "running", event.generation, 0
                )
                seen.started[name] = event.monotonic
            case "died" | "hung" if name in seen.processes:
                # One that hung may be told of when another serves: its successor, or, if it was a
                # successor itself, the one before.
                if event.generation == seen.processes[name].generation:
                    state: wire.ProcessState = "dead" if event.kind == "died" else "hung"
                    seen.processes[name] = replace(seen.processes[name], state=state)
            case "recovered" | "swapped" if name in seen.processes:
                seen.processes[name] = replace(
                    seen.processes[name],
                    kind=self._kind(name),
                    state="running",
                    pid=event.pid,
                    generation=event.generation,
                )
                seen.started[name] = event.monotonic
            case "ready" | "resumed":
                seen.state = "running"
            case "paused":
                seen.state = "paused"
            case "ended":
                seen.state, seen.ended = "ending", event.detail
                for reply, forced in self._stopping:
                    reply(wire.Stopped(event.detail, "".join(forced)))
                self._stopping.clear()

    # ── the VMM ───────────────────────────────────────────────────────────────────────

    def _ask(self, request: object, answered: Answered) -> None:
        if self._unanswered >= _MOST_WAITING:
            raise HostError("too many requests wait for the VMM")
        self._unanswered += 1
        self._waiting.append((request, answered))
        if not self._is_pausing:
            self._ask_next()

    def _ask_next(self) -> None:
        # The next does not wait for the answer to this one, for which a device may be asked.
        self._is_pausing = bool(self._waiting)
        if not self._waiting:
            return
        self._machine.loop.after(_BETWEEN, self._ask_next)
        request, answered = self._waiting.popleft()

        def took(answer: object) -> None:
            self._unanswered -= 1
            answered(answer)

        self._machine.ask(request, took)


def _served(reply: Reply, served: Served | VibeError) -> None:
    if isinstance(served, VibeError):
        reply(wire.Failed(served.exit_status, str(served)))
    else:
        reply(wire.Serving(served.generation, served.pid, served.took))


def _pass_on(reply: Reply, answer: object) -> None:
    # The VMM's answer, to the client.
    if isinstance(answer, messages.Failed):
        reply(wire.Failed(3, answer.reason))
    else:
        reply(answer)


def _known(names: Mapping[str, object]) -> str:
    return f"there are {', '.join(names)}" if names else "there is none"
