"""A queue that a lane serves."""

from __future__ import annotations

from typing import Any

from devices.lanes.lane import End, Lane, Ring, Watch
from devices.runtime.queue import TURN_SECONDS, Queue
from protocol import ring
from protocol.journal import QueueJournal
from protocol.memory import GuestMemory
from protocol.messages import QueueSetup
from protocol.ring import RingBroken


class LaneQueue(Queue):
    """Served by ``lane`` in C; what that declines, the handler carries out.

    The loop sleeps in C, too (:class:`Sleeper`): a kick that nothing else comes with wakes no
    Python.
    """

    ring_type: type[ring.Ring] = Ring
    shares_sleep = True
    """Whether a loop's sleeper may have others besides it."""

    def __init__(self, lane: Lane, *args: Any) -> None:
        super().__init__(*args)
        self.lane = lane
        self._left = 0, 0

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
        sleeper = self._loop.sleeper
        if sleeper is None:
            self._loop.sleeper = sleeper = Sleeper()
        if not isinstance(sleeper, Sleeper) or not sleeper.join(self):
            super()._listen()

    def stop(self) -> None:
        """See Queue."""
        if isinstance(sleeper := self._loop.sleeper, Sleeper) and sleeper.leave(self):
            self._loop.sleeper = None
        self.lane.detach()
        super().stop()

    def drain(self) -> int:
        """See Queue."""
        for chain in self.lane.left_over():
            self._take(chain)
        return super().drain()

    def count(self) -> None:
        """See Queue."""
        for name, value in self.lane.count().items():
            setattr(self.stats, name, getattr(self.stats, name) + value)

    def prepare(self) -> None:
        """The lane is about to serve: tell it what it needs."""
        self.lane.doorbells = self.kick, self.call
        if self.limit is not None:
            self.lane.left = self._left = self.limit.left()

    def settled(self) -> None:
        """It has: pay for that."""
        if self.limit is not None:
            left = self.lane.left
            self.limit.take(self._left[0] - left[0], self._left[1] - left[1])

    def ended(self, end: End | RingBroken) -> None:
        """Its turn has come to this ``end``."""
        if isinstance(end, RingBroken):
            self._broken(f"{self.declaration.name}: {end}")
            return
        if end in (End.IDLE, End.WAITS):
            return
        limit = self.limit
        if end is End.SPENT and limit is not None and (seconds := limit.wait()):
            self._loop.later(self._serve, seconds)
            return
        if end is End.DECLINED:
            self._take(self.lane.declined())
            self._publish()
        self._loop.soon(self._serve)

    def _serve(self) -> None:
        if self._ring is None:  # stopped since this was put off
            return
        self.prepare()
        end = self.lane.serve()
        self.settled()
        self.ended(end)


class Sleeper:
    """Sleeps in a loop's place (loop.Sleeper), and has the lanes of its queues serve meanwhile."""

    def __init__(self) -> None:
        self._queues: list[LaneQueue] = []
        self._watch: Watch | None = None

    def join(self, queue: LaneQueue) -> bool:
        """Attend to ``queue``, too; False if that cannot be."""
        if len(self._queues) >= (Watch.MOST if queue.shares_sleep else 1):
            return False
        self._change([*self._queues, queue])
        return True

    def leave(self, queue: LaneQueue) -> bool:
        """Attend to it no more; whether nobody is left."""
        self._change([one for one in self._queues if one is not queue])
        return not self._queues

    def _change(self, queues: list[LaneQueue]) -> None:
        self._queues = queues
        self._watch = Watch([queue.lane for queue in queues]) if queues else None

    def __call__(self, others: int, milliseconds: int) -> None:
        assert self._watch is not None
        queues = self._queues
        for queue in queues:
            queue.prepare()
        which, end = self._watch.attend(others, milliseconds)
        for queue in queues:
            queue.settled()
        queues[which].ended(end)
