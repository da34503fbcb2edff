"""A lane as Python sees it: ``struct lane`` of lane.h, attached to a ring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

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
    """One build of the lanes, and the class of queues that it serves."""

    ffi: Any
    lib: Any
    queue: type[LaneQueue]


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
    to ``counters``. ``source`` is a descriptor that it waits for besides its kick; -1: for none."""

    def __init__(
        self,
        build: Build,
        carry_out: Any,
        device: Any,
        counters: Counter[str],
        counted: Sequence[str],
        *,
        turn: Any = None,
        source: int = -1,
    ) -> None:
        self.build = build
        self._device = device
        self._counters, self._counted = counters, counted
        self._ring: ring.Ring | None = None
        self._source = source
        self._lane = build.ffi.new("struct lane *")
        self._lane.carry_out = carry_out or build.ffi.NULL
        self._lane.serve = turn or build.ffi.NULL
        self._lane.device = device

    def attach(self, attached: ring.Ring, turn_seconds: float) -> None:
        """Serve ``attached``, which is of this build, in turns of so long."""
        self._ring = attached
        lane = self._lane
        lane.ring = attached.native
        lane.source, lane.awaited = self._source, 0
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

    def serve(self) -> End | RingBroken:
        """Serve one turn: how it ended, or how the driver has broken the ring."""
        return _end(self.build.lib.lane_serve(self._lane))

    @property
    def native(self) -> Any:
        """The struct itself, for C of the same build."""
        return self._lane

    def declined(self) -> Chain:
        """The chain that the lane has just declined."""
        assert self._ring is not None
        return self._ring.view(self._lane.chains[self._lane.next - 1], self._lane.segments)

    def left_over(self) -> Iterator[Chain]:
        """The chains that it has popped, and not begun: not its own any more."""
        while self._lane.next < self._lane.count:
            self._lane.next += 1
            yield self.declined()

    def decline(self, *, everything: bool) -> None:
        """Decline ``everything`` from the next chain on, or only what is no lane's to do."""
        self._lane.declines = everything

    def count(self) -> Counter[str]:
        """What it has counted since the last time, by the names of QueueStats; what it counts for
        the device goes there."""
        for name in self._counted:
            self._counters[name] += getattr(self._device, name)
            setattr(self._device, name, 0)
        counters = self._lane.counters
        found = Counter({name: getattr(counters, name) for name in dir(counters)})
        for name in found:
            setattr(counters, name, 0)
        return found


class Watch:
    """Some ``lanes`` of one build that are attended to together: MOST at most."""

    MOST: Final[int] = lib.LANE_TOGETHER

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._build = lanes[0].build
        self._lanes = self._build.ffi.new("struct lane *[]", [lane.native for lane in lanes])
        self._count = len(lanes)
        self._which = self._build.ffi.new("uint32_t *")

    def attend(self, others: int, milliseconds: int) -> tuple[int, End | RingBroken]:
        """Serve whenever there is something for one of them, and sleep in between, until ``others``
        is readable or the time is up; or until a turn ends in another way than IDLE and WAITS:
        whose that was, by its index, and how."""
        result = self._build.lib.lane_attend(
            self._lanes, self._count, others, milliseconds, self._which
        )
        return self._which[0], _end(result)


def _end(result: int) -> End | RingBroken:
    return End(result) if result >= 0 else RingBroken(RingError(-result))
