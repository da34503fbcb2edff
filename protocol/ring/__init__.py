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
from enum import IntEnum
from itertools import chain as flatten
from typing import TYPE_CHECKING, Any, NamedTuple

from protocol.errors import VibeError
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
    AVAIL_JUMP = lib.RING_AVAIL_JUMP
    HEAD_OUT_OF_RANGE = lib.RING_HEAD_OUT_OF_RANGE
    HEAD_IN_FLIGHT = lib.RING_HEAD_IN_FLIGHT


class RingBroken(VibeError):
    """The guest misplaced or broke the ring; ``reason`` says how. Answer: DEVICE_NEEDS_RESET."""

    def __init__(self, reason: RingError) -> None:
        super().__init__(f"virtqueue broken by its driver: {reason.name}")
        self.reason = reason


class Counters(NamedTuple):
    """Totals since the ring was made: chains popped, pops that found any, faulty chains."""

    chains: int
    batches: int
    errors: int


class Ring:
    """One split virtqueue. ``desc``, ``avail`` and ``used`` are guest addresses of its parts.

    It goes on where ``used.idx`` stands, with nothing in flight. RingBroken if a part is
    misaligned or not wholly inside one region of RAM, or ``size`` is not a power of two up
    to 32768.
    """

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
    ) -> None:
        self.size = size
        self._mapping = ffi.from_buffer(memory.whole, require_writable=True)
        self._memory = (memory.whole, int(ffi.cast("uintptr_t", self._mapping)))
        config = (desc, avail, used, size, event_idx, indirect)
        regions = [(r.gpa, r.size, self._mapping + r.offset) for r in memory.regions]
        error = ffi.new("enum ring_error *")
        try:
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
        except BaseException:
            ffi.release(self._mapping)
            raise
        self._ring: Any = ffi.gc(ring, lib.ring_free)
        self._allocate()

    def _allocate(self) -> None:
        # Room for the longest chain and some more, for a pop stops when it could not take one.
        self._capacity = min(self.size, MAX_SEGMENTS) + MAX_SEGMENTS
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
        count = lib.ring_pop(
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

    def push(self, completions: Sequence[tuple[int, int]]) -> bool:
        """Complete chains, each as (head, bytes written), in one publication.

        True when the driver wants an interrupt; the caller then owes it one. ValueError, and
        nothing is published, if a head is not in flight, is named twice, or more was written
        than its chain could take: a mistake of the device, not of the guest.
        """
        count = len(completions)
        try:
            packed = struct.pack(f"={2 * count}I", *flatten.from_iterable(completions))
        except struct.error as error:
            raise ValueError(f"not a list of (head, written): {error}") from error
        done = ffi.from_buffer("struct ring_completion[]", packed)
        result: int = lib.ring_push(self._alive(), done, count)
        if result == -lib.RING_PUSH_NOT_IN_FLIGHT:
            raise ValueError(f"a head is not in flight, or completed twice: {completions}")
        if result == -lib.RING_PUSH_TOO_MUCH:
            raise ValueError(f"more written than a chain has room for: {completions}")
        return bool(result)

    def enable_kicks(self) -> bool:
        """Ask the driver for notifications again. True if chains wait already: go on popping."""
        return bool(lib.ring_enable_kicks(self._alive()))

    def disable_kicks(self) -> None:
        """Tell the driver that notifications are not needed; it may send some all the same."""
        lib.ring_disable_kicks(self._alive())

    @property
    def in_flight(self) -> int:
        """Chains popped and not yet completed."""
        return int(lib.ring_in_flight(self._alive()))

    @property
    def counters(self) -> Counters:
        """Totals since the ring was made."""
        totals = lib.ring_counters(self._alive())
        return Counters(totals.chains, totals.batches, totals.errors)

    def close(self) -> None:
        """Let go of guest memory; the ring and its chains are unusable afterwards."""
        if self._ring is not None:
            ffi.release(self._ring)
            self._ring = None
            ffi.release(self._mapping)

    def __enter__(self) -> Ring:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
