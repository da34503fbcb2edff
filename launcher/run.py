"""A run, from a plan that is right to an exit status: start, watch, stop, tidy.

::

    STARTING ──attached──► RUNNING ──somebody decides how it ends──► STOPPING ──all reaped──► done

Whatever happens is decided once (:class:`launcher.outcome.Outcome`); from then on everything is
on its way to the end, with a deadline, and a second wish to stop shortens it to nothing.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from launcher import outcome, stats
from launcher.logs import Logs
from launcher.loop import Loop
from launcher.outcome import Outcome
from launcher.output import Output
from launcher.plan import Plan
from launcher.rundir import RunDirectory
from launcher.signals import Signals
from launcher.spawn import Child, keep_descriptors
from launcher.startup import Startup
from launcher.terminal import Terminal
from launcher.trace import TraceFile
from launcher.wiring import Wiring
from protocol import fds
from protocol.errors import BadInput, ProtocolError
from protocol.log import Level
from protocol.messages import (
    FROM_VMM,
    Attach,
    Ended,
    Failed,
    GetMachineStats,
    MachineReady,
    MachineStats,
    PressPowerButton,
    StopMachine,
)
from protocol.trace import Trace
from vmm.hypervisor.kvm import Kvm

if TYPE_CHECKING:
    from protocol.channel import Channel

# Seconds. The VMM itself gives devices 60 to be ready, and its vCPU threads 15 and each device 5
# to stop; these are for a VMM that does not keep to that.
_START_DEADLINE = 90.0
_STOP_DEADLINE = 30.0
# Seconds for processes that have nothing more to do than to exit.
_EXIT_DEADLINE = 5.0

_VMM, _VMM_MODULE, _DEVICE_MODULE = "vmm", "vmm.entry", "devices.runtime.entry"
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_KEYBOARD, _SCREEN, _MESSAGES = 0, 1, 2


def run(plan: Plan) -> int:
    """Run what ``plan`` says; the exit status. Errors before anything is started are raised."""
    startup = Startup()
    with ExitStack() as resources:
        return Run(plan, startup, resources).run()


class Run:
    """One run; everything it opens is closed by ``resources``."""

    def __init__(self, plan: Plan, startup: Startup, resources: ExitStack) -> None:
        self._plan = plan
        self._options = plan.options
        self._startup = startup
        self._resources = resources
        # Nothing is started yet: what the user got wrong about files and KVM is found here.
        self._trace_file = TraceFile(plan.options.trace) if plan.options.trace else None
        if self._trace_file:
            resources.callback(self._trace_file.close)
        self._stats_fd = self._open("--stats", plan.options.stats) if plan.options.stats else None
        self._loop = Loop()
        self._messages = self._output(_MESSAGES)
        log = self._messages
        if plan.options.log_file:
            log = self._output(self._open("--log-file", plan.options.log_file))
        self._logs = Logs(log, plan.options.log.of("launcher"))
        self._screen = self._output(_SCREEN)
        self._screen.on_gone = lambda: self._decide(outcome.stopped("the end of its output"))
        self._serial_output = self._serial(plan.options.serial)
        Kvm().close()
        self._directory = resources.enter_context(RunDirectory(plan.options.name))
        self._outcome: Outcome | None = None
        self._children: dict[str, Child] = {}
        self._channel: Channel | None = None
        self._sequence = 0
        self._stop_sequence = 0
        self._last_stats: MachineStats | None = None
        self._trace: Trace | None = None
        self._terminal: Terminal | None = None
        startup.mark("checked")

    def run(self) -> int:
        """Start, watch and stop it; the exit status."""
        signals = Signals(self._loop, (*_STOPPING, signal.SIGUSR1, signal.SIGCONT), self._signal)
        with signals:
            try:
                self._start()
                self._loop.run()
            finally:
                self._end()
        assert self._outcome is not None
        return self._outcome.status

    # ── starting ──────────────────────────────────────────────────────────────────────

    def _start(self) -> None:
        keep_descriptors()
        # Interpreters start while we go on: they are what takes the longest.
        self._spawn(_VMM, _VMM_MODULE)
        for device in self._plan.devices:
            self._spawn(device.name, _DEVICE_MODULE)
        self._startup.mark("spawned")
        self._wiring = Wiring(self._plan, self._directory.name, self._directory.path)
        self._resources.callback(self._wiring.close)
        self._terminal = self._connect_terminal()
        for text in self._plan.streams.announcements:
            self._say(text)
        vmm = self._children[_VMM]
        pidfds = {name: child.pidfd for name, child in self._children.items() if name != _VMM}
        payload, descriptors = self._wiring.for_vmm(pidfds, _KEYBOARD, self._terminal.saved)
        self._hand_over(vmm, payload, descriptors)
        self._loop.on_readable(vmm.handover.fileno(), self._bound)
        self._loop.after(_START_DEADLINE, self._late)
        if self._options.timeout is not None:
            seconds = self._options.timeout
            self._loop.after(seconds, lambda: self._decide(outcome.timed_out(seconds)))
        if self._trace_file:
            self._trace = Trace(self._trace_file.part("launcher"), "launcher")
        # While the VMM starts: this import takes as long as it does.
        from protocol import channel

        self._context = channel.new_context()
        self._resources.callback(self._context.destroy, linger=0)
        self._startup.mark("handed over")

    def _spawn(self, name: str, module: str) -> None:
        child = Child(name, module)
        self._children[name] = child
        self._loop.on_readable(child.pidfd, lambda: self._died(child))
        self._loop.on_readable(child.log, lambda: self._read_log(child))
        self._logs.note(Level.DEBUG, f"{name} is process {child.pid}")

    def _connect_terminal(self) -> Terminal:
        commands: dict[str, Callable[[], object]] = {
            "x": lambda: self._stop_wanted("Ctrl-A x"),
            "p": lambda: self._request(PressPowerButton()),
        }
        terminal = Terminal(
            self._loop, _KEYBOARD, commands, lambda text: self._say(text, fresh_line=True)
        )
        typed = self._options.serial == "terminal"
        terminal.add("serial", self._wiring.serial, self._serial_output, typed)
        for name, stream in self._plan.streams.terminal.items():
            terminal.add(name, stream, self._screen, True)
        terminal.start()
        return terminal

    def _hand_over(self, child: Child, payload: bytes, descriptors: dict[str, int]) -> None:
        if self._trace_file:
            descriptors = {**descriptors, "trace": self._trace_file.part(child.name)}
        try:
            fds.send(child.handover, payload, descriptors)
        except (BrokenPipeError, ConnectionResetError):
            self._died(child)

    def _bound(self) -> None:
        vmm = self._children[_VMM]
        self._loop.on_readable(vmm.handover.fileno(), None)
        answer = fds.receive(vmm.handover)
        if answer is None or answer.payload != b"bound":
            self._died(vmm)
            return
        self._startup.mark("VMM listens")
        from protocol.channel import Channel

        self._channel = Channel(self._context, FROM_VMM)
        self._resources.callback(self._channel.close)
        self._channel.connect(self._wiring.endpoint)
        self._loop.on_readable(self._channel.fd, self._receive)
        self._request(Attach())
        for device in self._plan.devices:
            child = self._children[device.name]
            self._hand_over(child, *self._wiring.for_device(device))

    def _late(self) -> None:
        if self._startup.is_ready or self._outcome:
            return
        self._decide(Outcome(3, "host-error", f"not ready within {_START_DEADLINE:g} s", _VMM))

    # ── what the VMM says ─────────────────────────────────────────────────────────────

    def _request(self, message: object) -> int:
        if self._channel is None:
            return 0
        self._sequence += 1
        if self._trace:
            self._trace.event("control", f"> {message}"[:200])
        try:
            self._channel.send(message, self._sequence)
        except ProtocolError as error:
            self._breach(error)
        # The notification of an answer may have come with an earlier one, so look at once.
        self._receive()
        return self._sequence

    def _receive(self) -> None:
        assert self._channel is not None
        try:
            while (envelope := self._channel.receive()) is not None:
                if self._trace:
                    self._trace.event("control", f"< {envelope.message}"[:200])
                self._take(envelope.message, envelope.sequence)
        except ProtocolError as error:
            self._breach(error)

    def _breach(self, error: ProtocolError) -> None:
        self._kill_all()
        self._decide(Outcome(3, "host-error", f"the VMM broke the protocol: {error}", _VMM))

    def _take(self, message: object, sequence: int) -> None:
        match message:
            case MachineReady():
                self._startup.ready(message.phases)
                self._logs.note(Level.DEBUG, f"started: {self._startup}")
            case Ended():
                self._decide(outcome.from_vmm(message))
            case MachineStats() if sequence == self._stop_sequence:
                self._last_stats = message
                self._loop.after(_EXIT_DEADLINE, self._kill_all)
            case MachineStats():
                self._say(stats.as_text(message))
                self._logs.note(Level.DEBUG, "statistics were asked for")
            case Failed():
                self._say(f"the VMM refused: {message.reason}")

    # ── what else happens ─────────────────────────────────────────────────────────────

    def _signal(self, number: signal.Signals) -> None:
        if number is signal.SIGUSR1:
            self._request(GetMachineStats())
        elif number is signal.SIGCONT:
            if self._terminal:
                self._terminal.resume()
        else:
            self._stop_wanted(number.name)

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
        if child.name == _VMM and self._channel:
            self._receive()  # what it said last
        if not self._outcome:
            self._decide(outcome.process_died(child.name, child.how_it_ended()))
        if child.name == _VMM:
            self._kill_all()
        if all(child.status is not None for child in self._children.values()):
            self._loop.end()

    # ── ending ────────────────────────────────────────────────────────────────────────

    def _decide(self, found: Outcome) -> None:
        if self._outcome:
            return
        self._outcome = self._explained(found)
        self._logs.note(Level.DEBUG, f"ending: {found.reason}")
        if self._channel is None:
            self._kill_all()
            return
        self._loop.after(_STOP_DEADLINE, self._kill_all)
        self._stop_sequence = self._sequence + 1
        self._request(StopMachine())

    def _explained(self, found: Outcome) -> Outcome:
        # The VMM may be the first to know that a device is gone, but not of what it died.
        if found.culprit == _VMM:
            for name, child in self._children.items():
                if name != _VMM and child.reap():
                    return outcome.process_died(name, f"{child.how_it_ended()}: {found.message}")
        return found

    def _kill_all(self) -> None:
        for child in self._children.values():
            child.kill()

    def _end(self) -> None:
        for child in self._children.values():
            self._loop.on_readable(child.pidfd, None)
            child.kill_and_reap()
            self._read_log(child)
            self._loop.on_readable(child.log, None)
            self._logs.close(child.name)
        if self._terminal:
            self._terminal.finish()
        self._report()
        for child in self._children.values():
            child.close()

    def _report(self) -> None:
        if self._trace and self._trace_file:
            self._trace.flush()
            pids = {name: child.pid for name, child in self._children.items()}
            self._trace_file.write({**pids, "launcher": os.getpid()})
        if self._outcome is None:
            return  # an error is on its way up, which says more
        if self._last_stats and self._options.stats == "":
            self._say(stats.as_text(self._last_stats))
        elif self._last_stats and self._stats_fd is not None:
            found = stats.as_json(
                self._last_stats,
                self._directory.name,
                self._outcome.reason,
                self._startup.phases,
            )
            with open(os.dup(self._stats_fd), "w", encoding="utf-8") as file:
                json.dump(found, file, indent=2)
        if self._outcome.message:
            self._say(self._outcome.message)
        for line in self._logs.tail(self._outcome.culprit):
            self._messages.write(f"    {line}\n".encode())

    # ── the user ──────────────────────────────────────────────────────────────────────

    def _say(self, text: str, fresh_line: bool = False) -> None:
        # A line of ours in the middle of the guest's begins a line of its own.
        start = "\n" if fresh_line else ""
        self._messages.write(f"{start}vibevmm: {text}\n".encode())

    def _output(self, fd: int) -> Output:
        made = Output(fd, self._loop)
        self._resources.callback(made.close)
        return made

    def _open(self, option: str, path: str) -> int:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
            fd = os.open(path, flags, 0o666)
        except OSError as error:
            raise BadInput(option, f"{path}: {error.strerror}") from error
        self._resources.callback(os.close, fd)
        return fd

    def _serial(self, where: str) -> Output | None:
        kind, _, path = where.partition("=")
        if kind == "file":
            return self._output(self._open("--serial", path))
        return self._screen if kind == "terminal" else None
