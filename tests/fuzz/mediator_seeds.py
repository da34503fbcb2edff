"""The first inputs of mediator_fuzz.c, each a conversation; the bytes mean what that file says."""

from __future__ import annotations

from tests.fuzz.ring_seeds import (
    EVENT_IDX,
    HIGH,
    INDIRECT,
    LOW,
    NEXT,
    PLAIN,
    RAW_CONFIG,
    START,
    TABLE,
    TABLE_FLAG,
    WRITE,
    descriptor,
    entry,
    offer,
)

LARGER, MISPLACED, BUSY, ARENA = 16, 32, 64, 128

KICK, COMPLETE, RESTART = bytes([4]), bytes([5]), bytes([11])


def answer(skip: int, length: int) -> bytes:
    """The device uses a chain that it has: the first from shadow head ``skip`` on."""
    return bytes([6, skip, length])


def lie(head: int, length: int) -> bytes:
    """The device uses whatever it likes."""
    return bytes([7, head, length])


def strike(where: int, byte: int) -> bytes:
    """The device writes a byte of its shadow memory."""
    return bytes([8]) + where.to_bytes(2, "little") + bytes([byte])


ONCE = offer(0) + KICK + answer(0, 9) + COMPLETE
THREE = b"".join(
    descriptor(2 * i, LOW, 4, NEXT, 2 * i + 1) + descriptor(2 * i + 1, HIGH, 32, WRITE, 0)
    for i in range(3)
) + b"".join(offer(2 * i) for i in range(3))
# Chains of two descriptors through one in the guest's table: more than the shadow ring holds.
CROWD = (
    b"".join(descriptor(i, TABLE, 32, TABLE_FLAG, 0) for i in range(4))
    + entry(0, LOW, 16, NEXT, 1)
    + entry(1, HIGH, 64, WRITE, 0)
    + b"".join(offer(i) for i in range(4))
)

# Two buffers to read, three to write, each but the first 16 bytes behind the one before.
SCATTERED = (
    descriptor(0, LOW, 16, NEXT, 1)
    + descriptor(1, HIGH, 5, NEXT, 2)
    + descriptor(2, HIGH + 8 * 5, 7, NEXT | WRITE, 3)
    + descriptor(3, HIGH + 8 * 20, 3, NEXT | WRITE, 4)
    + descriptor(4, HIGH + 8 * 26, 9, WRITE, 0)
)
# What the device writes behind the readable part of the first extent, with 8 descriptors.
WRITTEN = b"".join(strike(256 + 64 + i, i + 1) for i in range(24))


def arena(doubled: int) -> bytes:
    """Its size: 64 bytes, so many times doubled."""
    return bytes([doubled])


MEDIATION = {
    "plain": bytes([3, 0]) + PLAIN + ONCE * 3,
    "event-idx": bytes([3, EVENT_IDX | START, 0xFE, 0xFF]) + PLAIN + ONCE * 4,
    "out-of-order": bytes([3, 0]) + THREE + KICK + answer(2, 4) + answer(0, 4) + COMPLETE,
    "waits": bytes([2, INDIRECT])
    + CROWD
    + KICK
    + answer(0, 1)
    + COMPLETE
    + answer(2, 1)
    + COMPLETE,
    "waits-busy": bytes([2, INDIRECT | BUSY])
    + CROWD
    + KICK
    + (answer(0, 1) + COMPLETE + bytes([0, 0, 0])) * 4,
    # Found: heads made available before they were used, behind a chain that waited.
    "too-early": bytes([2, INDIRECT])
    + CROWD
    + KICK
    + descriptor(0, LOW, 1, NEXT, 0)
    + descriptor(1, LOW, 1, 0, 0)
    + descriptor(3, LOW, 1, 0, 0)
    + offer(1)
    + offer(0)
    + offer(0)
    + answer(0, 1)
    + answer(0, 1)
    + COMPLETE,
    "larger": bytes([2, INDIRECT | LARGER]) + CROWD + KICK + answer(2, 4) * 2 + COMPLETE + RESTART,
    "arena": bytes([3, ARENA])
    + arena(3)
    + PLAIN
    + (offer(0) + KICK + WRITTEN + answer(0, 9) + COMPLETE) * 2,
    "arena-scattered": bytes([3, ARENA])
    + arena(1)
    + SCATTERED
    + offer(0)
    + KICK
    + WRITTEN
    + answer(0, 12)
    + COMPLETE,
    "arena-waits": bytes([3, ARENA])
    + arena(2)
    + THREE
    + KICK
    + (WRITTEN + answer(0, 4) + COMPLETE) * 3,
    "arena-busy": bytes([2, INDIRECT | BUSY | ARENA])
    + arena(1)
    + CROWD
    + KICK
    + (answer(0, 64) + COMPLETE + bytes([200, 0, 7])) * 4,
    # The gap that the first leaves is too small for the third.
    "arena-gaps": bytes([3, ARENA])
    + arena(2)
    + descriptor(0, HIGH, 8, WRITE, 0)
    + descriptor(1, HIGH, 8, WRITE, 0)
    + descriptor(2, HIGH, 100, WRITE, 0)
    + offer(0)
    + offer(1)
    + KICK
    + answer(0, 8)
    + COMPLETE
    + offer(2)
    + KICK,
    "arena-too-small": bytes([3, ARENA]) + arena(0) + PLAIN + offer(0) + KICK,
    "arena-too-much": bytes([3, ARENA])
    + arena(3)
    + PLAIN
    + offer(0)
    + KICK
    + lie(0, 65)
    + COMPLETE,
    "arena-over-rings": bytes([3, ARENA])
    + arena(3)
    + descriptor(0, LOW, 200, WRITE, 0)
    + offer(0)
    + KICK
    + answer(0, 200)
    + COMPLETE,
    "malformed": bytes([2, 0]) + descriptor(0, LOW, 1, NEXT, 0) + ONCE,
    "too-much": bytes([3, 0]) + PLAIN + offer(0) + KICK + lie(0, 65) + COMPLETE + KICK,
    "twice": bytes([3, 0]) + THREE + KICK + lie(0, 4) * 2 + COMPLETE,
    "no-such": bytes([3, 0]) + PLAIN + offer(0) + KICK + lie(8, 4) + COMPLETE,
    "jump": bytes([3, 0]) + PLAIN + offer(0) + KICK + answer(0, 4) + lie(0, 4) + COMPLETE,
    "links": bytes([3, 0])
    + THREE
    + KICK
    + b"".join(strike(16 * i + 14, 0) for i in range(8))
    + answer(2, 4)
    + COMPLETE
    + ONCE
    + RESTART
    + KICK,
    "driver-breaks": bytes([3, 0]) + PLAIN + offer(0) + offer(0) + KICK + answer(0, 4) + COMPLETE,
    "misplaced": bytes([2, MISPLACED, 0, 4, 0, 4, 0, 0, 0, 0, 0, 0, 0, 4]),
    "overlapping": bytes([2, RAW_CONFIG, LOW, LOW, LOW, 4]) + PLAIN + ONCE,
}
