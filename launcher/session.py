"""The processes of a machine while they live: told what to do, listened to, and ended.

::

    STARTING ──attached──► RUNNING ──somebody decides how it ends──► STOPPING ──all reaped──► done

Whatever happens is decided once (:class:`launcher.outcome.Outcome`); from then on everything is
on its way to the end, with a deadline, and a second wish to stop shortens it to nothing.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from devices.runtime.device import Offer
from launcher import limits, model, outcome, stats
from launcher.backend import AUTO, SOFTWARE
from launcher.door import HAND, Door, Hand, Wishes
from launcher.events import Events
from launcher.family import Family
from launcher.logs import Logs
from launcher.loop import Loop
from launcher.nursery import SPARE, ZYGOTE, Nursery, Spares
from launcher.outcome import Outcome
from launcher.plan import Plan, PlannedDevice
from launcher.relay import Relay
from launcher.report import Report, counted, message
from launcher.run import VMM, Outputs
from launcher.rundir import CONTROL, DOOR, RunDirectory
from launcher.spawn import Child
from launcher.startup import Startup
from launcher.streams import End, SocketEnd
from launcher.supervisor import Supervisor
from launcher.terminal import Terminal
from launcher.trace import Traces
from launcher.wiring import Wiring
from protocol import fds, jail
from protocol.control import EventKind
from protocol.errors import HostError, ProtocolError, Unheard
from protocol.jail import cgroup
from protocol.log import Level
from protocol.messages import (
    Attach,
    DeviceAttached,
    DeviceBound,
    DeviceFailed,
    DeviceOffers,
    Ended,
    Failed,
    GetMachineStats,
    MachineReady,
    MachineStats,
    Pause,
    PressPowerButton,
    Rebooted,
    Resume,
    StopMachine,
)
from protocol.specs import FAREWELL, Part, Volunteer

if TYPE_CHECKING:
    from launcher.conversation import Conversation
    from launcher.networks import Uplinks
    from launcher.scout import Scouts

# Seconds. The VMM itself gives devices 60 to be ready, and its vCPU threads 15 and each device 5
# to stop; these are for a VMM that does not keep to that.
_START_DEADLINE = 90.0
STOP_DEADLINE = 30.0
# Seconds for processes that have nothing more to do than to exit.
_EXIT_DEADLINE = 5.0
# Seconds in which the VMM says that the guest runs, after a device died: it may have run before
# (arbitrary). Of one that died while it was started the VMM tells as soon.
_ON_ITS_WAY = 1.0

_KEYBOARD = 0

# Among the devices that the guest is held for: whoever has paused it. No device is called so.
_USER = ""


# How the log tells of what happens to a device: its name, details, and milliseconds.
_EVENTS: dict[EventKind, tuple[Level, str]] = {
    "died": (Level.WARN, "{0} {1}"),
    "hung": (Level.WARN, "{0} hangs: {1}"),
    "failed": (Level.WARN, "a successor of {0} failed: {1}"),
    "recovered": (Level.WARN, "{0} recovered in {2:.1f} ms"),
    "swapped": (Level.INFO, "{0} swapped in {2:.1f} ms for {1}"),
}


class Session:
    """``vmm`` was started, and so was the zygote of ``nursery``, if there are to be devices, whose
    cgroups are made among ``groups``, or why there are none.

    These stay the caller's to close; what is opened and who is started here, ``resources`` close.
    """

    def __init__(
        self,
        plan: Plan,
        startup: Startup,
        loop: Loop,
        outputs: Outputs,
        directory: RunDirectory,
        groups: cgroup.Machine | HostError,
        vmm: Child,
        nursery: Nursery | None,
        resources: ExitStack,
    ) -> None:
        self._plan = plan
        self._startup = startup
        self._loop = loop
        self._outputs = outputs
        self.name = directory.name
        self._directory = directory
        self._groups = groups
        self._nursery = nursery
        self._vmm = vmm
        self._logs = Logs(outputs.log, plan.options.log.of("launcher"), directory.path)
        self._family = Family(loop, self._logs, self._died)
        self._family.adopt(vmm)
        self._spares: Spares | None = None
        self._supervisor: Supervisor | None = None
        self._scouts: Scouts | None = None
        if nursery is not None:
            self._family.adopt(nursery.zygote)
            are_free = all(device.is_free for device in plan.devices)
            self._spares = Spares(nursery, self._spared, free=are_free)
        self._resources = resources
        resources.callback(self._family.close)
        self._events = Events()
        self._traces = Traces(outputs.trace, plan.options.trace or "")
        resources.callback(self._traces.close)
        self._wiring = Wiring(plan, directory.name, directory.path)
        resources.callback(self._wiring.close)
        self._relays: dict[str, Relay] = {}
        self._uplinks: Uplinks | None = None
        self._terminal = self._connect_terminal()
        self._outcome: Outcome | None = None
        self._conversation: Conversation | None = None
        self._held_for: set[str] = set()
        # Who died before it was known that the guest runs.
        self._early: list[Child] = []
        self._report = Report(plan, self.name, startup, outputs, self._logs, self._traces)
        self._last_stats: MachineStats | None = None
        self._vmm_lacks: tuple[Part, ...] = ()

    def run(self) -> int:
        """Start the machine, watch it and end it; the exit status."""
        try:
            self._terminal.save()
            self._start()
            self._loop.run()
        finally:
            self._family.reap()
            self._terminal.finish()
            for bridge in self._plan.streams.bridges:
                bridge.finish()
        assert self._outcome is not None
        return self._report.write(self._outcome, self._last_stats, self._family.named)

    def on_signal(self, number: signal.Signals) -> None:
        """The launcher got signal ``number``."""
        if number is signal.SIGUSR1:
            self.request(GetMachineStats(), self._tell_stats)
        elif number is signal.SIGCONT:
            self._terminal.resume()
        else:
            self._stop_wanted(number.name)

    # ── starting ──────────────────────────────────────────────────────────────────────

    def _connect_terminal(self) -> Terminal:
        commands = {
            "x": lambda: self._stop_wanted("Ctrl-A x"),
            "p": lambda: self.request(PressPowerButton()),
        }
        say = partial(self._say, fresh_line=True)
        terminal = Terminal(self._loop, _KEYBOARD, commands, say)
        typed, serial = self._plan.options.serial == "terminal", self._outputs.serial
        terminal.add("serial", self._share("serial", SocketEnd(self._wiring.serial)), serial, typed)
        streams = self._plan.streams
        for end in streams.terminal:
            terminal.add(end.name, self._share(end.name, end), self._outputs.screen, True)
        for bridge in streams.bridges:
            bridge.connect(self._loop)
        for end in streams.ends():
            end.on_broken = partial(self._stream_broken, end.name)
        self._outputs.screen.on_gone = lambda: self._stop_wanted("the end of its output")
        return terminal

    def _share(self, name: str, end: End) -> Relay:
        path = os.path.join(self._directory.path, f"{name}.stream")
        self._relays[name] = relay = Relay(self._loop, end, path)
        self._resources.callback(relay.close)
        return relay

    def _stream_broken(self, name: str, why: str) -> None:
        self._logs.note(Level.WARN, f"{name} broke its stream: {why}")

    def _start(self) -> None:
        for child in self._family:
            self._listen(child)
        for text in self._announcements():
            self._say(text)
        guard, terminal = self._wiring.guard(_KEYBOARD, self._terminal.saved)
        self._send(self._vmm, guard, terminal)
        # Raw only now that the VMM was handed what it takes to undo it, should we be killed.
        self._terminal.start()
        if self._nursery is None:
            self._hand_over_vmm()
        else:
            # The zygote's children become ours.
            jail.adopt_orphans(True)
            self._resources.callback(jail.adopt_orphans, False)
            processes = self._plan.processes
            free = [name for name, devices in processes.items() if devices[0].is_free]
            self._nursery.ask(list(processes), free)
            self._listen_to_zygote()
        if self._plan.streams.networks is not None:
            from launcher.networks import Uplinks

            networks = self._plan.streams.networks.by_device
            self._uplinks = Uplinks(networks, self._loop, self._uplinked)
            self._uplinks.begin()
        self._loop.after(_START_DEADLINE, self._late)
        if self._plan.options.timeout is not None:
            timed_out = outcome.timed_out(self._plan.options.timeout)
            self._loop.after(self._plan.options.timeout, partial(self._decide, timed_out))
        # While the VMM starts, which removes it from now on: this import takes as long as it does.
        self._directory.leave_to_another()
        from protocol import channel

        self._context = channel.new_context()
        self._resources.callback(self._context.destroy, linger=0)

    def _listen_to_zygote(self) -> None:
        assert self._nursery is not None
        self._loop.on_readable(self._nursery.zygote.handover.fileno(), self._forked)

    def _serve_control(self) -> None:
        # Imported when the guest runs: its start does not wait for this.
        from launcher import control, handlers
        from launcher.scout import Scouts

        self._scouts = Scouts(self._loop)
        self._resources.callback(self._scouts.close)
        path = os.path.join(self._directory.path, DOOR)
        warn = partial(self._logs.note, Level.WARN)
        door = Door(self._loop, path, self._came_by_hand, warn)
        self._resources.callback(door.close)
        machine = handlers.Machine(
            name=self.name,
            plan=self._plan,
            loop=self._loop,
            events=self._events,
            supervisor=self._supervisor,
            vmm_lacks=self._vmm_lacks,
            relays=self._relays,
            boards=self._wiring.boards,
            scouts=self._scouts,
            ask=self._ask,
            hold=self._hold,
            stop=self._stop_wanted,
            open_door=door.open,
        )
        path = os.path.join(self._directory.path, CONTROL)
        table = handlers.Verbs(machine).table
        try:
            server = control.ControlServer(self._loop, self._context, path, table, self._events)
        except HostError as error:
            self._logs.note(Level.WARN, f"this machine cannot be controlled: {error}")
        else:
            self._resources.callback(server.close)

    def _announcements(self) -> list[str]:
        backend, is_asked = self._plan.backend, self._plan.options.hypervisor != AUTO
        found = list(self._plan.streams.announcements)
        if backend.name == SOFTWARE and not is_asked:
            found.insert(0, f"a CPU in software: {backend.why}")
        elif backend.is_fallback:
            found.insert(0, f"KVM: {backend.why}")
        self._logs.note(Level.INFO, f"hypervisor: {backend}")
        if why := str(self._groups) if isinstance(self._groups, HostError) else self._groups.lacks:
            self._logs.note(Level.INFO, f"jailed without cgroup: {why}")
        if free := [device.name for device in self._plan.devices if device.is_free]:
            found.append(f"not isolated, and can do what you can: {', '.join(free)}")
        return found

    def _listen(self, child: Child) -> None:
        self._family.listen(child)
        if child.name in (ZYGOTE, SPARE, HAND):
            return
        devices = self._plan.processes.get(child.name, ())
        for name in [device.name for device in devices] or [child.name]:
            self._events.emit("started", name, generation=1, pid=child.pid)

    def _welcome(self, child: Child) -> None:
        self._family.adopt(child)
        self._listen(child)

    def _spared(self, child: Child) -> None:
        self._welcome(child)
        self._enclose(child)

    def _uplinked(self, child: Child) -> None:
        self._welcome(child)
        self._enclose(child, limits.UPLINK)  # before it starts anybody

    def _enclose(self, child: Child, standing: Mapping[str, str] = limits.STANDING) -> None:
        # As soon as there is nobody who waits for it.
        if child.is_free or isinstance(self._groups, HostError):
            return
        try:
            child.group = self._groups.enclose(child.pid, standing)
        except ProcessLookupError:
            pass  # its death is noticed
        except OSError as error:
            self._logs.note(Level.WARN, f"{child.name} has no cgroup: {error.strerror}")

    def _forked(self) -> None:
        assert self._nursery is not None
        assert self._spares is not None
        if not self._nursery.is_expecting:
            # Nobody asked: it is dead, and its pidfd tells.
            self._loop.on_readable(self._nursery.zygote.handover.fileno(), None)
            return
        if self._supervisor is not None:
            self._spares.answered()
            if self._outcome:
                self._dismiss_zygote()
            return
        forked = self._nursery.answer()
        for child in forked:
            self._welcome(child)
        if self._outcome:
            self._kill_all()
        elif forked:
            self._startup.mark("devices forked")
            named = self._family.named
            serving = {d.name: (d, named[d.process_name]) for d in self._plan.devices}
            hang_after = self._plan.options.hang_after
            self._supervisor = Supervisor(self, self._wiring, self._spares, serving, hang_after)
            self._hand_over_vmm()
            for child in forked:
                self._enclose(child)

    def _hand_over_vmm(self) -> None:
        named = self._family.named
        pidfds = {d.name: named[d.process_name].pidfd for d in self._plan.devices}
        self.hand_over(self._vmm, *self._wiring.for_vmm(pidfds))
        self._loop.on_readable(self._vmm.handover.fileno(), self._bound)
        self._startup.mark("handed over")

    def hand_over(self, child: Child, payload: bytes, descriptors: dict[str, int]) -> None:
        """Send it to ``child``, with a trace if there is one (supervisor.Machine)."""
        self._family.rename(child)
        self._limit(child)
        trace = self._traces.part(child.name)
        if trace is not None:
            descriptors = {**descriptors, "trace": trace}
        self._send(child, payload, descriptors)

    def _limit(self, child: Child) -> None:
        # Of a process that learns now which devices it is.
        if child.group is not None:
            child.group.limit(self._wiring.limits(child.name))
        elif not child.is_free and self._plan.is_strict(child.name):
            child.kill()  # why it is not as it is to be was told

    def _send(self, child: Child, payload: bytes, descriptors: dict[str, int]) -> None:
        try:
            fds.send(child.handover, payload, descriptors)
        except (BrokenPipeError, ConnectionResetError):
            self._family.look(child)

    def _bound(self) -> None:
        self._loop.on_readable(self._vmm.handover.fileno(), None)
        answer = fds.receive(self._vmm.handover)
        if answer is None:
            return  # its death is noticed by itself
        self._startup.mark("VMM listens")
        from launcher.conversation import Conversation

        self._conversation = Conversation(
            self._context,
            self._wiring.endpoint,
            self._loop,
            self._traces,
            self._hear,
            self._breach,
        )
        self._resources.callback(self._conversation.close)
        self.request(Attach())
        for device in self._plan.devices:
            first = self._wiring.first(device)
            handover = self._wiring.for_device(device, first)
            self.hand_over(self._family.named[device.process_name], *handover)
            first.close()
            if device.model.connects:
                device.close()  # or nobody would hear of its death

    def _late(self) -> None:
        if not self._startup.is_ready:
            why = f"the machine was not ready within {_START_DEADLINE:g} s"
            self._decide(Outcome(3, "host-error", why, VMM))

    # ── what the VMM says ─────────────────────────────────────────────────────────────

    def request(self, message: object, answered: Callable[[object], None] | None = None) -> None:
        """Ask the VMM; ``answered`` gets its reply (supervisor.Machine)."""
        if self._conversation is not None:
            self._conversation.request(message, answered)

    def _ask(self, request: object, answered: Callable[[object], None]) -> None:
        # For one who waits for the answer. At the machine's end there may be none.
        if self._outcome:
            answered(Failed("the machine is ending"))
        else:
            self.request(request, answered)

    def _breach(self, error: ProtocolError) -> None:
        if isinstance(error, Unheard) and self._vmm.is_dying:
            return  # of which its pidfd tells
        self._kill_all()
        self._decide(Outcome(3, "host-error", f"the VMM broke the protocol: {error}", VMM))

    def _hear(self, message: object) -> None:
        match message:
            case DeviceBound() | DeviceOffers() | DeviceAttached() | DeviceFailed():
                self._supervise(message)
            case MachineReady():
                self._vmm_lacks = message.lacks
                self._startup.ready(message.phases)
                for device in self._plan.devices:
                    self._plan.locks.settle(device.name)
                self._events.emit("ready", took=int(self._startup.phases["ready"] * 1_000_000))
                self._serve_control()
                self._logs.note(Level.DEBUG, f"started: {self._startup}")
                if self._spares is not None:
                    self._spares.prepare()
                early, self._early = self._early, []
                for child in early:
                    self._bereaved(child)
            case Rebooted():
                took = f"booted again in {message.microseconds / 1000:.1f} ms"
                self._logs.note(Level.INFO, f"the guest was reset ({message.count}), and {took}")
                self._events.emit("rebooted", took=message.microseconds * 1000)
            case Ended():
                self._decide(outcome.from_vmm(message))
            case Failed():
                self._say(f"the VMM refused: {message.reason}")

    def _tell_stats(self, answer: object) -> None:
        if isinstance(answer, MachineStats):
            self._say(stats.as_text(counted(answer, self._plan.streams)))
            self._logs.note(Level.DEBUG, "statistics were asked for")

    def _stopped(self, answer: object) -> None:
        if isinstance(answer, MachineStats):
            self._last_stats = answer
        if self._uplinks is not None:
            self._uplinks.end()
        # It waits for that, and ends; until then it is who tidies up if we are killed.
        self._terminal.put_back()
        self._directory.remove()
        self._plan.streams.remove_files()
        self._send(self._vmm, FAREWELL, {})
        self._loop.after(_EXIT_DEADLINE, self._kill_all)

    # ── what else happens ─────────────────────────────────────────────────────────────

    def _stop_wanted(self, by: str) -> None:
        if self._outcome:
            self._kill_all()  # the second time it is meant
        self._decide(outcome.stopped(by))

    def _died(self, child: Child) -> None:
        if self._conversation is not None:
            self._conversation.receive()  # what was said last, of its start or its end
        if not self._outcome:
            self._bereaved(child)
        if child is self._vmm:
            self._kill_all()
        if self._outcome:
            self._dismiss_zygote()
        if self._family.is_dead:
            self._loop.end()

    def _bereaved(self, child: Child) -> None:
        # Nobody wanted it to end. What a machine that runs can bear, it bears.
        if child is self._vmm or self._supervisor is None:
            self.stop_for(child)
            return
        if not self._startup.is_ready:
            self._early.append(child)
            self._loop.after(_ON_ITS_WAY, partial(self._too_early, child))
            return
        self._family.let_go(child)
        if self._uplinks is not None and self._uplinks.died(child):
            how = child.how_it_ended()
            self.emit(
                "died", child.name, generation=1, pid=child.pid, took=None, steps={}, detail=how
            )
            child.close()
            return
        assert self._nursery is not None
        assert self._spares is not None
        if child.name == ZYGOTE:
            self._loop.on_readable(child.handover.fileno(), None)
            self._loop.after(self._spares.delay(), self._replace_zygote)
            return
        if self._spares.died(child):
            self._loop.after(self._spares.delay(), self._spares.prepare)
        else:
            self._supervisor.died(child)
        child.close()

    def _too_early(self, child: Child) -> None:
        if not self._outcome and child in self._early:
            self.stop_for(child)

    def _replace_zygote(self) -> None:
        if self._outcome or self._nursery is None or self._spares is None:
            return
        self._nursery.replace_zygote()
        self._welcome(self._nursery.zygote)
        self._listen_to_zygote()
        self._spares.prepare()

    def _came_by_hand(self, hand: Hand, wanted: Volunteer) -> None:
        self._welcome(hand)
        supervisor, device = self._supervisor, wanted.device
        names = [planned.name for planned in self._plan.devices]
        if self._outcome or supervisor is None or device not in names:
            hand.dismiss("there is no such device any more")
            return
        plan = self._plan
        wishes = Wishes(self._loop, hand, device, plan.streams, plan.locks)
        hand.on_close = partial(self._hand_ended, supervisor, device, wishes)
        supervisor.volunteer(device, hand, wanted.implementation, holds=wanted.holds)

    def _hand_ended(self, supervisor: Supervisor, device: str, wishes: Wishes) -> None:
        wishes.end()
        # Of the files of a device, all that nobody has any more who is or could be it.
        others = [child for child in self._family if isinstance(child, Hand)]
        kept = [fd for hand in others if hand.name == device for fd in hand.locked]
        self._plan.locks.keep_only(device, [*supervisor.device(device).fds.values(), *kept])

    # ── what the supervisor wants (supervisor.Machine) ────────────────────────────────

    def _supervise(self, event: DeviceBound | DeviceOffers | DeviceAttached | DeviceFailed) -> None:
        if (supervisor := self._supervisor) is None:
            return
        match event:
            case DeviceBound():
                supervisor.bound(event)
            case DeviceOffers():
                supervisor.offers(event)
            case DeviceAttached():
                supervisor.attached(event)
            case DeviceFailed():
                supervisor.failed(event)

    def hand_vmm(self, payload: bytes, descriptors: dict[str, int]) -> None:
        """Send it to the VMM."""
        self._send(self._vmm, payload, descriptors)

    def reconnect(self, device: PlannedDevice) -> None:
        """Open what ``device`` needs once more; BadInput (supervisor.Machine)."""
        device.fds.update(model.reconnect(device.kind, device.model.config, device.option))

    def compare(
        self, device: PlannedDevice, ours: Offer, theirs: Offer, then: Callable[[str | None], None]
    ) -> None:
        """Whether a successor fits (supervisor.Machine)."""
        assert self._scouts is not None  # who wants a swap comes by what is served with them
        self._scouts.compare(device.model.judge, ours, theirs, then)

    def after(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call back later."""
        self._loop.after(seconds, callback)

    def stop_for(self, child: Child) -> None:
        """The machine ends, because ``child`` died."""
        self._decide(outcome.process_died(child.name, child.how_it_ended()))

    def pause_for(self, child: Child) -> None:
        """The guest stands still, because ``child`` died."""
        self._held_for.add(child.name)
        how = f"{child.name} {child.how_it_ended()}"
        device = self._plan.processes[child.name][0].name
        self._say(f"{how}; the guest is paused until {device} is restarted", fresh_line=True)
        self._ask(Pause(), lambda _: self._events.emit("paused", detail=how))

    def resume_for(self, device: str) -> None:
        """It goes on, if it stood still for ``device`` alone (supervisor.Machine)."""
        if device in self._held_for:
            self._held_for.remove(device)
            if not self._held_for:
                self._ask(Resume(), lambda _: self._events.emit("resumed"))

    def _hold(self, held: bool) -> None:
        # What the user says is above what devices need: a pause stays, and a resume ends all.
        if held:
            self._held_for.add(_USER)
        else:
            self._held_for.clear()

    def emit(
        self,
        kind: EventKind,
        device: str,
        *,
        generation: int,
        pid: int,
        took: int | None,
        steps: Mapping[str, int],
        detail: str,
    ) -> None:
        """Tell whoever wants to know."""
        if kind == "swapped":
            self._plan.locks.settle(device)
        self._events.emit(
            kind,
            device,
            generation=generation,
            pid=pid,
            took=took,
            steps=steps,
            detail=detail,
        )
        level, words = _EVENTS[kind]
        self._logs.note(level, words.format(device, detail, (took or 0) / 1e6))

    # ── ending ────────────────────────────────────────────────────────────────────────

    def _decide(self, found: Outcome) -> None:
        if self._outcome:
            return
        self._outcome = self._explained(found)
        self._events.emit("ended", detail=self._outcome.reason)
        self._logs.note(Level.DEBUG, f"ending: {found.reason}")
        if self._supervisor is not None:
            self._supervisor.end()
        if self._spares is not None:
            self._spares.end()
        if self._conversation is None:
            self._kill_all()
            return
        self._loop.after(STOP_DEADLINE, self._kill_all)
        self.request(StopMachine(), self._stopped)

    def _dismiss_zygote(self) -> None:
        # Not before it has told of all that it made. The last one: it removes the groups if we are
        # killed before we have. It has nothing to do any more, and is ended the shortest way.
        nursery = self._nursery
        if nursery is None or nursery.is_expecting:
            return
        if all(child.status is not None for child in self._family if child is not nursery.zygote):
            if isinstance(self._groups, cgroup.Machine):
                self._groups.close()
            nursery.zygote.kill()

    def _explained(self, found: Outcome) -> Outcome:
        # The VMM may be the first to know that a device is gone, but not of what it died.
        if found.culprit == VMM:
            for child in self._family:
                if child is not self._vmm and child.reap():
                    how = f"{child.how_it_ended()}: {found.message}"
                    return outcome.process_died(child.name, how)
        return found

    def _kill_all(self) -> None:
        for child in self._family:
            # Killed now, it would leave processes of whom we know nothing.
            if child.name == ZYGOTE and self._nursery and self._nursery.is_expecting:
                self._loop.after(_EXIT_DEADLINE, child.kill)
            else:
                child.kill()

    def _say(self, text: str, fresh_line: bool = False) -> None:
        # In the middle of a line of the guest's, ours begins one of its own.
        start = b"\n" if fresh_line else b""
        self._outputs.messages.offer(start + message(text))
