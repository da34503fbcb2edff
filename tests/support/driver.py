"""The driver's half of a split virtqueue, written from virtio 1.2, section 2.7.

It shares nothing with the engine that it tests: plain Python over the bytes of guest
memory. It keeps the rules of the specification; tests that break them write the raw
structures with :meth:`Driver.write_descriptor` and :meth:`Driver.offer`.

::

    base ──► descriptor table │ avail │ used │ indirect tables and buffers … base + length
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from protocol.memory import GuestMemory

NEXT, WRITE, INDIRECT = 1, 2, 4  # 2.7.5
AVAIL_NO_INTERRUPT = 1  # 2.7.6
USED_NO_NOTIFY = 1  # 2.7.8

_DESCRIPTOR = struct.Struct("<QIHH")
_ELEMENT = struct.Struct("<II")
_U16 = struct.Struct("<H")


@dataclass(frozen=True, slots=True)
class Used:
    """A chain that came back: its head, the device's ``len``, and the bytes of the writable
    part up to ``len``."""

    head: int
    written: int
    data: bytes


@dataclass(slots=True)
class _Pending:
    descriptors: list[int]
    writable: list[tuple[int, int]]
    allocated: list[tuple[int, int]] = field(default_factory=list)


class OutOfRoom(Exception):
    """No free descriptors, or no memory for buffers: nothing was added."""


class Driver:
    """Lays a queue of ``size`` out at guest address ``base`` and works it.

    ``length`` bytes from ``base`` on are the driver's own, and must be RAM. ``start`` is the
    value that all indices begin with (0 after a reset; others bring the wrap nearer).
    """

    def __init__(
        self,
        memory: GuestMemory,
        size: int = 16,
        *,
        base: int = 0x1000,
        length: int = 0x10_0000,
        event_idx: bool = False,
        start: int = 0,
    ) -> None:
        self.memory = memory
        self.size = size
        self.event_idx = event_idx
        self.desc = base
        self.avail = base + 16 * size
        self.used = _round_up(self.avail + 6 + 2 * size, 4)
        first = _round_up(self.used + 6 + 8 * size, 16)
        memory.write(base, bytes(first - base))
        self._free = list(range(size))
        self._room = [(first, base + length - first)]
        self._pending: dict[int, _Pending] = {}
        self._added = 0
        self._seen = start
        self.write16(self.avail + 2, start)
        self.write16(self.used + 2, start)
        self._set_used_event(start)
        self._set_avail_event(start)

    # Supplying buffers (2.7.13).

    def add(
        self,
        readable: Sequence[bytes] = (),
        writable: Sequence[int] = (),
        *,
        indirect: bool = False,
    ) -> int:
        """Build a chain of ``readable`` contents, then ``writable`` lengths, and put its head
        into the avail ring, unpublished. Returns the head; OutOfRoom if it does not fit."""
        lengths = [len(data) for data in readable] + list(writable)
        needed = 1 if indirect else len(lengths)
        if not lengths or len(self._free) < needed or len(lengths) > self.size:
            raise OutOfRoom(f"{len(lengths)} descriptors, {len(self._free)} free")
        pending = _Pending([], [])
        buffers = [(self._allocate(length, pending), length) for length in lengths]
        for (address, _), data in zip(buffers, readable, strict=False):
            self.memory.write(address, data)
        pending.writable = buffers[len(readable) :]
        flags = [0] * len(readable) + [WRITE] * len(writable)
        pending.descriptors = [self._free.pop(0) for _ in range(needed)]
        head = pending.descriptors[0]
        if indirect:
            table = self._allocate(16 * len(buffers), pending)
            self._write_chain(table, list(range(len(buffers))), buffers, flags)
            self.write_descriptor(head, table, 16 * len(buffers), INDIRECT, 0)
        else:
            self._write_chain(self.desc, pending.descriptors, buffers, flags)
        self._pending[head] = pending
        self.offer(head)
        return head

    def offer(self, head: int) -> None:
        """Put ``head`` into the next avail entry, unpublished (2.7.13.2)."""
        slot = (self.avail_idx + self._added) % self.size
        self.write16(self.avail + 4 + 2 * slot, head)
        self._added += 1

    def keep_free(self, indices: Sequence[int]) -> None:
        """Leave the descriptors ``indices`` to the test: :meth:`add` takes none of them."""
        self._free = [index for index in self._free if index not in indices]

    def adopt(self, head: int) -> None:
        """Offer ``head``, whose descriptors the test wrote itself and does not take from
        :meth:`add` again; :meth:`collect` returns it without data."""
        self._pending[head] = _Pending([], [])
        self.offer(head)

    def publish(self) -> bool:
        """Advance avail.idx over what was added. True if the device asked to be notified."""
        old = self.avail_idx
        new = (old + self._added) & 0xFFFF
        added, self._added = self._added, 0
        self.write16(self.avail + 2, new)
        if not self.event_idx:
            return added > 0 and not self.read16(self.used) & USED_NO_NOTIFY
        # 2.7.10: notify if one of the entries just written is the one at avail_event.
        return (self.avail_event - old) & 0xFFFF < added

    # Receiving used buffers (2.7.14).

    def collect(self) -> list[Used]:
        """Take everything new from the used ring, in its order."""
        found = []
        while self._seen != self.used_idx:
            slot = self.used + 4 + 8 * (self._seen % self.size)
            head, written = _ELEMENT.unpack(self.memory.read(slot, 8))
            found.append(Used(head, written, self._recycle(head, written)))
            self._seen = (self._seen + 1) & 0xFFFF
        return found

    def want_interrupts(self) -> bool:
        """Ask for an interrupt at the next used buffer; True if one is there already."""
        self._set_used_event(self._seen)
        self.write16(self.avail, 0)
        return self._seen != self.used_idx

    def suppress_interrupts(self) -> None:
        """Advise the device that interrupts are not needed (2.7.7)."""
        if self.event_idx:
            # An index that the device reaches only after 65535 more buffers.
            self._set_used_event((self._seen - 1) & 0xFFFF)
        else:
            self.write16(self.avail, AVAIL_NO_INTERRUPT)

    def interrupt_due(self, old: int, new: int) -> bool:
        """Whether the device must interrupt for moving used.idx from ``old`` to ``new``."""
        if not self.event_idx:
            return old != new and not self.read16(self.avail) & AVAIL_NO_INTERRUPT
        return (self.used_event - old) & 0xFFFF < (new - old) & 0xFFFF

    # Raw access.

    def write_descriptor(
        self, index: int, address: int, length: int, flags: int, next_: int, *, table: int = -1
    ) -> None:
        """Write entry ``index`` of the descriptor table, or of the table at ``table``."""
        where = (self.desc if table < 0 else table) + 16 * index
        self.memory.write(where, _DESCRIPTOR.pack(address, length, flags, next_))

    def read16(self, address: int) -> int:
        """The little-endian 16 bits at a guest address."""
        return int(_U16.unpack(self.memory.read(address, 2))[0])

    def write16(self, address: int, value: int) -> None:
        """Store little-endian 16 bits at a guest address."""
        self.memory.write(address, _U16.pack(value))

    @property
    def avail_idx(self) -> int:
        """avail.idx as it lies in memory."""
        return self.read16(self.avail + 2)

    @property
    def used_idx(self) -> int:
        """used.idx as it lies in memory."""
        return self.read16(self.used + 2)

    @property
    def used_event(self) -> int:
        """used_event, behind the avail ring."""
        return self.read16(self.avail + 4 + 2 * self.size)

    @property
    def avail_event(self) -> int:
        """avail_event, behind the used ring."""
        return self.read16(self.used + 4 + 8 * self.size)

    @property
    def pending(self) -> int:
        """Chains added and not yet collected."""
        return len(self._pending)

    def _set_used_event(self, value: int) -> None:
        self.write16(self.avail + 4 + 2 * self.size, value)

    def _set_avail_event(self, value: int) -> None:
        self.write16(self.used + 4 + 8 * self.size, value)

    def _write_chain(
        self,
        table: int,
        indices: list[int],
        buffers: list[tuple[int, int]],
        flags: list[int],
    ) -> None:
        last = len(indices) - 1
        for position, index in enumerate(indices):
            address, length = buffers[position]
            more = position != last
            self.write_descriptor(
                index,
                address,
                length,
                flags[position] | (NEXT if more else 0),
                indices[position + 1] if more else 0,
                table=table,
            )

    def _recycle(self, head: int, written: int) -> bytes:
        pending = self._pending.pop(head)  # KeyError: the device used what was not offered
        data = b"".join(self.memory.read(address, length) for address, length in pending.writable)
        if written > len(data) and pending.writable:
            raise AssertionError(f"the device claims {written} bytes of {len(data)}")
        self._free.extend(pending.descriptors)
        self._room = _merge([*self._room, *pending.allocated])
        return data[:written]

    def _allocate(self, length: int, pending: _Pending) -> int:
        needed = _round_up(max(length, 1), 16)
        for place, (start, room) in enumerate(self._room):
            if room >= needed:
                self._room[place] = (start + needed, room - needed)
                pending.allocated.append((start, needed))
                return start
        self._room = _merge([*self._room, *pending.allocated])
        raise OutOfRoom(f"no {length} bytes for a buffer")


def _round_up(value: int, to: int) -> int:
    return (value + to - 1) // to * to


def _merge(pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, length in sorted(piece for piece in pieces if piece[1]):
        if merged and sum(merged[-1]) == start:
            merged[-1] = (merged[-1][0], merged[-1][1] + length)
        else:
            merged.append((start, length))
    return merged
