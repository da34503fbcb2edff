"""A thread that runs a device's mediators beside the guest: a Python thread in a call of C's that
does not hold the GIL, and returns when it is stopped or somebody breaks a ring.

::

    halted ──serve, connect──► runs ──serve, connect, halt, close──► halted
                                │
                                └── a ring breaks ──► told, halted or on its way again
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from protocol import doorbell, fds
from protocol.errors import HostError, VibeError
from protocol.ring import RingBroken, RingError
from vmm.mediation import Mediator, MediatorBroken, MediatorError
from vmm.mediation._mediator import ffi, lib

log = logging.getLogger(__name__)

# Seconds that it has to stop: for the copies of one batch, which are no more than an arena holds
# (arbitrary), and between two nudges of one that waits in a doorbell.
_DEADLINE = 10.0
_NUDGE = 0.005


class DoorbellFilled(VibeError):
    """Somebody filled the doorbell of a queue, which nobody does who only rings it."""


class Pump:
    """For the queues of device ``name`` (vmm.mediation.device.Runner). ``kicks`` and ``line`` are
    doorbells of its own: the guest's of each queue, and one that is to interrupt the guest.

    ``broken`` is called on its thread: with RingBroken for a ring of the guest's, after which the
    other queues go on; with anything else for what the device did, and then nothing goes on,
    whoever is connected, until others are to be served.
    """

    def __init__(self, name: str, queues: int, broken: Callable[[VibeError], None]) -> None:
        self.kicks = [doorbell.create() for _ in range(queues)]
        self.line = doorbell.create()
        self._name = name
        self._broken = broken
        self._mediators: dict[int, Mediator] = {}
        self._pump = lib.pump_new(queues, self.kicks, self.line)
        if self._pump == ffi.NULL:
            why = os.strerror(ffi.errno)
            fds.close_all([*self.kicks, self.line])
            raise HostError(f"no mediation for {name}: {why}")
        # Of those who change what it serves; and of them and its thread.
        self._turn = threading.RLock()
        self._state = threading.Condition()
        self._is_wanted = self._is_running = self._is_closed = False
        self.thread: threading.Thread | None = None

    # ── vmm.mediation.device.Runner ───────────────────────────────────────────────────

    def serve(self, mediators: Mapping[int, Mediator]) -> None:
        """Run these from now on, beginning with a look at each; and those from before no more."""
        with self._turn:
            self._halt()
            for index in range(len(self.kicks)):
                mediator = mediators.get(index)
                lib.pump_serve(self._pump, index, mediator.native if mediator else ffi.NULL)
            self._mediators = dict(mediators)
            self._go()

    def connect(self, bells: Mapping[str, int]) -> None:
        """The device is who holds these doorbells, and has not begun. Nobody is, at this moment."""
        with self._turn:
            self._halt()
            for mediator in self._mediators.values():
                mediator.restore()
            kicks = [bells[f"kick{index}"] for index in range(len(self.kicks))]
            if error := lib.pump_connect(self._pump, bells["call"], kicks):
                raise HostError(f"cannot listen to {self._name}: {os.strerror(error)}")
            self._go()

    def halt(self) -> None:
        """Move nothing until the next :meth:`connect` or :meth:`serve`."""
        with self._turn:
            self._halt()

    def close(self) -> None:
        """End the thread, and close its doorbells."""
        with self._turn:
            if self._is_closed:
                return
            self._halt()
            with self._state:
                self._is_closed = True
                self._state.notify_all()
            if self.thread is not None and self.thread is not threading.current_thread():
                self.thread.join(_DEADLINE)
                if self.thread.is_alive():
                    log.error("%s does not end", self.thread.name)
                    return
            lib.pump_free(self._pump)
            fds.close_all([*self.kicks, self.line])

    @property
    def is_running(self) -> bool:
        """Whether its thread is among the mediators now."""
        return self._is_running

    # ── its thread ────────────────────────────────────────────────────────────────────

    def _go(self) -> None:
        if not self._mediators:
            return
        with self._state:
            self._is_wanted = True
            self._state.notify_all()
        if self.thread is None:
            self.thread = threading.Thread(target=self._run, name=f"{self._name} mediation")
            self.thread.start()

    def _halt(self) -> None:
        until = time.monotonic() + _DEADLINE
        with self._state:
            self._is_wanted = False
            if not self._is_running:
                return
            lib.pump_stop(self._pump)
            assert self.thread is not None
            thread = self.thread.native_id
            while not self._state.wait_for(lambda: not self._is_running, _NUDGE):
                lib.pump_nudge(thread)
                if time.monotonic() > until:
                    raise HostError(f"the mediation of {self._name} does not stop")

    def _run(self) -> None:
        while True:
            with self._state:
                self._state.wait_for(lambda: self._is_wanted or self._is_closed)
                if self._is_closed:
                    return
                lib.pump_arm(self._pump)
                self._is_running = True
            end = lib.pump_run(self._pump)
            fault = _fault(end)
            with self._state:
                self._is_running = False
                if fault is not None and not isinstance(fault, RingBroken):
                    self._is_wanted = False
                    # Nor for a successor, who did not break it: only once they are others.
                    self._mediators = {}
                self._state.notify_all()
            # Not while it runs: who is told may want to stop it, or wait for somebody who does.
            if fault is not None:
                self._tell(fault)

    def _tell(self, fault: VibeError) -> None:
        try:
            self._broken(fault)
        except Exception:
            log.exception("%s: an error of ours", self._name)


def _fault(end: Any) -> VibeError | None:
    if end.reason == lib.PUMP_GUEST_BROKE:
        return RingBroken(RingError(end.guest))
    if end.reason == lib.PUMP_DEVICE_BROKE:
        return MediatorBroken(MediatorError(end.device))
    if end.reason == lib.PUMP_BELL_FULL:
        return DoorbellFilled(f"it filled the doorbell of queue {end.queue}")
    return None
