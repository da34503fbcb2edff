"""The first inputs of ring_fuzz.c, each a conversation; the bytes mean what that file says."""

from __future__ import annotations

import struct

EVENT_IDX, INDIRECT, RAW_CONFIG, START, FORGED = 1, 2, 4, 8, 32
NEXT, WRITE, TABLE_FLAG = 1, 2, 4
LOW, TABLE, LOW_END, HIGH = 0, 1, 2, 5  # indices of places[] in take_address


def descriptor(index: int, place: int, length: int, flags: int, next_: int) -> bytes:
    """Write one entry of the descriptor table."""
    return bytes([0, index, place, length, flags, next_])


def entry(index: int, place: int, length: int, flags: int, next_: int) -> bytes:
    """Write one entry of the indirect table."""
    return bytes([2, index, place, length, flags, next_])


def offer(head: int) -> bytes:
    """Publish a head."""
    return bytes([3, head])


def pop(limit: int) -> bytes:
    """Pop up to ``limit`` chains."""
    return bytes([4, limit])


def push(*heads: int) -> bytes:
    """Complete heads, as much written as they take, at position 7."""
    return bytes([5, len(heads)]) + b"".join(bytes([head, 0x80]) for head in heads) + b"\7"


def poke(where: int, data: bytes) -> bytes:
    """Write 8 bytes at a guest address."""
    return bytes([9]) + where.to_bytes(2, "little") + data


def forge(where: int, byte: int) -> bytes:
    """Write a byte of the journal."""
    return bytes([10]) + where.to_bytes(2, "little") + bytes([byte])


ENABLE, DISABLE, RESTART = bytes([6]), bytes([7]), bytes([11])

PLAIN = descriptor(0, LOW, 16, NEXT, 1) + descriptor(1, HIGH, 64, WRITE, 0)
ONCE = offer(0) + pop(4) + ENABLE + push(0) + DISABLE

CHAIN = {
    "direct": bytes([3, 0]) + PLAIN + ONCE * 3,
    "event-idx": bytes([3, EVENT_IDX]) + PLAIN + ONCE * 3,
    "wrap": bytes([0, EVENT_IDX | START, 0xFE, 0xFF]) + descriptor(0, LOW, 1, 0, 0) + ONCE * 4,
    "indirect": bytes([4, INDIRECT])
    + descriptor(0, TABLE, 32, TABLE_FLAG, 0)
    + entry(0, LOW, 16, NEXT, 1)
    + entry(1, HIGH, 64, WRITE, 0)
    + ONCE,
    "mixed": bytes([4, INDIRECT])
    + descriptor(0, LOW, 8, NEXT, 1)
    + descriptor(1, TABLE, 16, TABLE_FLAG, 0)
    + entry(0, HIGH, 64, WRITE, 0)
    + ONCE,
    "nested": bytes([2, INDIRECT])
    + descriptor(0, TABLE, 16, TABLE_FLAG, 0)
    + entry(0, TABLE, 16, TABLE_FLAG, 0)
    + ONCE,
    "loop": bytes([2, 0]) + descriptor(0, LOW, 1, NEXT, 0) + ONCE,
    "outside": bytes([2, 0]) + descriptor(0, LOW_END, 17, 0, 0) + ONCE,
    "batch": bytes([2, EVENT_IDX])
    + b"".join(descriptor(i, HIGH, 32, WRITE, 0) + offer(i) for i in range(4))
    + pop(16)
    + push(3, 1)
    + push(0, 2)
    + push(0),
    "again": bytes([2, 0]) + PLAIN + offer(0) + offer(0) + pop(4) + pop(4) + push(0),
    "too-long-together": bytes([2, INDIRECT])
    + b"".join(descriptor(i, LOW, 1, NEXT, i + 1) for i in range(3))
    + descriptor(3, TABLE, 32, TABLE_FLAG, 0)
    + entry(0, LOW, 1, NEXT, 1)
    + entry(1, LOW, 1, 0, 0)
    + ONCE,
    # A table of one entry that ends with RAM (8 KiB), and whose next is behind it.
    "table-at-the-end": bytes([4, INDIRECT])
    + descriptor(0, LOW_END, 16, TABLE_FLAG, 0)
    + poke(8183, bytes([0, 0, 0, 0, 0, NEXT, 0, 1]))
    + ONCE,
    # A used ring of 14 bytes, 12 before the end of RAM: place 2, plus 4 in the upper bits.
    "used-at-the-end": bytes([0, EVENT_IDX | RAW_CONFIG, LOW, TABLE, LOW_END | 4 << 3, 1]) + ONCE,
    "misplaced": bytes([2, RAW_CONFIG, LOW, TABLE, HIGH, 8]) + PLAIN + ONCE,
}

# Behind the options is the position at which the ring begins.
JOURNAL = {
    "restarts": bytes([2, START, 0xFE, 0xFF, 5])
    + b"".join(descriptor(i, HIGH, 32, WRITE, 0) + offer(i) for i in range(4))
    + pop(3)
    + push(1)
    + RESTART
    + pop(1)
    + RESTART
    + pop(16)
    + push(3, 0)
    + RESTART
    + pop(1)
    + push(2)
    + RESTART,
    "behind": bytes([2, 0, 5])
    + b"".join(descriptor(i, HIGH, 32, WRITE, 0) + offer(i) for i in range(4))
    + pop(4)
    + push(1, 3)
    + forge(14, 0)
    + forge(16 + 16, 1)
    + RESTART
    + pop(4)
    + push(0, 2),
    "forged": bytes([0, FORGED, 5])
    + struct.pack("<Q4H B5xHQ QHxxxxxx QHxxxxxx", 0, 1, 1, 0, 0, 1, 0, 9, 3, 0, 4, 1)
    + PLAIN
    + ONCE,
}
