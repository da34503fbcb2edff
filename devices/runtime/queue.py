"""One virtqueue of a device while its driver runs: from the doorbell to the handler and back."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic

from devices.runtime.device import QueueDeclaration
from devices.runtime.limits import Limit
from devices.runtime.loop import Loop
from devices.runtime.stats import QueueStats
from protocol import doorbell, trace
from protocol.journal import QueueJournal
from protocol.memory import GuestMemory
from protocol.messages import QueueSetup
from protocol.ring import Chain, Ring, RingBroken
from protocol.virtio import Feature, bit

_logger = logging.getLogger(__name__)

# Chains popped and completed together. Arbitrary: a batch halves the cost of a chain at 4, and
# beyond 32 gains nothing, while the first chain of it waits for the last.
_BATCH = 32

# How long a queue is served before other descriptors get their turn, a Stop among them, and what
# was done is published; the chain that is being handled is finished first (arbitrary).
TURN_SECONDS = 0.005

Handler = Callable[[Chain], int | None]


class Queue:
    """Serves one queue of a device through ``handler``. ``doorbells`` are its kick and its call,
    the caller's; ``broken`` is told when the driver has broken the ring, ``published`` of the
    stream position up to which everything is published.

    ::

        kick ──► pop a batch ──► handler, chain by chain ──► push ──► call, if the driver wants it
                     ▲    nothing there: enable kicks, look once more, sleep │
                     └───────────────────────────────────────────────────────┘
    """

    ring_type: type[Ring] = Ring

    def __init__(
        self,
        declaration: QueueDeclaration,
        doorbells: tuple[int, int],
        handler: Handler,
        loop: Loop,
        broken: Callable[[str], None],
        published: Callable[[int], None],
    ) -> None:
        self.declaration = declaration
        self.stats = QueueStats()
        self.position = 0
        """Where the queue's stream stands, behind all chains completed so far."""
        self.limit: Limit | None = None
        """What it may do in a second."""
        self._handler = handler
        self._loop = loop
        self._broken = broken
        self._published = published
        self._ring: Ring | None = None
        self.kick, self.call = doorbells
        """The first may change while the queue is stopped, the second at any time; below 0: there
        is none, and nobody is interrupted."""
        # Chains that the handler kept, oldest first, and completions not yet published.
        self._kept: dict[int, Chain] = {}
        self._done: list[tuple[int, int]] = []
        # Popped in a turn that ended before they were handled.
        self._waiting: deque[Chain] = deque()
        self._has_moved = False

    def attach(
        self,
        memory: GuestMemory,
        setup: QueueSetup,
        features: int,
        journal: QueueJournal | None = None,
        position: int = 0,
    ) -> None:
        """Map the ring that ``setup`` describes, and go on as ``journal`` says; its stream begins
        at ``position`` if that is fresh. RingBroken if one of them is impossible."""
        self._ring = self.ring_type(
            memory,
            setup.size,
            setup.desc,
            setup.avail,
            setup.used,
            event_idx=bool(features & bit(Feature.EVENT_IDX)),
            indirect=bool(features & bit(Feature.INDIRECT_DESC)),
            journal=journal,
            position=position,
        )
        self.position = self._ring.position
        self._has_moved = False

    def start(self) -> None:
        """Serve. What was made available before is noticed, for its kick may be long gone."""
        self._published(self.position)
        self._listen()
        self._loop.soon(self._serve)

    def _listen(self) -> None:
        self._loop.add(self.kick, self._kicked)

    def count(self) -> None:
        """Bring :attr:`stats` up to date."""

    def drain(self) -> int:
        """Carry out what was popped, and publish it; ``used.idx``. Chains that the handler keeps
        are still in flight."""
        while self._waiting:
            self._take(self._waiting.popleft())
        self._publish()
        return 0 if self._ring is None else self._ring.used_idx

    @property
    def in_flight(self) -> int:
        """Chains that were popped, and are not completed."""
        return 0 if self._ring is None else self._ring.in_flight

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Those that it has made for itself, but for :attr:`urings`."""
        return ()

    @property
    def urings(self) -> tuple[int, ...]:
        """The io_urings that it has made for itself, and enters."""
        return ()

    def settle(self) -> None:
        """Publish what is done. What is popped, and not done, is the journal's to tell."""
        self._publish()

    def stop(self) -> None:
        """Touch guest memory no more: chains in flight are forgotten, not completed."""
        self._loop.remove(self.kick)
        self._waiting.clear()
        self._kept.clear()
        self._done.clear()
        if self._ring is not None:
            self._ring.close()
            self._ring = None

    def oldest(self) -> Chain | None:
        """The chain that the handler has kept the longest."""
        return next(self.kept(), None)

    def kept(self) -> Iterator[Chain]:
        """The chains that the handler has kept, oldest first; while none is completed."""
        return iter(self._kept.values())

    def complete(self, chain: Chain, written: int) -> None:
        """Give back a kept chain, published before the loop sleeps; a chain from before the last
        stop is left alone."""
        if self._kept.get(chain.head) is chain:
            del self._kept[chain.head]
            self._finish(chain, written)
            self._loop.soon(self._publish)

    def advance(self, count: int) -> None:
        """Move :attr:`position`, for the chain that is completed next."""
        self.position += count
        self._has_moved = True

    def _kicked(self) -> None:
        doorbell.drain(self.kick)
        self.stats.kicks += 1
        self._serve()

    def _serve(self) -> None:
        ring = self._ring
        if ring is None:  # stopped since this was put off
            return
        ring.disable_kicks()
        end = monotonic() + TURN_SECONDS
        try:
            while monotonic() < end:
                if not self._waiting:
                    self._waiting.extend(ring.pop(_BATCH))
                    if not self._waiting:
                        if not ring.enable_kicks():
                            return
                        ring.disable_kicks()
                        continue
                    self.stats.batches += 1
                while self._waiting:
                    if self.limit is not None and self._is_spent(self.limit):
                        self._publish()
                        return
                    self._take(self._waiting.popleft())
                    if monotonic() >= end:
                        break
                self._publish()
        except RingBroken as error:
            self._broken(f"{self.declaration.name}: {error}")
            return
        self._loop.soon(self._serve)

    def _is_spent(self, limit: Limit) -> bool:
        # Whether the next chain has to wait. If so, that goes on by itself; otherwise it is paid.
        if seconds := limit.wait():
            self._loop.later(self._serve, seconds)
            return True
        readable, writable = self._waiting[0].sizes
        limit.take(1, readable + writable)
        return False

    def _take(self, chain: Chain) -> None:
        self.stats.chains += 1
        if chain.error is not None:
            self.stats.errors += 1
            _logger.warning("%s: chain %d: %s", self.declaration.name, chain.head, chain.error.name)
            self._done.append((chain.head, 0))
            return
        self.stats.bytes_read += chain.sizes[0]
        written = self._handler(chain)
        if written is None:
            self._kept[chain.head] = chain
        else:
            self._finish(chain, written)

    def _finish(self, chain: Chain, written: int) -> None:
        self.stats.bytes_written += written
        self._done.append((chain.head, written))

    def _publish(self) -> None:
        if self._ring is not None and self._done:
            done, self._done = self._done, []
            if self._ring.push(done, self.position):
                self._interrupt()
            if self._has_moved:
                self._has_moved = False
                self._published(self.position)

    def _interrupt(self) -> None:
        self.stats.interrupts += 1
        if self.call >= 0:
            doorbell.ring(self.call)


class TracedQueue(Queue):
    """The same, with an event for each kick, chain and interrupt. A class of its own, so that a
    queue that is not traced does not even ask."""

    trace: trace.Trace

    def _kicked(self) -> None:
        self.trace.event("kick", self.declaration.name)
        super()._kicked()

    def _take(self, chain: Chain) -> None:
        begun = trace.now()
        # Before the handler may have taken a part off: blk does so with its status byte.
        sizes = f"readable={chain.readable.size} writable={chain.writable.size}"
        super()._take(chain)
        how = "kept" if chain.head in self._kept else "done"
        self.trace.event("chain", f"{self.declaration.name} {chain.head} {sizes} {how}", begun)

    def complete(self, chain: Chain, written: int) -> None:
        """Note it, too."""
        super().complete(chain, written)
        self.trace.event("complete", f"{self.declaration.name} {chain.head} written={written}")

    def _interrupt(self) -> None:
        super()._interrupt()
        self.trace.event("interrupt", self.declaration.name)
