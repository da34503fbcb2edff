"""What every disk has, of whatever it is made: features, a configuration space (virtio 1.2, section
5.2), and limits, to which a driver that has read them once keeps for as long as it runs."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple, Self

from devices.runtime.device import Offer
from protocol.virtio import bit


class Feature(IntEnum):
    """Feature bits (5.2.3)."""

    SIZE_MAX = 1
    SEG_MAX = 2
    RO = 5
    BLK_SIZE = 6
    FLUSH = 9
    CONFIG_WCE = 11
    MQ = 12
    DISCARD = 13
    WRITE_ZEROES = 14


class Space(NamedTuple):
    """struct virtio_blk_config up to write_zeroes_may_unmap, without geometry and topology
    (5.2.4)."""

    capacity: int
    size_max: int
    seg_max: int
    blk_size: int
    writeback: bool
    num_queues: int
    max_discard_sectors: int
    max_discard_seg: int
    discard_sector_alignment: int
    max_write_zeroes_sectors: int
    max_write_zeroes_seg: int
    write_zeroes_may_unmap: int

    def pack(self) -> bytes:
        """As the driver reads it."""
        return _SPACE.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """From the first of ``data``, which are :data:`SPACE_SIZE` at least."""
        return cls(*_SPACE.unpack_from(data))


_SPACE = struct.Struct("<QII4xI8x?xHIIIIIB3x")
SPACE_SIZE = _SPACE.size
"""Bytes of it."""
WRITEBACK_AT = 32
"""Where ``writeback`` is, which a driver may write."""

# Which of it a driver that has read them relies on: at all, and with a feature.
_LIMITS: Mapping[str, Feature | None] = {
    "size_max": None,
    "seg_max": None,
    "max_discard_sectors": Feature.DISCARD,
    "max_discard_seg": Feature.DISCARD,
    "max_write_zeroes_sectors": Feature.WRITE_ZEROES,
    "max_write_zeroes_seg": Feature.WRITE_ZEROES,
}

QUEUE_SIZE = 128
"""Of each queue of a disk, at most."""
MAX_QUEUES = 16
"""Of a disk. Arbitrary: twice the CPUs of the largest machine of ours, and a driver has no use for
more than one a CPU. Each costs a doorbell, a thread and, at isolation=bounce, an arena."""
SEG_MAX = QUEUE_SIZE - 2
"""All of a queue but the header and the status."""

# Arbitrary. With SEG_MAX it bounds what one request moves, and so how long a reset can wait for
# it: a chain may name one guest page many times over.
_SIZE_MAX = 256 * 1024
_PAGE = 4096

# Of a request, beside its data: its header and its status (5.2.6).
_FRAME = 17


def size_max(*limits: int) -> int:
    """The most bytes of a segment, in whole pages, so that the largest request, with its header and
    its status, is no more than any of ``limits``, of which 0 is none."""
    pages = [(most - _FRAME) // SEG_MAX // _PAGE for most in limits if most]
    return min([_SIZE_MAX, *(count * _PAGE for count in pages)])


def why_unfit(ours: Offer, theirs: Offer) -> str | None:
    """Why a disk that offers ``theirs`` cannot take over from one that offers ``ours``
    (Device.why_unfit). A driver that was not offered RO writes; the disk must be the same size, and
    no limit lower."""
    if theirs.features & ~ours.features & bit(Feature.RO):
        return "it is read-only (RO), and the driver may write to this one"
    if len(theirs.config) < SPACE_SIZE:
        return f"a configuration of {len(theirs.config)} bytes"
    now, then = Space.unpack(ours.config), Space.unpack(theirs.config)
    if now.capacity != then.capacity:
        return f"its disk has {then.capacity} sectors, and this one {now.capacity}"
    if now.blk_size != then.blk_size:
        return f"its blocks are of {then.blk_size} bytes, and these of {now.blk_size}"
    for what, feature in _LIMITS.items():
        limit, other = getattr(now, what), getattr(then, what)
        is_relied_on = feature is None or ours.features & theirs.features & bit(feature)
        if is_relied_on and other < limit:
            return f"its {what} is {other}, and this one's {limit}"
    return None
