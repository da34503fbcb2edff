"""The first inputs of lanes_fuzz.c, each a conversation; the bytes mean what that file says."""

from __future__ import annotations

from tests.fuzz.ring_seeds import (
    EVENT_IDX,
    HIGH,
    INDIRECT,
    LOW,
    LOW_END,
    NEXT,
    START,
    TABLE,
    TABLE_FLAG,
    WRITE,
    descriptor,
    poke,
)

BUSY = 16
DISK, OVERLAY, URING, SEND, RECEIVE = range(5)
IN, OUT, FLUSH = 0, 1, 4
READONLY, MAY_FLUSH, DURABLE = 1, 2, 4
HEADERS, MERGES, CHECKSUMS, SEGMENTS = 1, 2, 4, 8

SERVE, RESTART = bytes([4]), bytes([11])


def begin(log_size: int, options: int, kind: int, features: int = 0) -> bytes:
    """The lane, and its queue."""
    return bytes([log_size, options, kind, features])


def offer(head: int) -> bytes:
    """Publish a head."""
    return bytes([2, head])


def ask(index: int, kind: int, sector: int, length: int, place: int = TABLE) -> bytes:
    """Write a request of a disk to three descriptors, and publish it."""
    return bytes([6, index, kind, sector, place, length // 256]) + offer(index)


def entry(index: int, place: int, length: int, flags: int, next_: int) -> bytes:
    """Write one entry of the indirect table."""
    return bytes([1, index, place, length, flags, next_])


def buffers(first: int, count: int, length: int, flags: int = 0) -> bytes:
    """Write and publish descriptors of a length."""
    size = b"\xf0" + length.to_bytes(4, "little")
    return bytes([6, first, count, TABLE]) + size + bytes([flags])


def packet(size: int, flags: int = 0, segmentation: int = 0) -> bytes:
    """One comes from outside."""
    return bytes([7, 10]) + size.to_bytes(2, "little") + bytes([flags, segmentation])


def limit(requests: int, size: int) -> bytes:
    """So much may still be begun."""
    return bytes([8, requests]) + size.to_bytes(2, "little")


def state(ends: int, declines: int, down: int) -> bytes:
    """Turns end with each chain; everything is declined; the link is down."""
    return bytes([9, ends, declines, down])


def strike(where: int, data: bytes) -> bytes:
    """Eight bytes are written behind a pop."""
    return where.to_bytes(2, "little") + data


REQUESTS = ask(0, OUT, 8, 4096) + ask(3, IN, 0, 2048) + ask(6, FLUSH, 0, 0) + SERVE * 4
FULL = packet(65535) + packet(60) + packet(1514, 1, 1) + packet(14) + SERVE

LANES = {
    "disk": begin(4, 0, DISK, MAY_FLUSH) + REQUESTS + ask(9, IN, 18, 1024) + SERVE + RESTART,
    "disk-end": begin(4, EVENT_IDX, DISK)
    + ask(0, OUT, 19, 1024)
    + SERVE
    + ask(3, IN, 255, 512)
    + SERVE,
    "disk-readonly": begin(3, START, DISK, READONLY | DURABLE) + b"\xfe\xff" + REQUESTS,
    "disk-indirect": begin(3, INDIRECT, DISK)
    + ask(0, IN, 0, 512)[:6]
    + entry(0, 56, 16, NEXT, 1)
    + descriptor(0, TABLE, 48, TABLE_FLAG, 0)
    + offer(0)
    + SERVE,
    "disk-busy": begin(4, BUSY, DISK)
    + ask(0, IN, 0, 4096)
    + ask(3, OUT, 8, 512)
    + SERVE
    + strike(6144, bytes(8))
    + strike(6152, bytes([255] * 8)),
    "overlay": begin(4, 0, OVERLAY, 1 << 5) + REQUESTS + ask(9, OUT, 16, 2048) + SERVE * 3,
    "overlay-end": begin(4, 0, OVERLAY, 6 << 5) + REQUESTS + ask(9, IN, 16, 2560) + SERVE * 3,
    "uring": begin(4, EVENT_IDX, URING, MAY_FLUSH) + REQUESTS * 2 + RESTART,
    "uring-declines": begin(4, 0, URING) + REQUESTS + ask(9, IN, 30, 512) + SERVE * 3 + RESTART,
    "limits": begin(4, 0, DISK)
    + limit(1, 999)
    + REQUESTS
    + limit(9, 9)
    + SERVE
    + limit(0, 0)
    + SERVE,
    "ends": begin(4, 0, URING) + state(1, 0, 0) + REQUESTS + state(0, 1, 0) + REQUESTS,
    "send": begin(4, EVENT_IDX, SEND) + buffers(0, 16, 60) + SERVE * 3 + RESTART + SERVE,
    "send-pieces": begin(4, 0, SEND, HEADERS)
    + descriptor(0, LOW, 12, NEXT, 1)
    + descriptor(1, HIGH, 60, 0, 0)
    + (offer(0) + SERVE) * 2
    + state(0, 0, 1)
    + buffers(0, 3, 25)
    + SERVE * 3,
    "receive": begin(4, 0, RECEIVE) + buffers(0, 6, 1526, WRITE) + FULL + SERVE,
    "receive-merges": begin(7, EVENT_IDX, RECEIVE, MERGES) + buffers(0, 60, 1500, WRITE) + FULL * 2,
    "receive-headers": begin(4, 0, RECEIVE, HEADERS | CHECKSUMS | SEGMENTS)
    + buffers(0, 6, 4000, WRITE)
    + FULL
    + packet(60, 0, 0x81)
    + SERVE,
    "receive-waits": begin(4, 0, RECEIVE, MERGES)
    + packet(200)
    + SERVE
    + buffers(0, 1, 100, WRITE)
    + SERVE
    + buffers(0, 4, 12, WRITE)
    + SERVE
    + packet(0)
    + SERVE * 2,
    "receive-refuses": begin(8, 0, RECEIVE, MERGES)
    + buffers(0, 2, 100)
    + buffers(2, 150, 11, WRITE)
    + buffers(152, 100, 30, WRITE)
    + FULL
    + poke(0, bytes(8))
    + SERVE * 2,
    "receive-full": begin(8, 0, RECEIVE, MERGES)
    + buffers(0, 250, 30, WRITE)
    + FULL
    + (packet(1000) + packet(2000) + SERVE) * 2
    + RESTART,
    "receive-more": begin(5, 0, RECEIVE, MERGES)
    + buffers(0, 2, 30, WRITE)
    + SERVE
    + buffers(2, 20, 30, WRITE)
    + (packet(250) + SERVE) * 2,
    "receive-largest": begin(4, 0, RECEIVE)
    + bytes([7, 8, 0, 0, 7, 9, 0, 0])
    + buffers(0, 4, 2000, WRITE)
    + SERVE,
    "receive-odd-header": begin(4, 0, RECEIVE, HEADERS | SEGMENTS)
    + packet(60, 0, 33)
    + packet(60, 0, 127)
    + buffers(0, 4, 2000, WRITE)
    + SERVE,
    "disk-short": begin(4, 0, DISK)
    + descriptor(0, LOW_END | 8 << 3, 8, NEXT, 1)
    + descriptor(1, HIGH, 17, WRITE, 0)
    + offer(0)
    + SERVE,
}
