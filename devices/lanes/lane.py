"""A lane as Python sees it: ``struct lane`` of lane.h, attached to a ring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from devices.lanes._lanes import ffi, lib
from devices.runtime.limits import ENDLESS
from protocol import ring
from protocol.ring import Chain, RingBroken, RingError

if TYPE_CHECKING:
    from devices.lanes.queue import LaneQueue


class Ring(ring.Ring):
    """The same ring, on the engine that the lanes are built with."""

    _ffi, _lib = ffi, lib


class Build(NamedTuple):
    """One build of the lanes, and the classes of queues that it serves: on the loop's thread, and
    each on a thread of its own."""

    ffi: Any
    lib: Any
    queue: type[LaneQueue]
    threaded: type[LaneQueue]


class End(IntEnum):
    """Why a lane stopped serving; lane.h says what each means."""

    IDLE = lib.LANE_IDLE
    TURN = lib.LANE_TURN
    DECLINED = lib.LANE_DECLINED
    SPENT = lib.LANE_SPENT
    WAITS = lib.LANE_WAITS


class Lane:
    """A queue that ``carry_out`` of ``build`` serves, for the C struct ``device``; or ``turn``,
    which is not chain by chain. Of ``device`` the fields ``counted`` are counters, whose values go
    to ``counters``. ``keeper`` is its struct lane_keeper, of requests that an io_uring carries out;
    ``source`` a descriptor that it waits for besides its kick, -1 for none; ``spent`` is called
    when a turn has ended so."""

    def __init__(
        self,
        build: Build,
        carry_out: Any,
        device: Any,
        counters: Counter[str],
        counted: Sequence[str],
        keeper: Any = None,
        *,
        turn: Any = None,
        source: int = -1,
        spent: Callable[[], None] = lambda: None,
    ) -> None:
        self.build = build
        self.source = source
        self.spent = spent
        self._device = device
        self._counters, self._counted = counters, counted
        self._known: Counter[str] = Counter()
        self._ring: ring.Ring | None = None
        self._lane = build.ffi.new("struct lane *")
        self._lane.carry_out = carry_out or build.ffi.NULL
        self._lane.serve = turn or build.ffi.NULL
        self._lane.device = device
        if keeper is not None:
            self._lane.keeper = keeper

    @property
    def uring(self) -> int | None:
        """The io_uring that its keeper enters."""
        keeper = self._lane.keeper
        return keeper.ended if keeper else None

    @property
    def turns(self) -> bool:
        """Whether its source is something to be read, and not only where it sends to."""
        return bool(self._lane.serve)

    @property
    def native(self) -> Any:
        """The ``struct lane``, for C of the same build."""
        return self._lane

    def attach(self, attached: ring.Ring, turn_seconds: float) -> None:
        """Serve ``attached``, which is of this build, in turns of so long."""
        self._ring = attached
        lane = self._lane
        lane.ring = attached.native
        lane.source, lane.awaited = self.source, 0
        lane.turn_ns = int(turn_seconds * 1e9)
        self.left = ENDLESS, ENDLESS

    def detach(self) -> None:
        """Touch the ring no more; chains that were popped are forgotten."""
        self._ring = None
        self._lane.ring = self.build.ffi.NULL
        self._lane.next = self._lane.count = 0

    @property
    def doorbells(self) -> tuple[int, int]:
        """Its kick and its call, to be told before it serves; below 0: nobody is interrupted."""
        return self._lane.kick, self._lane.call

    @doorbells.setter
    def doorbells(self, doorbells: tuple[int, int]) -> None:
        self._lane.kick, self._lane.call = doorbells

    @property
    def left(self) -> tuple[int, int]:
        """Requests, and bytes of them, that may still be begun."""
        return self._lane.requests, self._lane.bytes

    @left.setter
    def left(self, left: tuple[int, int]) -> None:
        self._lane.requests, self._lane.bytes = left

    def serve(self) -> End:
        """Serve one turn. RingBroken if the driver has broken the ring."""
        return self.end(self.build.lib.lane_serve(self._lane))

    def attend(self, others: int, milliseconds: int) -> End:
        """Serve whenever there is a kick, or something of the source, and sleep in between, until
        ``others`` is readable or the time is up; or until a turn ends in another way than IDLE and
        WAITS. RingBroken."""
        return self.end(self.build.lib.lane_attend(self._lane, others, milliseconds))

    def finish(self) -> End:
        """Wait for what it has begun and not ended: IDLE when there is nothing of it, or
        DECLINED, and then again."""
        return self.end(self.build.lib.lane_finish(self._lane))

    def declined(self) -> Chain:
        """The chain that the lane has just declined."""
        declined = self._lane.declined
        return self._view(declined.chain[0], declined.segments)

    def left_over(self) -> Iterator[Chain]:
        """The chains that it has popped, and not begun: not its own any more."""
        while self._lane.next < self._lane.count:
            chain = self._lane.chains[self._lane.next]
            self._lane.next += 1
            yield self._view(chain, self._lane.segments)

    def _view(self, chain: Any, segments: Any) -> Chain:
        assert self._ring is not None
        return self._ring.view(chain, segments)

    def decline(self, *, everything: bool) -> None:
        """Decline ``everything`` from the next chain on, or only what is no lane's to do."""
        self._lane.declines = everything

    def count(self) -> Counter[str]:
        """What it has counted since the last time, by the names of QueueStats; what it counts for
        the device goes there."""
        for name in self._counted:
            self._counters[name] += self._since(name, self._device)
        counters = self._lane.counters
        return Counter({name: self._since(name, counters) for name in dir(counters)})

    def _since(self, name: str, counters: Any) -> int:
        # Read only: a thread may be counting.
        before, self._known[name] = self._known[name], getattr(counters, name)
        return self._known[name] - before

    @staticmethod
    def end(result: int) -> End:
        """What a function of lane.h has returned. RingBroken if the driver has broken the ring."""
        if result < 0:
            raise RingBroken(RingError(-result))
        return End(result)
