"""A device on the real engine, crashed behind every store that it makes to shared memory.

What a killed process leaves behind is what memory held at some store. So a crash is a *photograph*:
the hook of the fault points copies guest memory and journal, and the driver's notes, and lets the
device run on. Each photograph is then put back, a successor attaches to it, and is photographed
in its turn; whatever the second one leaves, a third one has to bring to a good end.

Requests are numbered in the order in which they are offered. The device answers with the number. A
ring's position is the set of requests completed, as a bit mask, so that one batch off shows.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from protocol import journal
from protocol.journal import Journal
from protocol.memory import GuestMemory, Region, create_memfd
from protocol.ring import Chain, Ring, RingBroken
from tests.support.driver import INDIRECT, NEXT, WRITE

# A position without any request, and a bit for one that was never offered.
BEGINNING, UNKNOWN = 1 << 62, 63

AVAIL, USED, TABLES, BUFFERS, RAM = 0x100, 0x200, 0x400, 0x800, 0x1000


class Violation(AssertionError):
    """A promise of the journal was broken; the text says which."""


class Engine(NamedTuple):
    """A build of the engine with fault points, and how its hook is set."""

    ring: type[Ring]
    set_hook: Callable[[Callable[[str], object] | None], None]


@dataclass(frozen=True)
class Script:
    """What the first device and its driver do. A step is "offer" (as many as there is room for),
    "collect", an int (pop so many), or a tuple: complete the chains held at these places, if there
    are. When the script ends, and in every successor, the rest is served in batches of ``batch``,
    last one first.
    """

    size: int
    requests: int
    steps: Sequence[str | int | tuple[int, ...]]
    batch: int
    start: int = 0xFFFE
    positions: bool = True


SCRIPTS = {
    "single": Script(2, 3, ["offer", 1, (0,), "collect", "offer", 1, (0,)], batch=1),
    "batch": Script(4, 6, ["offer", 3, (0, 1, 2), "collect", "offer", 3, (1, 0)], batch=3),
    "out of order": Script(
        4, 6, ["offer", 4, (2,), "collect", "offer", 1, (3, 0), "collect", "offer", 2], batch=2
    ),
    "no positions": Script(4, 5, ["offer", 4, (3, 1)], batch=2, positions=False),
}


@dataclass(frozen=True)
class Notes:
    """What the driver knows: requests offered, the heads that are out, those that came back."""

    offered: int = 0
    out: dict[int, int] = field(default_factory=dict)
    done: int = 0
    seen: int = 0


class Photograph(NamedTuple):
    """All that outlives a device that died at ``point``."""

    point: str
    memory: bytes
    journal: bytes
    notes: Notes


class World:
    """A queue, its journal and its driver; devices come and go."""

    def __init__(self, script: Script, memory: GuestMemory, kept: Journal) -> None:
        self.script = script
        self.memory, self.kept = memory, kept
        self.ram = memory.view(0, RAM)
        self.notes = Notes(seen=script.start)
        for idx in (AVAIL + 2, USED + 2):
            struct.pack_into("<H", self.ram, idx, script.start)

    def photograph(self, point: str) -> Photograph:
        queue = self.kept.queue(0)
        return Photograph(
            point, bytes(self.ram), bytes(queue.positions) + bytes(queue.region), self.notes
        )

    def put_back(self, photograph: Photograph) -> None:
        queue = self.kept.queue(0)
        self.ram[:] = photograph.memory
        queue.positions[:] = photograph.journal[: len(queue.positions)]
        queue.region[:] = photograph.journal[len(queue.positions) :]
        self.notes = photograph.notes

    # The driver.

    def _get(self, where: int) -> int:
        return int(struct.unpack_from("<H", self.ram, where)[0])

    def offer(self) -> None:
        """Offer requests while there are heads: the highest free one first, so that order of heads
        and order of requests differ."""
        size, notes = self.script.size, self.notes
        out, offered = dict(notes.out), notes.offered
        for head in reversed(range(size)):
            if head in out or offered == self.script.requests:
                continue
            table, data = TABLES + 32 * head, BUFFERS + 8 * head
            struct.pack_into("<II", self.ram, data, offered, 0xFFFF_FFFF)
            struct.pack_into("<QIHHQIHH", self.ram, table, data, 4, NEXT, 1, data + 4, 4, WRITE, 0)
            struct.pack_into("<QIHH", self.ram, 16 * head, table, 32, INDIRECT, 0)
            idx = self._get(AVAIL + 2)
            struct.pack_into("<H", self.ram, AVAIL + 4 + 2 * (idx % size), head)
            struct.pack_into("<H", self.ram, AVAIL + 2, (idx + 1) & 0xFFFF)
            out[head] = offered
            offered += 1
        self.notes = replace(notes, out=out, offered=offered)

    def _used(self) -> Iterator[int]:
        """Heads that came back and were not collected."""
        idx = self.notes.seen
        while idx != self._get(USED + 2):
            yield struct.unpack_from("<I", self.ram, USED + 4 + 8 * (idx % self.script.size))[0]
            idx = (idx + 1) & 0xFFFF

    def collect(self) -> None:
        out, done, heads = dict(self.notes.out), self.notes.done, list(self._used())
        for head in heads:
            if head not in out:
                raise Violation(f"head {head} came back, and was not out")
            request = out.pop(head)
            (answer,) = struct.unpack_from("<I", self.ram, BUFFERS + 8 * head + 4)
            if answer != request or done & 1 << request:
                raise Violation(f"request {request} came back with answer {answer}")
            done |= 1 << request
        seen = (self.notes.seen + len(heads)) & 0xFFFF
        self.notes = replace(self.notes, out=out, done=done, seen=seen)

    def published(self) -> int:
        """The mask of all requests that the driver was told of."""
        return self.notes.done | sum(
            1 << self.notes.out.get(head, UNKNOWN) for head in self._used()
        )


class Device:
    """One life of the device, judged at each step."""

    def __init__(self, world: World, engine: Engine) -> None:
        self.world = world
        script, expected = world.script, world.published() | BEGINNING
        try:
            self.ring = engine.ring(
                world.memory,
                script.size,
                0,
                AVAIL,
                USED,
                event_idx=False,
                journal=world.kept.queue(0),
                position=BEGINNING,
            )
        except RingBroken as broken:
            raise Violation(f"the successor is refused: {broken}") from broken
        self.held: list[tuple[int, Chain]] = []
        self.again = self.ring.in_flight
        if script.positions and self.ring.position != expected:
            raise Violation(f"position {self.ring.position:b}, not {expected:b}")

    def pop(self, limit: int) -> int:
        try:
            chains = self.ring.pop(limit)
        except RingBroken as broken:
            raise Violation(str(broken)) from broken
        for chain in chains:
            (request,) = struct.unpack("<I", chain.readable.read())
            published = self.world.published()
            if published & 1 << request:
                raise Violation(f"request {request} is begun again after it was published")
            if any(other >= request for other, _ in self.held if self.again > 0):
                raise Violation(f"request {request} is resubmitted out of order")
            begun = published | sum(1 << other for other, _ in self.held)
            if self.again <= 0 and begun != (1 << request) - 1:
                raise Violation(f"request {request} is begun after {begun:b}")
            self.again -= 1
            self.held.append((request, chain))
        return len(chains)

    def push(self, places: Sequence[int]) -> None:
        batch = [self.held[place] for place in places]
        self.held = [one for one in self.held if one not in batch]
        done, position = [], self.ring.position
        for request, chain in batch:
            chain.writable.write(struct.pack("<I", request))
            done.append((chain.head, chain.writable.written))
            position |= 1 << request
        self.ring.push(done, position if self.world.script.positions else None)

    def play(self) -> None:
        for step in self.world.script.steps:
            if isinstance(step, tuple):
                self.push([place for place in step if place < len(self.held)])
            elif isinstance(step, int):
                self.pop(step)
            else:
                getattr(self.world, step)()

    def serve(self) -> None:
        """Until the driver has all its answers, or nothing moves any more."""
        while True:
            self.world.collect()
            if self.world.notes.done == (1 << self.world.script.requests) - 1:
                return
            self.world.offer()
            self.ring.disable_kicks()
            popped = self.pop(self.world.script.batch)
            self.ring.enable_kicks()
            if not popped and not self.held:
                raise Violation(f"lost: the driver waits for {self.world.notes.out}")
            if not popped or len(self.held) >= self.world.script.batch:
                self.push(range(len(self.held))[: -self.world.script.batch - 1 : -1])


@contextmanager
def world(script: Script) -> Iterator[World]:
    with_journal = journal.create("test", [script.size])
    with_ram = create_memfd("test", RAM)
    try:
        with (
            GuestMemory(with_ram, [Region(0, RAM, 0)]) as memory,
            Journal(with_journal, [script.size]) as kept,
        ):
            yield World(script, memory, kept)
    finally:
        os.close(with_ram)
        os.close(with_journal)


def live(world: World, engine: Engine, *, first: bool = False) -> list[Photograph]:
    """One whole life; returns a photograph for each store of it."""
    taken: list[Photograph] = []
    engine.set_hook(lambda point: taken.append(world.photograph(point)))
    try:
        device = Device(world, engine)
        try:
            if first:
                device.play()
            device.serve()
        finally:
            device.held.clear()
            device.ring.close()
    finally:
        engine.set_hook(None)
    return taken


def explore(script: Script, engine: Engine) -> Counter[str]:
    """Crash the first device behind every store, and each successor behind every store again.
    Returns how often a device was crashed at each point; Violation if one crash broke a promise."""
    crashes: Counter[str] = Counter()
    with world(script) as there:
        for once in live(there, engine, first=True):
            there.put_back(once)
            crashes[once.point] += 1
            try:
                for twice in live(there, engine):
                    crashes[twice.point] += 1
                    try:
                        there.put_back(twice)
                        live(there, engine)
                    except Violation as violation:
                        raise Violation(f"{twice.point}: {violation}") from violation
            except Violation as violation:
                raise Violation(f"crashed at {once.point}, {violation}") from violation
    return crashes
