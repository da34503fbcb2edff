"""A device process whose faults can be asked for: the runtime, with a look at each point.

Classes of their own, and the ring engine's other build: where a machine does not allow it nobody
imports this, and nothing looks. What is armed stands on the device's board (protocol.faults).
"""

from __future__ import annotations

import os
import select
import signal
import struct
import time
from collections.abc import Collection
from typing import Any, NoReturn

from devices.lanes import Build, LaneQueue
from devices.lanes import faults as lanes
from devices.runtime.queue import Handler, Queue, TracedQueue
from devices.runtime.session import Session
from protocol import faults
from protocol.journal import QueueJournal
from protocol.memory import GuestMemory
from protocol.messages import QueueSetup
from protocol.ring import Chain, Ring
from protocol.ring import faults as engine

# struct virtq_used: flags, idx, then elements of 8 bytes (virtio 1.2, section 2.7.8).
_USED_IDX, _USED_RING, _ELEMENT_SIZE = 2, 4, 8
_INDEX = struct.Struct("@H")

# What Python carries out around a handler: while one is armed, a lane declines everything.
_PYTHONS = frozenset(faults.FAULTS) - {faults.KILL, faults.HANG, faults.DELAY}


class Injector:
    """Strikes with what ``board`` says, in this process."""

    def __init__(self, board: faults.Board) -> None:
        self._board = board
        self.pushing: FaultyQueue | None = None

    @property
    def queue_type(self) -> type[FaultyQueue]:
        """What queues have to be."""
        return FaultyQueue

    @property
    def traced_queue_type(self) -> type[TracedFaultyQueue]:
        """The same, of a device that is traced."""
        return TracedFaultyQueue

    @property
    def lanes(self) -> Build:
        """What lanes have to be made of."""
        # All on one thread: a fault is armed by Python, which is asked at each point.
        return Build(lanes.ffi, lanes.lib, FaultyLaneQueue, FaultyLaneQueue)

    def join(self, queue: Queue, fail: Handler) -> None:
        """``queue`` is one of them; ``fail`` answers its chains with an error."""
        assert isinstance(queue, FaultyQueue)
        queue.injector, queue.fail = self, fail

    def session(self, *args: Any) -> Session:
        """A session with ``args`` that passes points."""
        made = FaultySession(*args)
        made.injector = self
        return made

    def reached(self, point: str, unfit: Collection[str] = ()) -> faults.Strike | None:
        """``point`` is passed. What any point can suffer is done here; what is left to the caller
        is returned. ``unfit`` as for Board.passed."""
        left = None
        for strike in self._board.passed(point, unfit):
            match strike.fault.name:
                case faults.KILL:
                    _die()
                case faults.HANG:
                    _wait_until(strike.fault.until)
                case faults.DELAY:
                    _wait_until(time.monotonic_ns() + strike.fault.delay)
                case _:
                    left = strike
        return left

    def attend(self, queue: FaultyQueue) -> None:
        """The ring engine is about to work for ``queue``. It has one hook, and the process may
        serve other devices, too."""
        self.pushing = queue
        queue.set_hook(self._stored)

    def _stored(self, point: str) -> None:
        # The hook of the ring engine, in the middle of a push or a pop, or of a lane.
        unfit = _PYTHONS if point in lanes.POINTS else ()
        if point == lanes.BEGIN:
            assert isinstance(self.pushing, FaultyLaneQueue)
            armed = self._board.has_armed(_PYTHONS, lanes.POINTS)
            self.pushing.lane.decline(everything=armed)
        elif self.reached(point, unfit) is not None and self.pushing is not None:
            self.pushing.publish_again()


def _die() -> NoReturn:
    signal.raise_signal(signal.SIGKILL)
    # The first process of a namespace survives its own (pid_namespaces(7)); this is as sudden.
    os._exit(128 + signal.SIGKILL)


def _wait_until(until: int) -> None:
    # 0: for ever. By poll, which the seal allows, and not by sleep.
    waiting = select.poll()
    while not until:
        waiting.poll()
    while (left := until - time.monotonic_ns()) > 0:
        waiting.poll(left / 1e6)


class FaultyQueue(Queue):
    """A queue that passes points. ``fail`` answers a chain with an error."""

    ring_type: type[Ring] = engine.Ring
    set_hook = staticmethod(engine.set_hook)
    injector: Injector
    fail: Handler

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._sound, self._handler = self._handler, self._handle
        # Where the answer of each chain in flight goes: its Writer is consumed when it is there.
        self._answers: dict[int, list[memoryview]] = {}

    def attach(
        self,
        memory: GuestMemory,
        setup: QueueSetup,
        features: int,
        journal: QueueJournal | None = None,
        position: int = 0,
    ) -> None:
        """See Queue."""
        self.injector.reached(faults.ATTACH)
        self.injector.attend(self)
        super().attach(memory, setup, features, journal, position)
        self._setup, self._used = setup, memory.view(setup.used, _USED_RING + 8 * setup.size)

    def _handle(self, chain: Chain) -> int | None:
        self._answers[chain.head] = chain.writable.buffers()
        can_be_short = not self.declaration.verdict and chain.writable.size > 1
        unfit = () if can_be_short else (faults.SHORT_WRITE,)
        if (strike := self.injector.reached(faults.HANDLE, unfit)) is not None:
            if strike.fault.name == faults.IO_ERROR:
                return self.fail(chain)
            chain.writable.split(strike.random.randrange(1, chain.writable.size))
        return self._sound(chain)

    def _finish(self, chain: Chain, written: int) -> None:
        views = self._answers.pop(chain.head)
        # Without the verdict: that would be an error, and no corruption.
        size = min(written, sum(map(len, views)) - self.declaration.verdict)
        unfit = () if size > 0 else (faults.CORRUPT_PAYLOAD,)
        if (strike := self.injector.reached(faults.COMPLETE, unfit)) is not None:
            random = strike.random
            _flip(views, random.randrange(size), random.randrange(8))
        super()._finish(chain, written)

    def _serve(self) -> None:
        self.injector.attend(self)
        super()._serve()

    def _publish(self) -> None:
        self.injector.attend(self)
        super()._publish()

    def publish_again(self) -> None:
        """The latest completion once more, behind the engine's back."""
        (idx,) = _INDEX.unpack_from(self._used, _USED_IDX)
        last, place = self._element(idx - 1), self._element(idx)
        self._used[place] = self._used[last]
        _INDEX.pack_into(self._used, _USED_IDX, idx + 1 & 0xFFFF)

    def _element(self, idx: int) -> slice:
        start = _USED_RING + idx % self._setup.size * _ELEMENT_SIZE
        return slice(start, start + _ELEMENT_SIZE)

    def stop(self) -> None:
        """See Queue."""
        super().stop()
        self._answers.clear()

    def _interrupt(self) -> None:
        if self.injector.reached(faults.INTERRUPT) is None:
            super()._interrupt()


class TracedFaultyQueue(FaultyQueue, TracedQueue):
    """The same, traced."""


class FaultyLaneQueue(FaultyQueue, LaneQueue):
    """A lane that passes points."""

    ring_type = lanes.Ring
    set_hook = staticmethod(lanes.set_hook)

    def _attend(self, others: int, milliseconds: int) -> None:
        self.injector.attend(self)
        super()._attend(others, milliseconds)


def _flip(views: list[memoryview], at: int, bit: int) -> None:
    for view in views:
        if at < len(view):
            view[at] ^= 1 << bit
            return
        at -= len(view)


class FaultySession(Session):
    """A conversation with the VMM that passes points."""

    injector: Injector

    def _answer(self, request: object) -> object:
        answer = super()._answer(request)
        self.injector.reached(faults.answer_to(type(request)))
        return answer

    def _config_space(self) -> bytes:
        self.injector.reached(faults.READ_CONFIG)
        return super()._config_space()
