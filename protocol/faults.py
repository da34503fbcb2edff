"""Faults that can be put into a device's process, and the points where they strike: one table.

A machine that was started with ``--allow-inject`` has a *board* for each device: a page of shared
memory that outlives its processes, in which the launcher arms faults and the process that serves
looks at every point that it passes. So a fault is armed for a device, not for a process: what it
has counted goes on in the successor of a process that it killed, and one that strikes once has
struck. The engine's points are those of protocol/ring/points.h; docs/faults.md tells the rest.
"""

from __future__ import annotations

import contextlib
import mmap
import re
import struct
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from protocol.errors import BadInput, HostError
from protocol.memory import PAGE_SIZE, create_memfd
from protocol.messages import TO_DEVICE, Refused, Welcome
from protocol.ring.atomic import load64, store64
from protocol.ring.faults import POINTS as ENGINE_POINTS

NONE = "none"
"""In the place of a fault: all that are armed are taken back."""


def answer_to(request: type) -> str:
    """The point before ``request``, a class of protocol.messages, is answered."""
    return "answer_" + re.sub(r"(?<!^)(?=[A-Z])", "_", request.__name__).lower()


ATTACH, HANDLE, COMPLETE, INTERRUPT = "attach", "handle", "complete", "interrupt"
READ_CONFIG = "read_config"

POINTS: dict[str, str] = {
    ATTACH: "a queue is about to be taken over, from the driver or a predecessor",
    HANDLE: "a chain is about to be handled",
    COMPLETE: "a chain's answer is ready, and not yet pushed",
    **dict.fromkeys(ENGINE_POINTS, "the ring engine, right behind this store (docs/journal.md)"),
    INTERRUPT: "completions are published, and the driver wants to hear of it",
    READ_CONFIG: "the configuration space is read, for the VMM, which shows it to the guest",
    **{
        answer_to(request): f"{request.__name__} of the VMM is carried out, and not yet answered"
        for request in TO_DEVICE
        if request not in (Welcome, Refused)
    },
}
"""Every point, with when a process passes it."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault; the first of ``points``, where it may strike, is meant if none is named."""

    help: str
    points: tuple[str, ...]


_ANYWHERE = (HANDLE, *(point for point in POINTS if point != HANDLE))

KILL, HANG, DELAY = "kill", "hang", "delay"
IO_ERROR, SHORT_WRITE, DROP_CALL = "io-error", "short-write", "drop-call"
DUPLICATE_USED, CORRUPT_PAYLOAD = "duplicate-used", "corrupt-payload"

FAULTS: dict[str, Kind] = {
    KILL: Kind("the process dies of SIGKILL", _ANYWHERE),
    HANG: Kind("the process does nothing more, or nothing until --for is over", _ANYWHERE),
    DELAY: Kind("the process waits; delay=SECONDS says how long", _ANYWHERE),
    IO_ERROR: Kind("the chain is answered with an error", (HANDLE,)),
    SHORT_WRITE: Kind("the chain has less room, and so gets less", (HANDLE,)),
    DROP_CALL: Kind("the interrupt is not sent", (INTERRUPT,)),
    DUPLICATE_USED: Kind("the last completion is published a second time", ("push_used_idx",)),
    CORRUPT_PAYLOAD: Kind("one bit of what was written for the guest is another", (COMPLETE,)),
}
"""Every fault. The last two are lies, which no supervisor can hide: for the testing of checkers."""

DEFAULT_DELAY = 10_000_000
"""Nanoseconds of a delay that does not say (arbitrary: a slow disk)."""


def check(fault: str, point: str) -> str:
    """The point at which ``fault`` is to strike, ``point`` or, if that is empty, its usual one;
    BadInput, with what there is, for one that is unknown or does not go with it."""
    if (kind := FAULTS.get(fault)) is None:
        raise BadInput(repr(fault), f"no such fault; there are {', '.join(FAULTS)}, and {NONE}")
    if not point:
        return kind.points[0]
    if point not in POINTS:
        raise BadInput("--at", f"{point!r} is no point; there are {', '.join(POINTS)}")
    if point not in kind.points:
        raise BadInput("--at", f"{fault} strikes at {', '.join(kind.points)}, not at {point}")
    return point


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault that is armed: it lets ``after`` passes of ``point`` go by, strikes, and, unless
    ``every`` is 0, strikes again at every ``every``-th pass from there; after ``until``,
    nanoseconds of CLOCK_MONOTONIC, no more, unless that is 0. ``delay`` is in nanoseconds."""

    name: str
    point: str
    after: int = 0
    every: int = 0
    until: int = 0
    seed: int = 0
    delay: int = DEFAULT_DELAY

    def strikes(self, passes: int) -> int:
        """How often it has struck when its point has been passed so often."""
        if passes <= self.after:
            return 0
        return 1 + ((passes - self.after - 1) // self.every if self.every else 0)

    @property
    def is_over(self) -> bool:
        """Whether its time is."""
        return bool(self.until) and time.monotonic_ns() >= self.until


@dataclass(frozen=True, slots=True)
class Strike:
    """The ``number``-th time, from 1, that ``fault`` strikes."""

    fault: Fault
    number: int

    @property
    def random(self) -> Random:
        """What decides what is left to chance: the same for the same seed and number."""
        return Random(f"{self.fault.seed}/{self.number}")


# The page begins with the number of changes so far. Behind its first 64 bytes stand slots: a serial
# number, 0 while the slot is empty or being written; the passes, with the serial number that they
# belong to in the upper bits; the fault. The launcher writes all but the passes, and the process
# that serves nothing but them.
_SLOT = struct.Struct("<HHIQQQQQ")
_CHANGES, _FIRST_SLOT, _SLOT_SIZE = 0, 64, 64
_SERIAL, _PASSES, _FAULT = 0, 8, 16
_COUNT_BITS = 40

MOST = (1 << _COUNT_BITS) - 1
"""The most that may be counted, and the most of ``after`` and ``every``."""
SLOTS = 16
"""Faults that may be armed for one device at a time (arbitrary)."""

_FAULT_NAMES, _POINT_NAMES = tuple(FAULTS), tuple(POINTS)


def create(name: str) -> int:
    """An empty board: a memfd named ``name``, sealed as guest memory is."""
    return create_memfd(name, PAGE_SIZE)


class Board:
    """A board, mapped; ``fd`` stays the caller's. HostError if it cannot be mapped."""

    def __init__(self, fd: int) -> None:
        try:
            self._map = mmap.mmap(fd, PAGE_SIZE, mmap.MAP_SHARED)
        except OSError as error:
            raise HostError(f"cannot map a page of faults: {error.strerror}") from error
        # The launcher's count of changes, which also makes serial numbers.
        self._changes = 0
        # What the process that serves has read, after how many changes: the faults at each point.
        self._seen = -1
        self._at: dict[str, list[tuple[int, int, Fault]]] = {}

    # ── the launcher ──────────────────────────────────────────────────────────────────

    def arm(self, fault: Fault) -> None:
        """Arm ``fault``, beside those that are; HostError if there is no room for it."""
        slot = self._free()
        store64(self._map, slot + _SERIAL, 0)
        _SLOT.pack_into(
            self._map,
            slot + _FAULT,
            _FAULT_NAMES.index(fault.name),
            _POINT_NAMES.index(fault.point),
            0,
            fault.after,
            fault.every,
            fault.until,
            fault.seed,
            fault.delay,
        )
        store64(self._map, slot + _SERIAL, self._changes + 1)
        self._changed()

    def clear(self) -> None:
        """Take all of them back."""
        for slot in self._slots():
            store64(self._map, slot + _SERIAL, 0)
        self._changed()

    def armed(self) -> list[tuple[Fault, int]]:
        """What is armed, or has been and is over, with how often its point was passed."""
        return [(fault, self._count(slot, serial)) for slot, serial, fault in self._faults()]

    def _changed(self) -> None:
        self._changes += 1
        store64(self._map, _CHANGES, self._changes)

    def _free(self) -> int:
        taken = {slot: (serial, fault) for slot, serial, fault in self._faults()}
        for slot in self._slots():
            if slot not in taken:
                return slot
        for slot, (serial, fault) in taken.items():
            has_struck = not fault.every and fault.strikes(self._count(slot, serial))
            if has_struck or fault.is_over:
                return slot
        raise HostError(f"{SLOTS} faults are armed already, the most; {NONE!r} takes them back")

    # ── the process that serves ───────────────────────────────────────────────────────

    def passed(self, point: str, unfit: Collection[str] = ()) -> list[Strike]:
        """``point`` is passed: what strikes there now. For faults named in ``unfit`` it does not
        count, because there is nothing that they could do."""
        found = []
        for slot, serial, fault in self._armed_at(point):
            if fault.name in unfit or fault.is_over:
                continue
            before = self._count(slot, serial)
            if before == MOST:
                continue
            # First noted, then done: it may be the last that this process does.
            store64(self._map, slot + _PASSES, serial << _COUNT_BITS | before + 1)
            number = fault.strikes(before + 1)
            if number > fault.strikes(before):
                found.append(Strike(fault, number))
        return found

    def has_armed(self, names: Collection[str], points: Collection[str]) -> bool:
        """Whether a fault of ``names`` is armed at one of ``points``, or was and has struck."""
        return any(fault.name in names for point in points for _, _, fault in self._armed_at(point))

    def _armed_at(self, point: str) -> Sequence[tuple[int, int, Fault]]:
        changes = load64(self._map, _CHANGES)
        if changes != self._seen:
            self._seen, self._at = changes, {}
            for armed in self._faults():
                self._at.setdefault(armed[2].point, []).append(armed)
        return self._at.get(point, ())

    # ── both ──────────────────────────────────────────────────────────────────────────

    @staticmethod
    def _slots() -> range:
        return range(_FIRST_SLOT, _FIRST_SLOT + SLOTS * _SLOT_SIZE, _SLOT_SIZE)

    def _faults(self) -> Iterator[tuple[int, int, Fault]]:
        for slot in self._slots():
            serial = load64(self._map, slot + _SERIAL)
            if not serial:
                continue
            name, point, _, *numbers = _SLOT.unpack_from(self._map, slot + _FAULT)
            if load64(self._map, slot + _SERIAL) == serial:  # and not just taken back
                yield slot, serial, Fault(_FAULT_NAMES[name], _POINT_NAMES[point], *numbers)

    def _count(self, slot: int, serial: int) -> int:
        passes = load64(self._map, slot + _PASSES)
        return passes & MOST if passes >> _COUNT_BITS == serial else 0

    def close(self) -> None:
        """Unmap it."""
        with contextlib.suppress(BufferError):
            self._map.close()
