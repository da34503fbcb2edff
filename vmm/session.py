"""The VMM's main thread: one loop over everything that can happen outside of the guest.

The control thread owns the channels, the vCPU threads the guest. Both wake this one through
an eventfd; what the launcher asks, a device's death and console input arrive here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from queue import Empty, SimpleQueue

from protocol import codec, doorbell, fds
from protocol.errors import BadInput, HostError, ProtocolError, VibeError
from protocol.messages import (
    TO_VMM,
    Attach,
    Done,
    Ended,
    Failed,
    GetMachineStats,
    MachineReady,
    MachineStats,
    Pause,
    PressPowerButton,
    Rebooted,
    Resume,
    Retire,
    StopMachine,
    Switch,
)
from protocol.specs import FAREWELL, MachineSpec, Part, Successor
from protocol.trace import Trace
from vmm.control import Control
from vmm.guard import Guard
from vmm.hypervisor.base import Hypervisor
from vmm.machine import Machine
from vmm.seating import Seating
from vmm.survey import Survey
from vmm.watchdog import LOOKS, Watchdog

log = logging.getLogger(__name__)

# Seconds that all devices together have from their start to their seal. An interpreter starts
# in 25 to 190 ms; from a cold network file system in several seconds.
_READY_DEADLINE = 60.0
# Seconds that the launcher has to read the last message (arbitrary: it does nothing else then).
_FAREWELL = 5.0


class LauncherPeer:
    """The launcher's end of the conversation: requests are queued for the main thread, for what
    they ask may need other channels, which the control thread has to serve meanwhile."""

    def __init__(self, wake: int) -> None:
        self.requests: SimpleQueue[tuple[object, int]] = SimpleQueue()
        self._wake = wake

    def on_event(self, message: object) -> None:
        """The launcher sends requests only."""
        raise ProtocolError(f"{type(message).__name__} wants a sequence number")

    def on_request(self, message: object, sequence: int) -> None:
        """Queue it."""
        self.requests.put((message, sequence))
        doorbell.ring(self._wake)

    def on_violation(self, error: ProtocolError) -> None:
        """We believe the launcher; one that talks nonsense is another version."""
        log.critical("the launcher broke the protocol: %s", error)


class Session:
    """From the handover to the last statistics. ``descriptors`` are those of specs.MachineSpec,
    and stay open until the process ends. ``lacks`` are the parts of our jail that the host has
    not got."""

    def __init__(
        self,
        handover: socket.socket,
        spec: MachineSpec,
        descriptors: Mapping[str, int],
        guard: Guard,
        lacks: tuple[Part, ...],
    ) -> None:
        self._began = time.monotonic()
        self._lacks = lacks
        self._handover = handover
        self._spec = spec
        self._fds = descriptors
        self._trace = Trace(descriptors["trace"], "vmm") if "trace" in descriptors else None
        self._wake = doorbell.create()
        self._launcher = LauncherPeer(self._wake)
        self._control = Control(self._trace)
        self._channel = self._control.bind(spec.endpoint, TO_VMM, 0, self._launcher)
        self._seating = Seating(
            spec, descriptors, self._control, partial(self._control.send, self._channel)
        )
        self._seating.on_change = self._ring
        self._seating.watch, self._seating.forget = self._watch, self._forget
        self._watchdog: Watchdog | None = None
        self._guard = guard
        self._serial = socket.socket(fileno=os.dup(descriptors["serial"]))
        self._phases: dict[str, int] = {}
        self._machine: Machine | None = None
        self._failure: VibeError | None = None
        self._is_attached = self._has_started = self._has_told_end = self._is_over = False
        self._has_input_ended = False
        self._next_look = 0.0
        self._surveys: list[tuple[Survey, int]] = []  # and the requests that they answer
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], None]] = {}

    def run(self) -> None:
        """Run the machine until the launcher ends it, or is gone."""
        self._watch(self._handover.fileno(), self._handed)
        self._watch(self._wake, lambda: None)  # woken: look at everything, below
        self._seating.begin()
        self._control.start()
        try:
            fds.send(self._handover, b"bound", {})
        except (BrokenPipeError, ConnectionResetError):
            self._orphaned()
        try:
            self._machine = self._build()
            self._mark("machine built")
        except VibeError as error:
            self._failure = error
        while not self._is_over:
            try:
                self._turn()
            except VibeError as error:
                self._failure = error
                self._ring()  # another turn, in which it is told
        self._linger()
        self._close()

    def _turn(self) -> None:
        ready = self._poll.poll(self._patience())
        if not ready and not self._has_started:
            raise HostError(f"a device was not ready within {_READY_DEADLINE:g} s")
        self._look()
        for fd, _ in ready:
            if fd in self._handlers:
                self._handlers[fd]()
        doorbell.drain(self._wake)
        self._answer_launcher()
        self._tell_surveys()
        if self._can_start():
            self._start()
        if self._has_started and not self._is_over:
            self._reboot()
            self._seating.consider()
        self._listen_to_serial()
        self._tell_end()

    def _patience(self) -> float | None:
        # Milliseconds until something has to be done without a reason.
        if not self._has_started:
            return _READY_DEADLINE * 1000
        times = [survey.until for survey, _ in self._surveys]
        if self._watchdog is not None:
            times.append(self._next_look)
        return max(0.0, min(times) - time.monotonic()) * 1000 if times else None

    def _look(self) -> None:
        if self._watchdog is not None and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + self._spec.hang_after / 1000 / LOOKS
            self._watchdog.look()

    def _watch(self, fd: int, handler: Callable[[], None]) -> None:
        self._handlers[fd] = handler
        self._poll.register(fd, select.POLLIN)

    def _forget(self, fd: int) -> None:
        if self._handlers.pop(fd, None):
            self._poll.unregister(fd)

    def _ring(self) -> None:
        doorbell.ring(self._wake)

    def _mark(self, phase: str) -> None:
        self._phases[phase] = int((time.monotonic() - self._began) * 1000)

    # ── starting ──────────────────────────────────────────────────────────────────────

    def _build(self) -> Machine:
        return Machine(
            self._spec,
            self._fds,
            _backend(self._spec),
            console=self._print,
            on_room=self._ring,
            on_end=self._ring,
            trace=self._trace,
        )

    def _can_start(self) -> bool:
        return (
            self._is_attached
            and not self._has_started
            and self._failure is None
            and self._seating.is_ready
        )

    def _start(self) -> None:
        assert self._machine is not None
        self._has_started = True
        for seat in self._seating.take():
            self._machine.plug_in(seat)
        self._mark("devices ready")
        if self._spec.hang_after and self._spec.devices:
            self._watchdog = Watchdog(self._machine.rings())
        self._control.send(self._channel, MachineReady(self._phases, self._lacks))
        self._machine.start()

    def _reboot(self) -> None:
        # Here, between two decisions about who sits where.
        if self._machine is not None and self._machine.is_to_reboot and not self._failure:
            took = self._machine.reboot()
            if took is not None:
                rebooted = Rebooted(self._machine.reboots, int(took * 1e6))
                self._control.send(self._channel, rebooted)

    # ── the guest's console ───────────────────────────────────────────────────────────

    def _print(self, data: bytes) -> None:
        # On a vCPU's thread. A launcher that is gone reads nothing; _orphaned() ends that.
        with contextlib.suppress(OSError):
            self._serial.sendall(data)

    def _listen_to_serial(self) -> None:
        # Input is read only while the guest's port has room for it.
        has_room = (
            self._has_started
            and not self._has_input_ended
            and self._machine is not None
            and self._machine.life.board.keyboard.writable() > 0
        )
        if has_room and self._serial.fileno() not in self._handlers:
            self._watch(self._serial.fileno(), self._take_input)
        elif not has_room:
            self._forget(self._serial.fileno())

    def _take_input(self) -> None:
        assert self._machine is not None
        keyboard = self._machine.life.board.keyboard
        room = keyboard.writable()
        if not room:  # the guest has turned to its other console meanwhile
            return
        try:
            data = self._serial.recv(room)
        except OSError:
            data = b""  # the launcher is gone, which is noticed elsewhere
        keyboard.receive(data)
        if not data:
            self._has_input_ended = True

    def _handed(self) -> None:
        told = fds.receive(self._handover)
        if told is None:
            self._orphaned()
        else:
            successor = codec.from_plain(Successor, codec.unpack(told.payload))
            self._control.send(self._channel, self._seating.expect(successor, told.fds))

    # ── ends ──────────────────────────────────────────────────────────────────────────

    def _tell_end(self) -> None:
        if self._has_told_end or not self._is_attached:
            return
        if self._failure is not None:
            reason = "bad-input" if isinstance(self._failure, BadInput) else "host-error"
            self._control.send(self._channel, Ended(reason, str(self._failure)))
            self._has_told_end = True
        elif self._machine and self._machine.end:
            end = self._machine.end
            self._control.send(self._channel, Ended(end.reason, end.detail))
            self._has_told_end = True

    def _orphaned(self) -> None:
        # The launcher is dead. It cannot clean up, so we do; the devices die by themselves.
        log.error("the launcher is gone; the VM ends")
        self._guard.clean_up()
        # No orderly end: a vCPU may be waiting for a device that is dead, or for the launcher.
        os._exit(1)

    def _linger(self) -> None:
        # Until the launcher has read our last message: on its side, a connection that ends takes
        # with it what was received and not yet read (reconnection is off).
        farewell = select.poll()
        farewell.register(self._handover.fileno(), select.POLLIN)
        if farewell.poll(_FAREWELL * 1000) and not self._is_dismissed():
            self._guard.clean_up()

    def _is_dismissed(self) -> bool:
        said = fds.receive(self._handover)
        return said is not None and said.payload == FAREWELL

    def _close(self) -> None:
        self._control.end()
        if self._machine:
            self._machine.close()
        if self._trace:
            self._trace.flush()

    # ── what the launcher asks ────────────────────────────────────────────────────────

    def _answer_launcher(self) -> None:
        while True:
            try:
                request, sequence = self._launcher.requests.get_nowait()
            except Empty:
                return
            if isinstance(request, GetMachineStats) and self._machine:
                self._surveys.append((self._machine.survey(self._ring), sequence))
            else:
                self._control.send(self._channel, self._answer(request), sequence)

    def _answer(self, request: object) -> object:
        match request:
            case Attach():
                self._is_attached = True
                return Done()
            case GetMachineStats():
                return MachineStats(0, 0, (), ())
            case Switch():
                return self._seating.switch(request)
            case Retire():
                return self._seating.retire(request)
            case PressPowerButton():
                if self._machine is None:
                    return Failed("there is no machine")
                if not self._machine.life.board.press_power_button():
                    return Failed("this machine has no power button")
                return Done()
            case Pause():
                late = self._machine.pause() if self._machine else "no machine"
                return Failed(f"{late} does not leave the guest") if late else Done()
            case Resume():
                if self._machine:
                    self._machine.resume()
                return Done()
            case StopMachine():
                return self._stop()
        return Failed(f"{type(request).__name__} is not understood")

    def _tell_surveys(self) -> None:
        if (machine := self._machine) is None:
            return
        for survey, sequence in [one for one in self._surveys if one[0].is_done]:
            self._surveys.remove((survey, sequence))
            self._control.send(self._channel, machine.stats(survey), sequence)

    def _stop(self) -> MachineStats:
        self._is_over = self._has_told_end = True
        if self._machine is None:
            self._seating.quit()
            return MachineStats(0, 0, (), ())
        self._machine.stop()
        # Devices answer in the order in which they are asked: who has quit has told its counters.
        survey = self._machine.survey(self._ring)
        self._seating.quit()
        return self._machine.stats(survey)


def _backend(spec: MachineSpec) -> Hypervisor:
    # Only the one that is wanted is loaded.
    if spec.hypervisor == "software":
        from vmm.hypervisor.software import Software

        return Software(spec.boot.architecture)
    from vmm.hypervisor.kvm import Kvm

    return Kvm()
