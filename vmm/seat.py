"""A device's place in the machine, which stays while its processes come and go.

The transport speaks to a seat as to a device that is always there. What the driver has asked for
is remembered here, so that a successor can be told of it; while nobody sits here, configuration
and status are answered all the same, the vCPUs run, and the guest's requests wait in their ring::

               attach                    lost (its pidfd says so)
    empty ──────────────► occupied ──────────────────────────────────► empty
                             │  ▲
                             └──┘ switch: the old one is quiet, and then dead, before the new
                                  one is led to anything that the old one could write
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

from protocol.config_space import Written
from protocol.errors import DeviceGone
from protocol.journal import Journal
from protocol.messages import QueueSetup, Quit
from protocol.specs import DeviceSlot
from vmm.remote import RemoteDevice

log = logging.getLogger(__name__)


class Wires(Protocol):
    """What leads from the doorbells of a process to the guest."""

    def connect(self, bells: Mapping[str, int]) -> None:
        """Lead these (``kick0`` …, ``call``) to the guest, and those from before no more. What
        ``call`` has been rung for before arrives."""
        ...

    def halt(self) -> None:
        """Give whoever sits there nothing new until somebody is connected again, so that it comes
        to an end; where what it has in flight stands in its journal, it need not."""
        ...


class Seat:
    """The place of the device in ``slot`` (transport.mmio.Backend). ``journal`` is its own.

    Calls come from vCPUs, through the transport, and from the main thread, which brings successors.
    """

    def __init__(self, slot: DeviceSlot, journal: Journal) -> None:
        self.slot = slot
        self.name = slot.name
        self.device_id = slot.device_id
        self.features = 0
        self.queue_sizes: Sequence[int] = ()
        self.config = b""
        self.remote: RemoteDevice | None = None
        self.on_config: Callable[[bytes], None] = lambda config: None
        self.on_broken: Callable[[str], None] = lambda reason: None
        self.empty_since = 0.0
        self.asked = self.served = 0
        """When who sits here was asked to start, and had, in nanoseconds of CLOCK_MONOTONIC; when
        it sat down, if nobody wants it to."""
        self.bells: Mapping[str, int] | None = None
        """Those that lead to the guest now, of a process that may be dead."""
        self._wires: Wires | None = None
        self._journal = journal
        self._lock = threading.RLock()
        self._features = 0
        self._queues: tuple[QueueSetup, ...] | None = None
        self._written = Written(bytearray(Written.SIZE))
        # What one that was switched from, or retired, has left, until somebody takes it over.
        self._left = b""

    # ── transport.mmio.Backend ────────────────────────────────────────────────────────

    def start(self, features: int, queues: tuple[QueueSetup, ...]) -> str | None:
        """Serve ``queues``, now or when there is a process; the reason, if one will not."""
        with self._lock:
            self._features, self._queues = features, queues
            reason = self._resume()
            if reason is not None:
                self._queues = None
            return reason

    def stop(self) -> None:
        """Return when nobody touches guest memory; what was in flight is forgotten."""
        with self._lock:
            self._queues, self._left = None, b""
            self._written.clear()
            if self.remote is not None:
                self._or_gone(self.remote.stop)
            self._journal.clear()

    def forget(self) -> None:
        """The driver has reset what it had not started: what it wrote before counts no more."""
        with self._lock:
            was_told = any(self._written)
            self._written.clear()
            if was_told and self.remote is not None:
                self._or_gone(self.remote.stop)

    def stop_queue(self, index: int) -> None:
        """The same for one queue."""
        with self._lock:
            # Taken once: the control thread may take them away (a broken ring).
            if (queues := self._queues) is not None:
                self._queues = tuple(queue for queue in queues if queue.index != index)
            if self.remote is not None:
                remote = self.remote
                self._or_gone(lambda: remote.stop_queue(index))
            self._journal.queue(index).clear()

    def write_config(self, offset: int, data: bytes) -> bytes:
        """Change the configuration, now or when there is a process; what it is now."""
        with self._lock:
            # First: should it be the last that this process hears, its successor is told.
            self._written.note(offset, data)
            if self.remote is not None:
                try:
                    self.config = self.remote.write_config(offset, data)
                except DeviceGone as error:
                    log.warning("%s", error)
            return self.config

    def _or_gone(self, action: Callable[[], None]) -> None:
        # One that did not answer has been killed: it is as quiet as can be.
        try:
            action()
        except DeviceGone as error:
            log.warning("%s", error)

    # ── who sits here ─────────────────────────────────────────────────────────────────

    @property
    def running(self) -> tuple[QueueSetup, ...]:
        """The queues that the driver wants served; none while it has not said so."""
        return self._queues or ()

    def take(self, remote: RemoteDevice) -> None:
        """``remote`` is the first, before the machine runs."""
        self._seat(remote)

    def connect(self, wires: Wires) -> None:
        """From now on ``wires`` lead the doorbells of whoever sits here to the guest, which has
        just begun a life."""
        self._wires = wires
        # While nobody sits here, those that have led to the guest go on to do so.
        bells = self.bells if self.remote is None else self.remote.bells
        if bells is not None:
            self._connect(wires, bells)

    def attach(self, remote: RemoteDevice) -> str | None:
        """Let ``remote`` serve in the empty seat; the reason, if it cannot."""
        with self._lock:
            if (reason := self.why_unfit(remote)) is not None:
                return reason
            self._seat(remote)
            if (reason := self._resume()) is not None:
                # It read what is in guest memory, and in the journal: nobody can go on there.
                self._queues = None
                self.on_broken(reason)
            return self._why_empty(remote)

    def switch(self, successor: RemoteDevice) -> str | None:
        """Put ``successor`` into the place of whoever serves; the reason, if it cannot serve. One
        that does not fit disturbs nobody; behind any other the seat is empty, or will be once
        nothing goes on for the one before, and who comes next takes over what that has left."""
        with self._lock:
            if (reason := self.why_unfit(successor)) is not None:
                return reason
            if (old := self.remote) is not None:
                self.empty_since = time.monotonic()
                if self._wires is not None:
                    self._wires.halt()
                try:
                    self._left = old.quiesce()
                    # That it is quiet is its word. It holds all that its successor will work on.
                    old.end()
                except DeviceGone as error:
                    # It could not say what it leaves behind: a crash, which costs nothing either.
                    log.warning("%s", error)
                if not old.has_ended():
                    return f"{old.name} has not come to its end, with what the kernel does for it"
            self._seat(successor)
            reason = self._resume() or self._why_empty(successor)
            if reason is not None:
                successor.fence(reason)
                if successor.has_ended():
                    self.remote = None
            return reason

    def retire(self) -> None:
        """Have whoever sits here finish what it has begun, and quit. It sits here until it is dead,
        and is given nothing new."""
        with self._lock:
            if (remote := self.remote) is not None:
                if self._wires is not None:
                    self._wires.halt()
                try:
                    self._left = remote.quiesce()
                except DeviceGone as error:
                    log.warning("%s", error)
                remote.ask(Quit())

    def lost(self, remote: RemoteDevice) -> bool:
        """``remote`` is dead: the seat is empty if it sat here. Whether it did."""
        with self._lock:
            if self.remote is not remote:
                return False
            self.remote = None
            self.empty_since = remote.died_at or time.monotonic()
            return True

    def _why_empty(self, remote: RemoteDevice) -> str | None:
        return None if self.remote is remote else f"{remote.name} ended while it was started"

    def why_unfit(self, remote: RemoteDevice) -> str | None:
        """Why ``remote`` could not take over what the driver has agreed to, if so."""
        if lacking := self._features & ~remote.features if self._queues is not None else 0:
            return f"it lacks negotiated features: {lacking:#x}"
        for queue in self.running:
            if queue.size > remote.queue_sizes[queue.index]:
                return f"queue {queue.index} has {queue.size} entries, and it takes fewer"
        return None

    def _seat(self, remote: RemoteDevice) -> None:
        self.remote = remote
        self.features = remote.features
        # The journal has no room for more.
        self.queue_sizes = tuple(map(min, remote.queue_sizes, self.slot.queues))
        remote.on_config = partial(self._config_changed, remote)
        remote.on_broken = partial(self._broken, remote)
        if self._wires is not None:
            self._connect(self._wires, remote.bells)
        self._config_changed(remote, remote.config)

    def _connect(self, wires: Wires, bells: Mapping[str, int]) -> None:
        wires.connect(bells)
        self.bells = bells

    def _resume(self) -> str | None:
        # What the driver wants, to who sits here now.
        if (remote := self.remote) is None:
            return None
        self.asked = self.served = time.monotonic_ns()
        try:
            for offset, data in self._written:
                self._config_changed(remote, remote.write_config(offset, data))
            if (queues := self._queues) is not None:
                self.asked = time.monotonic_ns()
                reason = remote.start(self._features, queues, self._left)
                self.served = time.monotonic_ns()
                if reason is None:
                    self._left = b""
                return reason
        except DeviceGone as error:
            log.warning("%s", error)
            if remote.has_ended():
                self.lost(remote)
        return None

    # What a process says unasked comes on the control thread, which must not wait for the lock;
    # one that sits here no more has nothing to say.

    def _config_changed(self, remote: RemoteDevice, config: bytes) -> None:
        if self.remote is remote:
            self.config = config
            self.on_config(config)

    def _broken(self, remote: RemoteDevice, reason: str) -> None:
        if self.remote is remote:
            self._queues = None
            self.on_broken(reason)

    def condemn(self, why: str) -> None:
        """Whoever sits here broke the rings for those who come after, too: it is killed, and the
        driver has to reset the device."""
        if (remote := self.remote) is not None:
            remote.fence(why)
        self._queues = None
        self.on_broken(why)
