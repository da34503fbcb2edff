"""The device's half of a split virtqueue (virtio 1.2, section 2.7), on the C engine in ring.c.

A device pops chains, reads and writes them, and completes them, in any order and as late as
it likes::

    for chain in ring.pop():
        ...
        done.append((chain.head, chain.writable.written))
    if ring.push(done):
        call.ring()

What a guest did wrong has one of two prices. A malformed chain costs that request: it is
popped with :attr:`Chain.error` set and nothing to read or write, and is completed with 0. A
malformed ring costs the device: :class:`RingBroken`, from then on at every pop.

One thread at a time may use a ring. The C calls release the GIL and never call Python.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import ExitStack
from enum import IntEnum
from itertools import chain as flatten
from typing import TYPE_CHECKING, Any, NamedTuple

from protocol.errors import VibeError
from protocol.journal import QueueJournal
from protocol.memory import GuestMemory
from protocol.ring._ring import ffi, lib
from protocol.ring.buffers import Chain, Reader, Writer

if TYPE_CHECKING:
    from types import TracebackType

__all__ = [
    "MAX_BATCH",
    "MAX_SEGMENTS",
    "MAX_SIZE",
    "Chain",
    "ChainError",
    "Counters",
    "Reader",
    "Ring",
    "RingBroken",
    "RingError",
    "Writer",
]

MAX_SIZE: int = lib.RING_MAX_SIZE
MAX_SEGMENTS: int = lib.RING_MAX_SEGMENTS

# The most chains one pop returns. Arbitrary; beyond some dozens a batch gains nothing.
MAX_BATCH = 256

# struct ring_chain and struct ring_completion, checked against the compiler's layout below.
_CHAIN = struct.Struct("=HHIHHII")
_COMPLETION = struct.Struct("=II")
_SEGMENT_SIZE: int = ffi.sizeof("struct iovec")

if (_CHAIN.size, _COMPLETION.size) != (
    ffi.sizeof("struct ring_chain"),
    ffi.sizeof("struct ring_completion"),
):
    raise ImportError("protocol.ring._ring was built from another ring.h; build it again")


class ChainError(IntEnum):
    """Why a chain is unusable; costs the driver that request. ring.h says what each means."""

    TOO_LONG = lib.RING_CHAIN_TOO_LONG
    NEXT_OUT_OF_RANGE = lib.RING_CHAIN_NEXT_OUT_OF_RANGE
    BUFFER_OUTSIDE_RAM = lib.RING_CHAIN_BUFFER_OUTSIDE_RAM
    READABLE_AFTER_WRITABLE = lib.RING_CHAIN_READABLE_AFTER_WRITABLE
    TOO_MANY_BYTES = lib.RING_CHAIN_TOO_MANY_BYTES
    INDIRECT_UNEXPECTED = lib.RING_CHAIN_INDIRECT_UNEXPECTED
    INDIRECT_NESTED = lib.RING_CHAIN_INDIRECT_NESTED
    INDIRECT_WITH_NEXT = lib.RING_CHAIN_INDIRECT_WITH_NEXT
    INDIRECT_LENGTH = lib.RING_CHAIN_INDIRECT_LENGTH
    INDIRECT_TOO_LARGE = lib.RING_CHAIN_INDIRECT_TOO_LARGE
    INDIRECT_OUTSIDE_RAM = lib.RING_CHAIN_INDIRECT_OUTSIDE_RAM


class RingError(IntEnum):
    """Why a ring is unusable; costs the driver the device, until it resets it."""

    SIZE = lib.RING_SIZE
    DESC_MISALIGNED = lib.RING_DESC_MISALIGNED
    AVAIL_MISALIGNED = lib.RING_AVAIL_MISALIGNED
    USED_MISALIGNED = lib.RING_USED_MISALIGNED
    DESC_OUTSIDE_RAM = lib.RING_DESC_OUTSIDE_RAM
    AVAIL_OUTSIDE_RAM = lib.RING_AVAIL_OUTSIDE_RAM
    USED_OUTSIDE_RAM = lib.RING_USED_OUTSIDE_RAM
    JOURNAL_VERSION = lib.RING_JOURNAL_VERSION
    JOURNAL_SIZE = lib.RING_JOURNAL_SIZE
    JOURNAL_USED_IDX = lib.RING_JOURNAL_USED_IDX
    JOURNAL_LINK = lib.RING_JOURNAL_LINK
    JOURNAL_INFLIGHT = lib.RING_JOURNAL_INFLIGHT
    JOURNAL_TOO_MANY = lib.RING_JOURNAL_TOO_MANY
    JOURNAL_COUNTER = lib.RING_JOURNAL_COUNTER
    JOURNAL_POSITION = lib.RING_JOURNAL_POSITION
    AVAIL_JUMP = lib.RING_AVAIL_JUMP
    HEAD_OUT_OF_RANGE = lib.RING_HEAD_OUT_OF_RANGE
    HEAD_IN_FLIGHT = lib.RING_HEAD_IN_FLIGHT


class RingBroken(VibeError):
    """The guest misplaced or broke the ring, or the journal does not fit it; ``reason`` says how.
    Answer: DEVICE_NEEDS_RESET."""

    def __init__(self, reason: RingError) -> None:
        what = "has a bad journal" if reason.name.startswith("JOURNAL") else "broken by its driver"
        super().__init__(f"virtqueue {what}: {reason.name}")
        self.reason = reason


class Counters(NamedTuple):
    """Totals since the ring was made: chains popped, pops that found any, faulty chains."""

    chains: int
    batches: int
    errors: int


class Ring:
    """One split virtqueue. ``desc``, ``avail`` and ``used`` are guest addresses of its parts.

    It goes on where ``used.idx`` stands. RingBroken if a part is misaligned or not wholly inside
    one region of RAM, or ``size`` is not a power of two up to 32768.

    With a ``journal`` it notes what it does, and finishes what a predecessor has noted there:
    chains that were left in flight come out of :meth:`pop` again, before all others and in their
    order. RingBroken if the journal cannot be that of this ring. ``position`` is where to begin
    with a fresh journal, or without one: a number of the device's own, see :meth:`push`.
    """

    # The engine; :mod:`protocol.ring.faults` has another build of it.
    _ffi, _lib = ffi, lib

    def __init__(
        self,
        memory: GuestMemory,
        size: int,
        desc: int,
        avail: int,
        used: int,
        *,
        event_idx: bool,
        indirect: bool = True,
        journal: QueueJournal | None = None,
        position: int = 0,
    ) -> None:
        ffi, lib = self._ffi, self._lib
        self.size = size
        with ExitStack() as mappings:

            def mapped(view: memoryview) -> Any:
                return mappings.enter_context(ffi.from_buffer(view, require_writable=True))

            start = mapped(memory.whole)
            self._memory = (memory.whole, int(ffi.cast("uintptr_t", start)))
            regions = [(r.gpa, r.size, start + r.offset) for r in memory.regions]
            kept: Any = ffi.NULL
            if journal is not None:
                parts = (mapped(journal.region), mapped(journal.positions), journal.size)
                kept = ffi.new("struct ring_journal *", parts)
            config = (desc, avail, used, size, event_idx, indirect, kept, position)
            error = ffi.new("enum ring_error *")
            ring = lib.ring_new(
                ffi.new("struct ring_config *", config),
                ffi.new("struct ring_region[]", regions),
                len(regions),
                error,
            )
            if not ring:
                if error[0] == lib.RING_NO_MEMORY:
                    raise MemoryError(f"no memory for a virtqueue of {size}")
                raise RingBroken(RingError(error[0]))
            self._mappings = mappings.pop_all()
        self._ring: Any = ffi.gc(ring, lib.ring_free)
        self._allocate()

    def _allocate(self) -> None:
        # Room for the longest chain and some more, for a pop stops when it could not take one.
        self._capacity = min(self.size, MAX_SEGMENTS) + MAX_SEGMENTS
        ffi = self._ffi
        self._segments = ffi.new("struct iovec[]", self._capacity)
        self._segment_bytes = ffi.buffer(self._segments)
        self._chains = ffi.new("struct ring_chain[]", MAX_BATCH)
        self._chain_bytes = ffi.buffer(self._chains)

    def _alive(self) -> Any:
        if self._ring is None:
            raise ValueError("the ring is closed")
        return self._ring

    def pop(self, limit: int = 32) -> list[Chain]:
        """Up to ``limit`` chains (256 at most), in the order the driver made them available.

        An empty list means that none waits; a short one does not. RingBroken, once all chains
        before the fault have been popped, and always from then on.
        """
        count = self._lib.ring_pop(
            self._alive(), self._chains, min(limit, MAX_BATCH), self._segments, self._capacity
        )
        if count < 0:
            raise RingBroken(RingError(-count))
        popped, memory = [], self._memory
        headers = self._chain_bytes[: count * _CHAIN.size]
        for head, error, first, readable, writable, sent, room in _CHAIN.iter_unpack(headers):
            # The segments are copied out: the chain may outlive any number of later pops.
            start = first * _SEGMENT_SIZE
            split = readable * _SEGMENT_SIZE
            segments = self._segment_bytes[start : start + split + writable * _SEGMENT_SIZE]
            why = ChainError(error) if error else None
            popped.append(Chain(head, why, memory, segments, (split, sent, room)))
        return popped

    @property
    def native(self) -> Any:
        """The engine's own ring, for C of the same build."""
        return self._alive()

    def view(self, popped: Any, segments: Any) -> Chain:
        """A chain that C has popped: a ``struct ring_chain``, and the segments of its pop."""
        first, split = popped.first, popped.readable * _SEGMENT_SIZE
        size = split + popped.writable * _SEGMENT_SIZE
        copied = self._ffi.buffer(segments + first, size)[:]
        why = ChainError(popped.error) if popped.error else None
        sizes = (split, popped.readable_size, popped.writable_size)
        return Chain(popped.head, why, self._memory, copied, sizes)

    def push(self, completions: Sequence[tuple[int, int]], position: int | None = None) -> bool:
        """Complete chains, each as (head, bytes written), in one publication.

        With it the ring's position becomes ``position``, an unsigned 64-bit number; without one it
        stays. A successor sees either both or neither. An empty list publishes nothing at all.

        True when the driver wants an interrupt; the caller then owes it one. ValueError, and
        nothing is published, if a head is not in flight, is named twice, or more was written
        than its chain could take: a mistake of the device, not of the guest.
        """
        count = len(completions)
        try:
            packed = struct.pack(f"={2 * count}I", *flatten.from_iterable(completions))
        except struct.error as error:
            raise ValueError(f"not a list of (head, written): {error}") from error
        lib, ring = self._lib, self._alive()
        done = self._ffi.from_buffer("struct ring_completion[]", packed)
        if position is None:
            result: int = lib.ring_push(ring, done, count)
        else:
            result = lib.ring_push_at(ring, done, count, position)
        if result == -lib.RING_PUSH_NOT_IN_FLIGHT:
            raise ValueError(f"a head is not in flight, or completed twice: {completions}")
        if result == -lib.RING_PUSH_TOO_MUCH:
            raise ValueError(f"more written than a chain has room for: {completions}")
        return bool(result)

    def enable_kicks(self) -> bool:
        """Ask the driver for notifications again. True if chains wait already: go on popping."""
        return bool(self._lib.ring_enable_kicks(self._alive()))

    def disable_kicks(self) -> None:
        """Tell the driver that notifications are not needed; it may send some all the same."""
        self._lib.ring_disable_kicks(self._alive())

    @property
    def in_flight(self) -> int:
        """Chains popped and not yet completed: of a new ring, those that are popped again."""
        return int(self._lib.ring_in_flight(self._alive()))

    @property
    def used_idx(self) -> int:
        """``used.idx``: how many chains were completed, modulo 2**16."""
        return int(self._lib.ring_used_idx(self._alive()))

    @property
    def position(self) -> int:
        """The device's own number, as of the last chains completed."""
        return int(self._lib.ring_position(self._alive()))

    @property
    def counters(self) -> Counters:
        """Totals since the ring was made."""
        totals = self._lib.ring_counters(self._alive())
        return Counters(totals.chains, totals.batches, totals.errors)

    def close(self) -> None:
        """Let go of guest memory; the ring and its chains are unusable afterwards."""
        if self._ring is not None:
            self._ffi.release(self._ring)
            self._ring = None
            self._mappings.close()

    def __enter__(self) -> Ring:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
