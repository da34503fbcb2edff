"""Target ``blk``: block requests of a hostile driver, to both implementations of the disk.

Beside them is a disk that is a bytearray. Whatever the request is: nothing is written but the
driver's own buffers and the sectors that it named, the last byte says how it went, and a request
that is not carried out touches nothing.
"""

from __future__ import annotations

import logging
import os
import struct
from types import SimpleNamespace
from typing import Any, cast

from devices.blk import SECTOR, Blk, Config, Feature, MappedBlk, Request, Status
from protocol.virtio import bit
from tests.fuzz import chains
from tests.fuzz.source import Source

SECTORS = 16
SERIAL = "fuzz"

READONLY, FLUSH = 1, 2
_KINDS = (*Request, 2, 255)
_SIZES = (0, 1, 15, 16, 17, 32, 511, 512, 513, 1024)
_MOST_REQUESTS = 8

# What the handlers complain about is their business.
logging.disable(logging.CRITICAL)
_images = [os.memfd_create(f"fuzz-{number}") for number in range(2)]


def run(data: bytes) -> None:
    """A byte of options, then requests: kind, sector, header's size, the sizes of segments."""
    source = Source(data)
    options = source.take()
    content = bytes(range(256)) * (SECTORS * SECTOR // 256)
    disks = []
    for kind, image in zip((Blk, MappedBlk), _images, strict=True):
        os.ftruncate(image, len(content))
        os.pwrite(image, content, 0)
        config = Config(f"{image}", readonly=bool(options & READONLY), serial=SERIAL)
        runtime = SimpleNamespace(largest_chain=0, config_changed=lambda: None)
        disk = kind(config, {"image": image}, cast(Any, runtime))
        agreed = disk.features if options & FLUSH else disk.features & ~bit(Feature.FLUSH)
        disk.start(agreed)
        disks.append((disk, agreed))
    for _ in range(_MOST_REQUESTS):
        if not source.left:
            break
        content = _one(source, content, disks)
    for disk, _ in disks:
        if isinstance(disk, MappedBlk):
            disk._view.release()
            disk._map.close()


def _one(source: Source, content: bytes, disks: list[tuple[Blk, int]]) -> bytes:
    choice = source.take()
    kind = source.take(4) if choice == 0xFF else _KINDS[choice % len(_KINDS)]
    sector = source.near(SECTORS + 1, 8)
    body = _body(source, kind)
    header = struct.pack("<IIQ", kind, source.take(), sector)
    message = header[: source.take() if source.take() == 0xFF else len(header)] + body
    cuts = [source.take() * 4 for _ in range(source.take() % 4)]
    rooms = [_SIZES[source.take() % len(_SIZES)] for _ in range(source.take() % 5)]
    for (disk, agreed), image in zip(disks, _images, strict=True):
        request = chains.Request(message, cuts, rooms)
        written = disk.requestq(request.chain())
        answer, now = request.answer(), os.pread(image, len(content) + 1, 0)
        assert len(now) == len(content)
        if not request.room:
            assert written == 0
            assert now == content
            continue
        wanted = expected(disk.config, agreed, content, message, request.room - 1)
        assert written == request.room
        assert (answer[-1], answer[:-1], now) == wanted, (kind, sector, answer[-1], wanted[0])
    return now


def _body(source: Source, kind: int) -> bytes:
    if kind not in (Request.DISCARD, Request.WRITE_ZEROES):
        size = _SIZES[source.take() % len(_SIZES)]
        return bytes([source.take()]) * size
    found = b""
    for _ in range(source.take() % 18):
        sector, sectors = source.near(SECTORS + 1, 8), source.near(SECTORS + 1, 4)
        found += struct.pack("<QII", sector, sectors, source.near(2, 4))
    return found + bytes(source.take() % 2)


def expected(
    config: Config, agreed: int, content: bytes, message: bytes, room: int
) -> tuple[int, bytes, bytes]:
    """Status, the answer before it, and what the disk holds then (virtio 1.2, 5.2.6)."""
    try:
        answer, after = _carry_out(config, agreed, content, message, room)
    except _No as no:
        return no.args[0], bytes(room), content
    return Status.OK, answer[:room].ljust(room, b"\0"), after


class _No(Exception):
    pass


def _carry_out(
    config: Config, agreed: int, content: bytes, message: bytes, room: int
) -> tuple[bytes, bytes]:
    if len(message) < 16:
        raise _No(Status.IOERR)
    kind, _, sector = struct.unpack_from("<IIQ", message)
    body = message[16:]
    needs = {
        Request.FLUSH: Feature.FLUSH,
        Request.DISCARD: Feature.DISCARD,
        Request.WRITE_ZEROES: Feature.WRITE_ZEROES,
    }
    if kind not in set(Request) or (kind in needs and not agreed & bit(needs[kind])):
        raise _No(Status.UNSUPP)
    if kind == Request.FLUSH:
        return b"", content
    if kind == Request.GET_ID:
        return SERIAL.encode().ljust(20, b"\0"), content
    if kind != Request.IN and config.readonly:
        raise _No(Status.IOERR)
    start = sector * SECTOR
    if kind in (Request.IN, Request.OUT):
        end = start + (room if kind == Request.IN else len(body))
        if end % SECTOR or end > len(content):
            raise _No(Status.IOERR)
        if kind == Request.IN:
            return content[start:end], content
        return b"", content[:start] + body + content[end:]
    return b"", _zeroed(content, body, unmap=kind == Request.WRITE_ZEROES)


def _zeroed(content: bytes, body: bytes, *, unmap: bool) -> bytes:
    if not body or len(body) % 16 or len(body) > 16 * 16:
        raise _No(Status.IOERR)
    most = 1 << 15 if unmap else 1 << 22
    after = bytearray(content)
    for sector, sectors, flags in struct.iter_unpack("<QII", body):
        if flags & ~int(unmap):
            raise _No(Status.UNSUPP)
        end = sector + sectors
        if sectors > most or end * SECTOR > len(content):
            raise _No(Status.IOERR)
        after[sector * SECTOR : end * SECTOR] = bytes(sectors * SECTOR)
    return bytes(after)


def _request(kind: Request, sector: int, body: bytes, *rooms: int) -> bytes:
    # body as _body reads it; the whole header, one cut, the rooms by their place in _SIZES.
    choice = _KINDS.index(kind)
    return bytes([choice, sector, *body, 0, 0, 1, 4, len(rooms), *map(_SIZES.index, rooms)])


_ONE_SECTOR, _NOTHING = bytes([_SIZES.index(512), 7]), bytes(2)
SEEDS = {
    "read": bytes([FLUSH]) + _request(Request.IN, 3, _NOTHING, 512, 1),
    "scattered": bytes([FLUSH]) + _request(Request.IN, 3, _NOTHING, 511, 1, 513),
    "beyond": bytes([FLUSH]) + _request(Request.IN, SECTORS, _NOTHING, 512, 1),
    "write": bytes([FLUSH]) + _request(Request.OUT, 2, _ONE_SECTOR, 1),
    "write-through": bytes([0]) + _request(Request.OUT, 2, _ONE_SECTOR, 1),
    "readonly": bytes([READONLY]) + _request(Request.OUT, 2, _ONE_SECTOR, 1),
    "flush": bytes([FLUSH]) + _request(Request.FLUSH, 0, _NOTHING, 1),
    "id": bytes([0]) + _request(Request.GET_ID, 0, _NOTHING, 16, 1),
    "discard": bytes([FLUSH]) + _request(Request.DISCARD, 0, bytes([1, 1, 2, 0, 0]), 1),
    "zeroes": bytes([0]) + _request(Request.WRITE_ZEROES, 0, bytes([2, 1, 2, 1, 4, 1, 0, 0]), 1),
    "no-status": bytes([0]) + _request(Request.OUT, 2, _ONE_SECTOR),
}
