"""A device process, as the VMM sees it: requests with deadlines, and the end at the deadline.

The control thread owns every channel. Other threads, vCPUs among them, ask through
:meth:`RemoteDevice.call`, which returns the reply or, when none came in time, kills the process,
waits until nothing of it is left, and raises DeviceGone: a vCPU never waits for ever, and a
device that did not answer touches guest memory no more.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from protocol import fds
from protocol.errors import DeviceGone, ProtocolError, Unheard
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
    Quiesce,
    Quiesced,
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
from protocol.virtio import DEVICE_FEATURES, MAX_QUEUE_SIZE, RING_FEATURES
from vmm.control import Control

log = logging.getLogger(__name__)

# Seconds that a device has to answer, if it is not taken for hung sooner. A request that is under
# way in a slow disk may hold up Stop; five seconds are long for that and short for a guest that
# waits (arbitrary).
DEADLINE = 5.0
# The same, of one that was started by hand: somebody may have stopped it in a debugger, and
# thinks (arbitrary).
BY_HAND_DEADLINE = 600.0
# Seconds between two looks at whether a device that does not answer is alive at all (arbitrary).
_LOOK = 0.1
# Of a device's counters; both arbitrary, and more than any device of ours has.
_MAX_COUNTERS = 32
_MAX_NAME = 40
# Seconds that a SIGKILLed process has to be gone (measured: 0.6 to 74 ms).
_FENCE_DEADLINE = 5.0
# Seconds that one which was told to quit has to end by itself, while nobody serves (measured: 1 to
# 4 ms); and by hand, where it has a line to print and a shell to go back to (arbitrary).
_QUIT_DEADLINE, _QUIT_BY_HAND = 0.1, 1.0
# The same from when its sockets are closed (arbitrary: the kernel does little in between).
_DYING = 0.1


class RemoteDevice:
    """One process of a device: of generation ``slot.generation``, at ``slot.endpoint``.

    ``pidfd`` is the handle to kill it by, ``bells`` are its doorbells, ``kick0`` … and ``call``;
    all stay the caller's, as does ``ended``: a pipe's writing end, whose readers are the process
    and what the kernel does for it that may go on after its death (direct I/O of an io_uring).
    ``patience`` is how many seconds it has for an answer; one that was started ``by_hand`` has
    longer for what the driver waits for.
    """

    def __init__(
        self,
        slot: DeviceSlot,
        pidfd: int,
        bells: Mapping[str, int],
        control: Control,
        patience: float = DEADLINE,
        *,
        ended: int,
        by_hand: bool = False,
    ) -> None:
        self.slot = slot
        self.patience = patience
        self.bells = bells
        self.name = slot.name
        self.device_id = slot.device_id
        self.features = 0
        self.queue_sizes: Sequence[int] = ()
        self.config = b""
        self.sealed = Sealed(0, (), ())
        self.life = Lifecycle()
        self.ready: Future[None] = Future()
        """Done when the device is sealed; DeviceGone if it never will be."""
        self.on_config: Callable[[bytes], None] = lambda config: None
        self.on_broken: Callable[[str], None] = lambda reason: None
        self.fenced_because = ""
        """Why it was killed by us, if it was."""
        self.is_hung = False
        """Whether that was because it did not answer, or made no progress."""
        self.pidfd = pidfd
        self.ended = ended
        self.died_at: float | None = None
        """When it was seen to be dead, in seconds of time.monotonic(), once it was."""
        self.outlast_until = math.inf
        """Until when what goes on for it is waited for at most, in the same seconds."""
        self._pidfd_lock = threading.RLock()
        self.by_hand = by_hand
        self.is_silent = False
        """Whether it owes an answer to what was asked to see whether it lives (vmm.watchdog)."""
        self._counters: Future[Any] | None = None
        self._is_refused = False
        self._control = control
        self._channel = control.bind(slot.endpoint, FROM_DEVICE, slot.generation, self)

    # ── for the seat ──────────────────────────────────────────────────────────────────

    def start(self, features: int, queues: tuple[QueueSetup, ...], state: bytes) -> str | None:
        """Serve ``queues``, going on with a predecessor's ``state``; the reason, if it will not."""
        reply = self.call(Start(features, queues, state))
        if isinstance(reply, Failed):
            return reply.reason
        self._advance(Event.START)
        return None

    def stop(self) -> None:
        """Return when the device is quiet, or dead."""
        self.call(Stop())
        self._advance(Event.STOP)

    def quiesce(self) -> bytes:
        """Return when the device is quiet, with what it leaves to its successor."""
        # Somebody wants it replaced: even by hand it has its time.
        reply = self.wait(self.ask(Quiesce()), Quiesce(), time.monotonic() + self.patience)
        if not isinstance(reply, Quiesced):
            self.fence("it would not be quiet")
            raise DeviceGone(f"{self.name} would not be quiet")
        self._advance(Event.STOP)
        return reply.state

    def end(self) -> None:
        """Return when it has quit, or was killed because it did not: nothing of it can touch guest
        memory any more. On the thread that closes ``pidfd``."""
        self.ask(Quit())
        fds.has_ended(self.pidfd, _QUIT_BY_HAND if self.by_hand else _QUIT_DEADLINE)
        self.fence("it was told to quit, and did not")

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

    def ask_counters(self) -> Future[Any]:
        """The reply to GetStats, for :meth:`counters`. Who owes one is not asked for another: what
        a device does not read, somebody has to keep."""
        if self._counters is None or self._counters.done():
            self._counters = self.ask(GetStats())
        return self._counters

    @staticmethod
    def counters(stats: object) -> dict[str, int]:
        """A device's own counters, from what it has replied to GetStats.

        Not more than belong in a report: the device may be hostile, and the report of fifteen
        of them has to fit one message.
        """
        if not isinstance(stats, DeviceStats):
            return {}
        known = [(name, count) for name, count in stats.counters.items() if len(name) <= _MAX_NAME]
        return dict(known[:_MAX_COUNTERS])

    def quit(self, reply: Future[Any], until: float) -> None:
        """See the process end, after it was asked to (``reply`` is that to Quit), or by force."""
        if self.life.state is State.GONE:
            return
        try:
            self.wait(reply, Quit(), until)
        except DeviceGone as error:
            log.warning("%s", error)

    def call(self, request: object) -> Any:
        """The reply to ``request``; DeviceGone if none came in time."""
        patience = BY_HAND_DEADLINE if self.by_hand else self.patience
        return self.wait(self.ask(request), request, time.monotonic() + patience)

    def ask(self, request: object) -> Future[Any]:
        """Send ``request``; its reply is for :meth:`wait`."""
        if self.life.state is State.GONE:
            gone: Future[Any] = Future()
            gone.set_exception(DeviceGone(f"{self.name} is gone"))
            return gone
        return self._control.post(self._channel, request)

    def wait(self, reply: Future[Any], request: object, until: float) -> Any:
        """The reply to ``request``, waited for until that time of time.monotonic() at most."""
        while True:
            left = until - time.monotonic()
            try:
                return reply.result(timeout=max(0.0, min(left, _LOOK)))
            except DeviceGone:
                with self._pidfd_lock:
                    self._outlast()
                raise
            except FutureTimeout:
                with self._pidfd_lock:
                    if is_dead := self._has_died():
                        self._outlast()
                        self.gone()
                if not is_dead and left <= 0:
                    self.fence(f"no answer to {type(request).__name__} in time", hung=True)
                    name = type(request).__name__
                    raise DeviceGone(f"{self.name} did not answer {name}") from None

    def has_ended(self, seconds: float = 0) -> bool:
        """Whether the process is dead, or is so within ``seconds``, and nothing goes on for it."""
        until = time.monotonic() + seconds
        if not fds.has_ended(self.pidfd, seconds):
            return False
        return fds.has_ended(self.ended, max(0.0, until - time.monotonic()))

    def _is_dead(self, seconds: float = 0) -> bool:
        return self.life.state is State.GONE or self.has_ended(seconds)

    def _has_died(self, seconds: float = 0) -> bool:
        return self.life.state is State.GONE or fds.has_ended(self.pidfd, seconds)

    def _outlast(self) -> None:
        # It is dead, or killed.
        until = min(time.monotonic() + _FENCE_DEADLINE, self.outlast_until)
        has_died = self._has_died(_FENCE_DEADLINE)
        if not has_died or not self._is_dead(max(0.0, until - time.monotonic())):
            how = "dead, and the kernel still at work for it" if has_died else "alive"
            log.critical("%s is %s after SIGKILL", self.name, how)

    def fence(self, why: str, *, hung: bool = False) -> None:
        """Kill the process, if it lives, and return when nothing of it can touch guest memory any
        more. From any thread: whoever closes ``pidfd`` waits for us in :meth:`gone`."""
        with self._pidfd_lock:
            self._kill(why, hung=hung)
            self._outlast()
            self.gone()

    def _kill(self, why: str, *, hung: bool = False) -> None:
        if not self._has_died():
            log.error("%s is killed: %s", self.name, why)
            self.fenced_because = self.fenced_because or why
            self.is_hung = self.is_hung or hung
            with contextlib.suppress(ProcessLookupError):  # dead and reaped already
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def gone(self) -> None:
        """Note that the process is dead: nothing will be answered any more."""
        with self._pidfd_lock:
            self.life.advance(Event.GONE)
        self._control.abandon(self._channel, f"{self.name} is gone")
        self._not_ready(f"{self.name} ended before it was ready")

    def close(self) -> None:
        """Take the channel down, of a process that is dead or will be."""
        self._control.unbind(self._channel, f"{self.name} is gone")

    @property
    def is_ready(self) -> bool:
        """Whether it has come through its seal, alive or dead by now."""
        return self.ready.done() and self.ready.exception() is None

    # ── on the control thread ─────────────────────────────────────────────────────────

    def on_event(self, message: object) -> None:
        """What the device says unasked."""
        if self._is_refused:
            return
        match message:
            case Hello():
                self._greet(message)
            case Sealed():
                self._advance(Event.SEALED)
                held = ", ".join(message.descriptors)
                log.info("%s sealed: %d system calls; %s", self.name, message.syscalls, held)
                self.sealed = message
                with contextlib.suppress(InvalidStateError):  # it died at this very moment
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
        """The device broke the protocol: it is not talked to again. What goes on for it is waited
        for elsewhere: on this thread all others are heard."""
        with self._pidfd_lock:
            if not (isinstance(error, Unheard) and self._has_died(_DYING)):
                self._kill(f"it broke the protocol: {error}")
            # Else it broke nothing, it died.
            if self._has_died(_FENCE_DEADLINE) and self._is_dead():
                self.gone()

    def _not_ready(self, why: str) -> None:
        # Said by whichever thread sees it first.
        with contextlib.suppress(InvalidStateError):
            self.ready.set_exception(DeviceGone(why))

    def _why_refused(self, hello: Hello) -> str | None:
        ours, theirs = (PROTOCOL_VERSION, STATE_VERSION), (hello.protocol, hello.state)
        if ours != theirs:
            return (
                f"protocol {theirs[0]} and state {theirs[1]} do not fit the VMM's "
                f"protocol {ours[0]} and state {ours[1]}"
            )
        if (hello.kind, hello.device_id) != (self.slot.kind, self.slot.device_id):
            # Quoted and cut, for it ends on somebody's terminal.
            return f"a {self.slot.kind} was expected, and {hello.kind[:20]!r} says hello"
        if len(hello.queue_sizes) != len(self.slot.queues):
            return f"{len(self.slot.queues)} queues were expected, not {len(hello.queue_sizes)}"
        for size in hello.queue_sizes:
            if not 0 < size <= MAX_QUEUE_SIZE or size & size - 1:
                return f"a queue of {size} is not a power of two up to {MAX_QUEUE_SIZE}"
        if unknown := hello.features & ~(DEVICE_FEATURES | RING_FEATURES):
            return f"features {unknown:#x} belong to no device and not to the ring engine"
        return None

    def _greet(self, hello: Hello) -> None:
        self._advance(Event.HELLO)  # once: it cannot become another later
        ours = (PROTOCOL_VERSION, STATE_VERSION)
        reason = self._why_refused(hello)
        if reason is not None:
            self._is_refused = True
            self._control.send(self._channel, Refused(reason))
            self._not_ready(f"{self.name} was refused: {reason}")
            return
        self.features = hello.features
        self.queue_sizes = hello.queue_sizes
        self.config = hello.config
        self._control.send(self._channel, Welcome(*ours))

    def _advance(self, event: Event) -> None:
        # A device that died meanwhile stays dead.
        if self.life.state is not State.GONE:
            self.life.advance(event)
