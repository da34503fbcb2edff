"""A device process, as the VMM sees it: requests with deadlines, and the end at the deadline.

The control thread owns every channel. Other threads, vCPUs among them, ask through
:meth:`RemoteDevice.call`, which returns the reply or, when none came in time, kills the process,
waits until nothing of it is left, and raises DeviceGone: a vCPU never waits for ever, and a
device that did not answer touches guest memory no more.
"""

from __future__ import annotations

import logging
import select
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from protocol.errors import DeviceGone, ProtocolError
from protocol.lifecycle import Event, Lifecycle, State
from protocol.messages import (
    FROM_DEVICE,
    PROTOCOL_VERSION,
    STATE_VERSION,
    ConfigChanged,
    DeviceStats,
    Failed,
    GetStats,
    Hello,
    NeedsReset,
    QueueSetup,
    Quit,
    Refused,
    Sealed,
    Start,
    Stop,
    StopQueue,
    Welcome,
    WriteConfig,
)
from protocol.specs import DeviceSlot
from vmm.control import Control

log = logging.getLogger(__name__)

# Seconds that a device has to answer. A request that is under way in a slow disk may hold up
# Stop; five seconds are long for that and short for a guest that waits (arbitrary).
DEADLINE = 5.0
# Of a device's counters; both arbitrary, and more than any device of ours has.
_MAX_COUNTERS = 32
_MAX_NAME = 40
# Seconds that a SIGKILLed process has to be gone (measured: 0.6 to 74 ms).
_FENCE_DEADLINE = 5.0


class RemoteDevice:
    """One device process. ``pidfd`` is the handle to kill it by; both stay the caller's."""

    def __init__(self, slot: DeviceSlot, pidfd: int, control: Control) -> None:
        self.slot = slot
        self.name = slot.name
        self.device_id = slot.device_id
        self.features = 0
        self.queue_sizes: Sequence[int] = ()
        self.config = b""
        self.life = Lifecycle()
        self.ready: Future[None] = Future()
        """Done when the device is sealed; DeviceGone if it never will be."""
        self.on_config: Callable[[bytes], None] = lambda config: None
        self.on_broken: Callable[[str], None] = lambda reason: None
        self._pidfd = pidfd
        self._control = control
        self._channel = control.bind(slot.endpoint, FROM_DEVICE, slot.generation, self)

    # ── transport.mmio.Backend ────────────────────────────────────────────────────────

    def start(self, features: int, queues: tuple[QueueSetup, ...]) -> str | None:
        """Serve ``queues``; the reason, if the device will not."""
        reply = self.call(Start(features, queues))
        if isinstance(reply, Failed):
            return reply.reason
        self._advance(Event.START)
        return None

    def stop(self) -> None:
        """Return when the device is quiet, or dead."""
        self.call(Stop())
        self._advance(Event.STOP)

    def stop_queue(self, index: int) -> None:
        """Return when queue ``index`` is quiet, or the device dead."""
        self.call(StopQueue(index))

    def write_config(self, offset: int, data: bytes) -> bytes:
        """Change the configuration; what it is now."""
        reply = self.call(WriteConfig(offset, data))
        if isinstance(reply, ConfigChanged):
            self.config = reply.config
        return self.config

    # ── the machine ───────────────────────────────────────────────────────────────────

    def counters(self) -> dict[str, int]:
        """The device's own counters; empty if it is gone. Not more than belong in a report: the
        device may be hostile, and the report of fifteen of them has to fit one message."""
        try:
            reply = self.call(GetStats())
        except DeviceGone:
            return {}
        if not isinstance(reply, DeviceStats):
            return {}
        known = [(name, count) for name, count in reply.counters.items() if len(name) <= _MAX_NAME]
        return dict(known[:_MAX_COUNTERS])

    def quit(self) -> None:
        """End the process: by asking, or else by force."""
        if self.life.state is State.GONE:
            return
        try:
            self.call(Quit())
        except DeviceGone as error:
            log.warning("%s", error)

    def call(self, request: object, deadline: float = DEADLINE) -> Any:
        """The reply to ``request``; DeviceGone if none came within ``deadline`` seconds."""
        if self.life.state is State.GONE:
            raise DeviceGone(f"{self.name} is gone")
        reply = self._control.post(self._channel, request)
        try:
            return reply.result(timeout=deadline)
        except FutureTimeout:
            self.fence(f"no answer to {type(request).__name__} within {deadline:g} s")
            raise DeviceGone(f"{self.name} did not answer {type(request).__name__}") from None

    def fence(self, why: str) -> None:
        """Kill the process, and return when nothing of it can touch guest memory any more."""
        log.error("%s is killed: %s", self.name, why)
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass  # dead and reaped already
        else:
            waiting = select.poll()
            waiting.register(self._pidfd, select.POLLIN)
            if not waiting.poll(_FENCE_DEADLINE * 1000):
                log.critical("%s is still alive after SIGKILL", self.name)
        self.gone()

    def gone(self) -> None:
        """Note that the process is dead: nothing will be answered any more."""
        self.life.advance(Event.GONE)
        self._control.abandon(self._channel, f"{self.name} is gone")
        if not self.ready.done():
            self.ready.set_exception(DeviceGone(f"{self.name} ended before it was ready"))

    # ── on the control thread ─────────────────────────────────────────────────────────

    def on_event(self, message: object) -> None:
        """What the device says unasked."""
        match message:
            case Hello():
                self._greet(message)
            case Sealed():
                self._advance(Event.SEALED)
                held = ", ".join(message.descriptors)
                log.info("%s sealed: %d system calls; %s", self.name, message.syscalls, held)
                self.ready.set_result(None)
            case ConfigChanged():
                self.config = message.config
                self.on_config(message.config)
            case NeedsReset():
                self._advance(Event.BROKEN)
                self.on_broken(message.reason)
            case _:
                raise ProtocolError(f"{type(message).__name__} is no event")

    def on_request(self, message: object, sequence: int) -> None:
        """A reply that nobody waits for: devices ask nothing of the VMM."""
        raise ProtocolError(f"{type(message).__name__} answers nothing")

    def on_violation(self, error: ProtocolError) -> None:
        """The device broke the protocol: it is not talked to again."""
        self.fence(f"it broke the protocol: {error}")
        self.on_broken(f"{self.name} broke the protocol")

    def _greet(self, hello: Hello) -> None:
        ours, theirs = (PROTOCOL_VERSION, STATE_VERSION), (hello.protocol, hello.state)
        reason = None
        if ours != theirs:
            reason = (
                f"protocol {theirs[0]} and state {theirs[1]} do not fit the VMM's "
                f"protocol {ours[0]} and state {ours[1]}"
            )
        elif (hello.kind, hello.device_id) != (self.slot.kind, self.slot.device_id):
            reason = f"a {self.slot.kind} was expected, and {hello.kind} says hello"
        elif len(hello.queue_sizes) != self.slot.queues:
            reason = f"{self.slot.queues} queues were expected, not {len(hello.queue_sizes)}"
        if reason is not None:
            self._control.send(self._channel, Refused(reason))
            self.ready.set_exception(DeviceGone(f"{self.name} was refused: {reason}"))
            return
        self._advance(Event.HELLO)
        self.features = hello.features
        self.queue_sizes = hello.queue_sizes
        self.config = hello.config
        self._control.send(self._channel, Welcome(*ours))

    def _advance(self, event: Event) -> None:
        # A device that died meanwhile stays dead.
        if self.life.state is not State.GONE:
            self.life.advance(event)
