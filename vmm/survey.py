"""The counters of all devices, asked for at once, and waited for by nobody.

Whoever hangs holds up neither the others nor who asks: what it would have said is left out, and
why is said in its state. To kill it is the watchdog's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

from protocol.lifecycle import State
from protocol.messages import DeviceReport
from vmm.remote import DEADLINE, RemoteDevice
from vmm.seat import Seat

NO_ANSWER = "no answer"
"""The state of a device that lives and did not tell its counters."""


class Survey:
    """Of whoever sits in ``seats`` now. ``on_answer`` hears, on any thread, of each answer, which
    may be the last; at ``until``, a time of time.monotonic(), what did not come is left out."""

    def __init__(self, seats: Iterable[Seat], on_answer: Callable[[], None]) -> None:
        self.until = time.monotonic() + DEADLINE
        self._asked = [_Asked(seat) for seat in seats]
        for asked in self._asked:
            if asked.reply is not None:
                asked.reply.add_done_callback(lambda _: on_answer())

    @property
    def is_done(self) -> bool:
        """Whether there is no use in waiting for more."""
        return time.monotonic() >= self.until or not any(asked.is_open for asked in self._asked)

    def reports(self) -> tuple[DeviceReport, ...]:
        """What is known by now, of each device in the order of the seats."""
        return tuple(asked.report() for asked in self._asked)


class _Asked:
    # The state is that of when it was asked: it may be about to be told to quit.
    def __init__(self, seat: Seat) -> None:
        self.reply: Future[Any] | None = None
        self._name = seat.name
        self._remote: RemoteDevice | None = seat.remote
        self._state = State.GONE
        if self._remote is not None:
            self._state = self._remote.life.state
            if not self._remote.is_silent:
                self.reply = self._remote.ask_counters()

    @property
    def is_open(self) -> bool:
        silent = self._remote is None or self._remote.is_silent
        return not silent and self.reply is not None and not self.reply.done()

    def report(self) -> DeviceReport:
        remote, reply = self._remote, self.reply
        if remote is not None and reply is not None and reply.done() and not reply.exception():
            return DeviceReport(self._name, self._state.value, remote.counters(reply.result()))
        is_gone = remote is None or remote.life.state is State.GONE
        return DeviceReport(self._name, State.GONE.value if is_gone else NO_ANSWER, {})
