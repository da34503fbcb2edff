"""A queue that a lane serves."""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any

from devices.lanes.lane import End, Lane, Ring
from devices.runtime.queue import TURN_SECONDS, Queue
from protocol import ring
from protocol.journal import QueueJournal
from protocol.memory import GuestMemory
from protocol.messages import QueueSetup
from protocol.ring import RingBroken

# Seconds until it is tried again what a lane waits for, where nobody sleeps there (arbitrary).
_WAIT = 0.001


class LaneQueue(Queue):
    """Served by ``lane`` in C; what that declines, the handler carries out.

    The first of a loop that is started sleeps in the loop's place: a kick that nothing else comes
    with wakes no Python.
    """

    ring_type: type[ring.Ring] = Ring

    def __init__(self, lane: Lane, *args: Any) -> None:
        super().__init__(*args)
        self.lane = lane

    def attach(
        self,
        memory: GuestMemory,
        setup: QueueSetup,
        features: int,
        journal: QueueJournal | None = None,
        position: int = 0,
    ) -> None:
        """See Queue."""
        super().attach(memory, setup, features, journal, position)
        assert self._ring is not None
        self.lane.attach(self._ring, TURN_SECONDS)

    def _listen(self) -> None:
        if self._loop.sleeper is None:
            self._loop.sleeper = self._attend
        else:
            super()._listen()
            if self.lane.turns:  # what comes from there is none of the driver's
                events = select.EPOLLIN | select.EPOLLET
                self._loop.add(self.lane.source, self._serve, events)
            for uring in self.urings:
                self._loop.add(uring, self._serve)

    def stop(self) -> None:
        """See Queue."""
        if self._loop.sleeper == self._attend:
            self._loop.sleeper = None
        elif self.lane.turns:
            self._loop.remove(self.lane.source)
        # What the kernel has begun, it ends; what then is not done is forgotten.
        while self.lane.finish() is End.DECLINED:
            pass
        self.lane.detach()
        for uring in self.urings:
            self._loop.remove(uring)
        super().stop()

    def settle(self) -> None:
        """See Queue."""
        self._take_kept()
        super().settle()

    @property
    def urings(self) -> tuple[int, ...]:
        """See Queue."""
        return () if self.lane.uring is None else (self.lane.uring,)

    def drain(self) -> int:
        """See Queue."""
        self._take_kept()
        for chain in self.lane.left_over():
            self._take(chain)
        return super().drain()

    def _take_kept(self) -> None:
        while self.lane.finish() is End.DECLINED:
            self._take(self.lane.declined())

    def count(self) -> None:
        """See Queue."""
        for name, value in self.lane.count().items():
            setattr(self.stats, name, getattr(self.stats, name) + value)

    def _attend(self, others: int, milliseconds: int) -> None:
        self._go_on(lambda: self.lane.attend(others, milliseconds))

    def _serve(self) -> None:
        if self._ring is not None:  # not stopped since this was put off
            self._go_on(self.lane.serve)

    def _go_on(self, serve: Callable[[], End]) -> None:
        self._prepare()
        limit = self.limit
        if limit is not None:
            requests, size = self.lane.left = limit.left()
        try:
            end = serve()
        except RingBroken as error:
            self._is_broken(error)
            return
        if limit is not None:
            left = self.lane.left
            limit.take(requests - left[0], size - left[1])
        if end is End.IDLE:
            return
        if end is End.WAITS:
            self._loop.later(self._serve, _WAIT)
            return
        if end is End.SPENT:
            self.lane.spent()
        if end is End.SPENT and limit is not None and (seconds := limit.wait()):
            self._loop.later(self._serve, seconds)
            return
        if end is End.DECLINED:
            self._take_declined()
        self._loop.soon(self._serve)

    def _prepare(self) -> None:
        self.lane.doorbells = self.kick, self.call

    def _is_broken(self, error: RingBroken) -> None:
        self._broken(f"{self.declaration.name}: {error}")

    def _take_declined(self) -> None:
        self._take(self.lane.declined())
        self._publish()
