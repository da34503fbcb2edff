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

LARGER, MISPLACED, BUSY = 16, 32, 64

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
