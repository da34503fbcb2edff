"""The processes of a machine while they live: told what to do, listened to, and ended.

::

    STARTING ──attached──► RUNNING ──somebody decides how it ends──► STOPPING ──all reaped──► done

Whatever happens is decided once (:class:`launcher.outcome.Outcome`); from then on everything is
on its way to the end, with a deadline, and a second wish to stop shortens it to nothing.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from devices.runtime import seal
from launcher import outcome, stats
from launcher.backend import AUTO, SOFTWARE
from launcher.events import Events
from launcher.logs import Logs, harmless
from launcher.loop import Loop
from launcher.nursery import SPARE, ZYGOTE, Nursery, Spares
from launcher.outcome import Outcome
from launcher.plan import Plan
from launcher.relay import Relay
from launcher.run import VMM, Outputs
from launcher.rundir import CONTROL, RunDirectory
from launcher.spawn import Child
from launcher.startup import Startup
from launcher.streams import End, SocketEnd
from launcher.supervisor import Supervisor
from launcher.terminal import Terminal
from launcher.trace import Traces
from launcher.wiring import Wiring
from protocol import fds
from protocol.control import EventKind
from protocol.errors import HostError, ProtocolError
from protocol.log import Level
from protocol.messages import (
    FROM_VMM,
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
from protocol.specs import FAREWELL

if TYPE_CHECKING:
    from protocol.channel import Channel

# Seconds. The VMM itself gives devices 60 to be ready, and its vCPU threads 15 and each device 5
# to stop; these are for a VMM that does not keep to that.
_START_DEADLINE = 90.0
STOP_DEADLINE = 30.0
# Seconds for processes that have nothing more to do than to exit.
_EXIT_DEADLINE = 5.0

# Before a spare is made where one, or the zygote, died (arbitrary: those that die at once, for a
# reason that stays, should not keep the launcher busy).
_PAUSE = 1.0

_KEYBOARD = 0


# How the log tells of what happens to a device: its name, details, and milliseconds.
_EVENTS: dict[EventKind, tuple[Level, str]] = {
    "died": (Level.WARN, "{0} {1}"),
    "hung": (Level.WARN, "{0} hangs: {1}"),
    "failed": (Level.WARN, "a successor of {0} failed: {1}"),
    "recovered": (Level.WARN, "{0} recovered in {2:.1f} ms"),
    "swapped": (Level.INFO, "{0} swapped in {2:.1f} ms for {1}"),
}


class Session:
    """``vmm`` was started, and so was the zygote of ``nursery``, if there are to be devices.

    These stay the caller's to close; what is opened and who is started here, ``resources`` close.
    """

    def __init__(
        self,
        plan: Plan,
        startup: Startup,
        loop: Loop,
        outputs: Outputs,
        directory: RunDirectory,
        vmm: Child,
        nursery: Nursery | None,
        resources: ExitStack,
    ) -> None:
        self._plan = plan
        self._startup = startup
        self._loop = loop
        self._outputs = outputs
        self._name = directory.name
        self._directory = directory
        self._nursery = nursery
        self._vmm = vmm
        # Everybody that is not reaped yet, and who was the last of each name.
        self._children = [vmm]
        self._named = {VMM: vmm}
        self._spares: Spares | None = None
        self._supervisor: Supervisor | None = None
        if nursery is not None:
            self._adopt(nursery.zygote)
            self._spares = Spares(nursery, self._new_spare)
        self._resources = resources
        resources.callback(self._close_children)
        self._logs = Logs(outputs.log, plan.options.log.of("launcher"), directory.path)
        self._events = Events()
        self._traces = Traces(outputs.trace, plan.options.trace or "")
        resources.callback(self._traces.close)
        self._wiring = Wiring(plan, directory.name, directory.path)
        resources.callback(self._wiring.close)
        self._relays: dict[str, Relay] = {}
        self._terminal = self._connect_terminal()
        self._outcome: Outcome | None = None
        self._channel: Channel | None = None
        self._sequence = 0
        self._paused_for: set[str] = set()
        self._awaited: dict[int, Callable[[object], None]] = {}
        self._stop_sequence = 0
        self._last_stats: MachineStats | None = None

    def run(self) -> int:
        """Start the machine, watch it and end it; the exit status."""
        try:
            self._terminal.save()
            self._start()
            self._loop.run()
        finally:
            self._reap()
            self._terminal.finish()
            for bridge in self._plan.streams.bridges:
                bridge.finish()
        assert self._outcome is not None
        return self._report(self._outcome)

    def on_signal(self, number: signal.Signals) -> None:
        """The launcher got signal ``number``."""
        if number is signal.SIGUSR1:
            self.request(GetMachineStats())
        elif number is signal.SIGCONT:
            self._terminal.resume()
        else:
            self._stop_wanted(number.name)

    # ── children ──────────────────────────────────────────────────────────────────────

    def _adopt(self, child: Child) -> None:
        self._children.append(child)
        self._named[child.name] = child

    def _new_spare(self, child: Child) -> None:
        self._adopt(child)
        self._listen(child)

    def _close_children(self) -> None:
        for child in self._children:
            child.close()

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
        for child in self._children:
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
            seal.adopt_orphans(True)
            self._resources.callback(seal.adopt_orphans, False)
            self._nursery.ask([device.name for device in self._plan.devices])
            self._listen_to_zygote()
        self._loop.after(_START_DEADLINE, self._late)
        if self._plan.options.timeout is not None:
            timed_out = outcome.timed_out(self._plan.options.timeout)
            self._loop.after(self._plan.options.timeout, partial(self._decide, timed_out))
        # While the VMM starts: this import takes as long as it does.
        from protocol import channel

        self._context = channel.new_context()
        self._resources.callback(self._context.destroy, linger=0)

    def _listen_to_zygote(self) -> None:
        assert self._nursery is not None
        self._loop.on_readable(self._nursery.zygote.handover.fileno(), self._forked)

    def _serve_control(self) -> None:
        # Imported when the guest runs: its start does not wait for this.
        from launcher import control, handlers

        machine = handlers.Machine(
            name=self._name,
            plan=self._plan,
            loop=self._loop,
            events=self._events,
            supervisor=self._supervisor,
            relays=self._relays,
            ask=self._ask,
            stop=self._stop_wanted,
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
        return found

    def _listen(self, child: Child) -> None:
        self._loop.on_readable(child.pidfd, partial(self._died, child))
        self._loop.on_readable(child.log, partial(self._read_log, child))
        self._logs.note(Level.DEBUG, f"{child.name} is process {child.pid}")
        if child.name not in (ZYGOTE, SPARE):
            self._events.emit("started", child.name, generation=1, pid=child.pid)

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
            self._adopt(child)
            self._listen(child)
        if self._outcome:
            self._kill_all()
        elif forked:
            self._startup.mark("devices forked")
            serving = {d.name: (d, self._named[d.name]) for d in self._plan.devices}
            self._supervisor = Supervisor(self, self._wiring, self._spares, serving)
            self._hand_over_vmm()

    def _hand_over_vmm(self) -> None:
        pidfds = {device.name: self._named[device.name].pidfd for device in self._plan.devices}
        self.hand_over(self._vmm, *self._wiring.for_vmm(pidfds))
        self._loop.on_readable(self._vmm.handover.fileno(), self._bound)
        self._startup.mark("handed over")

    def hand_over(self, child: Child, payload: bytes, descriptors: dict[str, int]) -> None:
        """Send it to ``child``, with a trace if there is one (supervisor.Machine)."""
        if self._named.get(SPARE) is child:
            del self._named[SPARE]
        self._named[child.name] = child
        trace = self._traces.part(child.name)
        if trace is not None:
            descriptors = {**descriptors, "trace": trace}
        self._send(child, payload, descriptors)

    def _send(self, child: Child, payload: bytes, descriptors: dict[str, int]) -> None:
        try:
            fds.send(child.handover, payload, descriptors)
        except (BrokenPipeError, ConnectionResetError):
            self._died(child)

    def _bound(self) -> None:
        self._loop.on_readable(self._vmm.handover.fileno(), None)
        answer = fds.receive(self._vmm.handover)
        if answer is None:
            return  # its death is noticed by itself
        self._startup.mark("VMM listens")
        from protocol.channel import Channel

        self._channel = Channel(self._context, FROM_VMM)
        self._resources.callback(self._channel.close)
        self._channel.connect(self._wiring.endpoint)
        self._loop.on_readable(self._channel.fd, self._receive)
        self.request(Attach())
        for device in self._plan.devices:
            first = self._wiring.first(device)
            self.hand_over(self._named[device.name], *self._wiring.for_device(device, first))

    def _late(self) -> None:
        if not self._startup.is_ready:
            why = f"the machine was not ready within {_START_DEADLINE:g} s"
            self._decide(Outcome(3, "host-error", why, VMM))

    # ── what the VMM says ─────────────────────────────────────────────────────────────

    def request(self, message: object, then: Callable[[object], None] | None = None) -> None:
        """Ask the VMM; ``then`` gets its reply (supervisor.Machine)."""
        if self._channel is None:
            return
        self._sequence += 1
        if then is not None:
            self._awaited[self._sequence] = then
        self._traces.control(f"> {message}")
        try:
            self._channel.send(message, self._sequence)
        except ProtocolError as error:
            self._breach(error)
        # The notification of an answer may have come with an earlier one, so look at once.
        self._receive()

    def _ask(self, request: object, answered: Callable[[object], None]) -> None:
        # For one who waits for the answer. At the machine's end there may be none.
        if self._outcome:
            answered(Failed("the machine is ending"))
        else:
            self.request(request, answered)

    def _receive(self) -> None:
        assert self._channel is not None
        try:
            while (envelope := self._channel.receive()) is not None:
                self._traces.control(f"< {envelope.message}")
                self._take(envelope.message, envelope.sequence)
        except ProtocolError as error:
            self._breach(error)

    def _breach(self, error: ProtocolError) -> None:
        self._kill_all()
        self._decide(Outcome(3, "host-error", f"the VMM broke the protocol: {error}", VMM))

    def _take(self, message: object, sequence: int) -> None:
        if (then := self._awaited.pop(sequence, None)) is not None:
            then(message)
            return
        match message:
            case DeviceBound() | DeviceOffers() | DeviceAttached() | DeviceFailed():
                self._supervise(message)
            case MachineReady():
                self._startup.ready(message.phases)
                self._events.emit("ready", took=int(self._startup.phases["ready"] * 1_000_000))
                self._serve_control()
                self._logs.note(Level.DEBUG, f"started: {self._startup}")
                if self._spares is not None:
                    self._spares.prepare()
            case Rebooted():
                took = f"booted again in {message.microseconds / 1000:.1f} ms"
                self._logs.note(Level.INFO, f"the guest was reset ({message.count}), and {took}")
                self._events.emit("rebooted", took=message.microseconds * 1000)
            case Ended():
                self._decide(outcome.from_vmm(message))
            case MachineStats() if sequence == self._stop_sequence:
                self._last_stats = message
                # It waits for that, and ends; until then it is who tidies up if we are killed.
                self._terminal.put_back()
                self._directory.remove()
                self._plan.streams.remove_files()
                self._send(self._vmm, FAREWELL, {})
                self._loop.after(_EXIT_DEADLINE, self._kill_all)
            case MachineStats():
                self._say(stats.as_text(self._counted(message)))
                self._logs.note(Level.DEBUG, "statistics were asked for")
            case Failed():
                self._say(f"the VMM refused: {message.reason}")

    # ── what else happens ─────────────────────────────────────────────────────────────

    def _stop_wanted(self, by: str) -> None:
        if self._outcome:
            self._kill_all()  # the second time it is meant
        self._decide(outcome.stopped(by))

    def _read_log(self, child: Child) -> None:
        try:
            data = os.read(child.log, 64 * 1024)
        except BlockingIOError:
            return
        if data:
            self._logs.feed(child.name, data)
        else:
            self._loop.on_readable(child.log, None)

    def _died(self, child: Child) -> None:
        if not child.reap():
            return
        self._loop.on_readable(child.pidfd, None)
        if self._channel:
            self._receive()  # what was said last, of its start or its end
        if not self._outcome:
            self._bereaved(child)
        if child is self._vmm:
            self._kill_all()
        if all(child.status is not None for child in self._children):
            self._loop.end()

    def _bereaved(self, child: Child) -> None:
        # Nobody wanted it to end. What a machine that runs can bear, it bears.
        if child is self._vmm or self._supervisor is None or not self._startup.is_ready:
            self.stop_for(child)
            return
        self._read_log(child)
        self._loop.on_readable(child.log, None)
        self._logs.close(child.name)
        self._children.remove(child)
        assert self._nursery is not None
        assert self._spares is not None
        if child.name == ZYGOTE:
            self._loop.on_readable(child.handover.fileno(), None)
            self._nursery.replace_zygote()
            self._adopt(self._nursery.zygote)
            self._listen(self._nursery.zygote)
            self._listen_to_zygote()
            self._loop.after(_PAUSE, self._spares.prepare)
            return
        if self._spares.died(child):
            self._loop.after(_PAUSE, self._spares.prepare)
        else:
            self._supervisor.died(child)
        child.close()

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

    def after(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call back later."""
        self._loop.after(seconds, callback)

    def stop_for(self, child: Child) -> None:
        """The machine ends, because ``child`` died."""
        self._decide(outcome.process_died(child.name, child.how_it_ended()))

    def pause_for(self, child: Child) -> None:
        """The guest stands still, because ``child`` died."""
        self._paused_for.add(child.name)
        how = f"{child.name} {child.how_it_ended()}"
        self._say(f"{how}; the guest is paused until {child.name} is restarted", fresh_line=True)
        self._ask(Pause(), lambda _: self._events.emit("paused", detail=how))

    def resume_for(self, device: str) -> None:
        """It goes on, if it stood still for ``device`` alone (supervisor.Machine)."""
        if device in self._paused_for:
            self._paused_for.remove(device)
            if not self._paused_for:
                self._ask(Resume(), lambda _: self._events.emit("resumed"))

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
        self._dismiss_zygote()
        if self._channel is None:
            self._kill_all()
            return
        self._loop.after(STOP_DEADLINE, self._kill_all)
        self._stop_sequence = self._sequence + 1
        self.request(StopMachine())

    def _dismiss_zygote(self) -> None:
        # Not before it has told of all that it made.
        if self._spares is not None and self._nursery is not None:
            self._spares.end()
            if not self._nursery.is_expecting:
                self._nursery.zygote.hang_up()

    def _explained(self, found: Outcome) -> Outcome:
        # The VMM may be the first to know that a device is gone, but not of what it died.
        if found.culprit == VMM:
            for child in self._children:
                if child is not self._vmm and child.reap():
                    how = f"{child.how_it_ended()}: {found.message}"
                    return outcome.process_died(child.name, how)
        return found

    def _kill_all(self) -> None:
        for child in self._children:
            # Killed now, it would leave processes of whom we know nothing.
            if child.name == ZYGOTE and self._nursery and self._nursery.is_expecting:
                self._loop.after(_EXIT_DEADLINE, child.kill)
            else:
                child.kill()

    def _reap(self) -> None:
        for child in self._children:
            self._loop.on_readable(child.pidfd, None)
            self._loop.on_readable(child.log, None)
            child.kill_and_reap()
            self._read_log(child)
            self._logs.close(child.name)

    def _report(self, ended: Outcome) -> int:
        written = [
            self._written("--trace", self._plan.options.trace, self._write_trace),
            self._written("--stats", self._plan.options.stats, partial(self._write_stats, ended)),
        ]
        if ended.message:
            self._outputs.messages.write(_message(ended.message))
        for line in self._logs.tail(ended.culprit):
            self._outputs.messages.write(f"    {line}\n".encode())
        return ended.status or (0 if all(written) else 3)

    def _written(self, option: str, path: str | None, write: Callable[[], None]) -> bool:
        try:
            write()
        except OSError as error:
            self._say(f"{option}: {path}: {error.strerror}")
            return False
        return True

    def _write_trace(self) -> None:
        if skipped := self._traces.write(self._pids()):
            self._logs.note(Level.WARN, f"{skipped} lines of the trace made no sense")

    def _write_stats(self, ended: Outcome) -> None:
        if self._last_stats is None or self._plan.options.stats is None:
            return
        counted = self._counted(self._last_stats)
        if self._outputs.stats is not None:
            phases = self._startup.phases
            text = stats.as_json(counted, self._name, ended.reason, phases, self._tree())
            with open(os.dup(self._outputs.stats), "w", encoding="utf-8") as file:
                file.write(text)
        else:
            self._say(stats.as_text(counted, self._tree()))

    def _counted(self, message: MachineStats) -> MachineStats:
        # What a device's stream came to is for us to count.
        counters = {bridge.end.name: bridge.counters for bridge in self._plan.streams.bridges}
        return stats.add_counters(message, counters)

    def _pids(self) -> dict[str, int]:
        children = {name: child.pid for name, child in self._named.items()}
        return {"launcher": os.getpid(), **children}

    def _tree(self) -> list[stats.Process]:
        usages = {"launcher": resource.getrusage(resource.RUSAGE_SELF)}
        for name, child in self._named.items():
            if child.usage is not None:
                usages[name] = child.usage
        return stats.processes(self._pids(), usages)

    def _say(self, text: str, fresh_line: bool = False) -> None:
        # In the middle of a line of the guest's, ours begins one of its own.
        start = b"\n" if fresh_line else b""
        self._outputs.messages.offer(start + _message(text))


def _message(text: str) -> bytes:
    return f"vibevmm: {harmless(text)}\n".encode()
