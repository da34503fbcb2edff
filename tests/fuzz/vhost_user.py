"""Target ``vhost-user``: a front-end that says what it likes, with descriptors of whatever kind.

An input is a list of parts, each with a header: what it is, which descriptors go along, and how
many bytes follow. They are sent as they are, or written into the memory that the front-end shares.
What makes no sense ends the conversation, and in the end no descriptor is left.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from dataclasses import dataclass

from devices.runtime import transfer
from devices.runtime.device import Device, virtqueue
from devices.runtime.loop import Loop
from devices.runtime.vhost_user import BackEnd
from devices.runtime.worker import Worker
from protocol import journal, vhost_user
from protocol.config_space import Written
from protocol.fds import close_all
from protocol.ring import Chain
from protocol.vhost_user import (
    F_PROTOCOL_FEATURES,
    FROM_FRONT_END,
    U64,
    ConfigSpace,
    Connection,
    DeviceState,
    Direction,
    Inflight,
    MemoryRegion,
    ProtocolFeature,
    Request,
    VringAddr,
    VringState,
    pack_region,
    pack_table,
)
from protocol.virtio import DeviceId, Feature, bit

logging.disable(logging.CRITICAL)

# Nobody is at the other end of what a state comes or goes through.
transfer.PATIENCE = 0.001

# Of a part: what is done with it, two bits for each of eight descriptors and how many there are,
# and its length.
_PART = struct.Struct("<BHBH")
_SEND, _WRITE = 0, 1
_MEMORY, _EVENTFD, _FILE, _SOCKET = range(4)
_SIZE = 1 << 16
_SIZES = (64,)

_LOW = MemoryRegion(0, 1 << 15, 0x7000_0000_0000, 0)
_HIGH = MemoryRegion(1 << 32, 1 << 14, 0x7100_0000_0000, 1 << 15)


@dataclass(frozen=True, slots=True)
class _Config:
    """It has no options."""


class _Device(Device[_Config]):
    """Answers every other chain at once, and those that it keeps when it is written to."""

    device_id = DeviceId.NULL

    def config_space(self) -> bytes:
        """Eight bytes."""
        return bytes(8)

    def write_config(self, offset: int, data: bytes) -> None:
        """Answer the oldest, and say that something is another now."""
        if (chain := self.oldest(0)) is not None:
            self.complete(0, chain, chain.writable.write(data))
        self.config_changed()

    def save(self) -> bytes:
        """Version 1."""
        return b"\x01"

    def restore(self, state: bytes) -> None:
        """Of version 1."""
        if state[0] != 1:
            raise ValueError("of another version")

    @virtqueue(0, size=16)
    def requestq(self, chain: Chain) -> int | None:
        """Count it."""
        self.counters["chains"] += 1
        return None if self.counters["chains"] % 2 else chain.writable.write(b"answer")


def run(data: bytes) -> None:
    """All of the conversation."""
    before = len(os.listdir("/proc/self/fd"))
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    memory = os.memfd_create("memory")
    os.ftruncate(memory, _SIZE)
    other, end = socket.socketpair()
    offered = [memory, os.eventfd(0, os.EFD_NONBLOCK), os.open("/dev/null", os.O_RDWR)]
    offered.append(other.detach())
    own = journal.create("journal", _SIZES)
    try:
        _say(data, ours, offered)
        _serve(theirs, own)
    finally:
        ours.close()
        end.close()
        close_all([*offered, own])
    assert len(os.listdir("/proc/self/fd")) == before


def _say(data: bytes, stream: socket.socket, offered: list[int]) -> None:
    # All of it is there before anybody listens, and then the end.
    while len(data) >= _PART.size:
        what, which, count, size = _PART.unpack_from(data)
        part, data = data[_PART.size :][:size], data[_PART.size :][size:]
        if what == _WRITE:
            os.pwrite(offered[_MEMORY], part[2:], int.from_bytes(part[:2], "little"))
            continue
        chosen = [offered[which >> 2 * i & 3] for i in range(count % 12)]
        if part:
            try:
                socket.send_fds(stream, [part], chosen)
            except BlockingIOError:
                break
    stream.shutdown(socket.SHUT_WR)


def _serve(stream: socket.socket, own: int) -> None:
    loop = Loop()
    worker = Worker(_Device, _Config(), {}, None, None, loop, None)

    def share(packet: bytes) -> None:
        socket.send_fds(stream, [packet], [own])

    written = Written(bytearray(Written.SIZE))
    connection = Connection(stream, FROM_FRONT_END)
    back_end = BackEnd(connection, worker, loop, own, _SIZES, share, written)
    loop.run()
    back_end.close()
    loop.close()


def _part(what: int, content: bytes, *kinds: int) -> bytes:
    which = sum(kind << 2 * i for i, kind in enumerate(kinds))
    return _PART.pack(what, which & 0xFFFF, len(kinds), len(content)) + content


def _message(request: Request, payload: bytes = b"", *kinds: int) -> bytes:
    return _part(_SEND, vhost_user.pack(request, payload, needs_reply=True), *kinds)


def _at(offset: int, content: bytes) -> bytes:
    return _part(_WRITE, offset.to_bytes(2, "little") + content)


_OFFERED = sum(
    bit(feature)
    for feature in (
        ProtocolFeature.MQ,
        ProtocolFeature.REPLY_ACK,
        ProtocolFeature.BACKEND_REQ,
        ProtocolFeature.CONFIG,
        ProtocolFeature.INFLIGHT_SHMFD,
        ProtocolFeature.RESET_DEVICE,
        ProtocolFeature.CONFIGURE_MEM_SLOTS,
        ProtocolFeature.STATUS,
        ProtocolFeature.DEVICE_STATE,
    )
)
_HELLO = (
    _message(Request.SET_PROTOCOL_FEATURES, U64(_OFFERED).pack())
    + _message(Request.GET_FEATURES)
    + _message(Request.SET_FEATURES, U64(bit(Feature.VERSION_1) | bit(F_PROTOCOL_FEATURES)).pack())
)
_TABLE = _message(Request.SET_MEM_TABLE, pack_table((_LOW, _HIGH)), _MEMORY, _MEMORY)
_INFLIGHT = Inflight(journal.size_of(_SIZES) - 4096, 4096, 1, 64).pack()


def _ring(base: int) -> bytes:
    where = _LOW.user_address + base
    addr = VringAddr(0, 0, where, where + 0x800, where + 0x400, 0)
    return (
        _message(Request.SET_VRING_NUM, VringState(0, 8).pack())
        + _message(Request.SET_VRING_BASE, VringState(0, 0).pack())
        + _message(Request.SET_VRING_ADDR, addr.pack())
        + _message(Request.SET_VRING_CALL, U64(0).pack(), _SOCKET)
        + _message(Request.SET_VRING_ERR, U64(0).pack(), _EVENTFD)
        + _message(Request.SET_VRING_KICK, U64(0).pack(), _EVENTFD)
        + _message(Request.SET_VRING_ENABLE, VringState(0, 1).pack())
    )


# Two chains, of which the second has no end, and they are available.
_CHAINS = _at(
    0x1000,
    struct.pack("<QIHH", 0x3000, 16, 0, 0) + struct.pack("<QIHH", 1 << 32, 16, 3, 1),
) + _at(0x1400, struct.pack("<HHHH", 0, 2, 0, 1))

SEEDS = {
    "hello": _HELLO + _message(Request.GET_CONFIG, ConfigSpace(0, 0, bytes(8)).pack()),
    "ring": _HELLO + _TABLE + _CHAINS + _ring(0x1000),
    "again": _HELLO
    + _TABLE
    + _CHAINS
    + _ring(0x1000)
    + _message(Request.GET_VRING_BASE, VringState(0, 0).pack())
    + _ring(0x1000)
    + _message(Request.SET_STATUS, U64(0).pack())
    + _TABLE,
    "jump": _HELLO + _TABLE + _at(0x1400, struct.pack("<HH", 0, 999)) + _ring(0x1000),
    "slots": _HELLO
    + _message(Request.ADD_MEM_REG, pack_region(_LOW), _MEMORY)
    + _message(Request.ADD_MEM_REG, pack_region(_HIGH), _MEMORY)
    + _message(Request.REM_MEM_REG, pack_region(_HIGH), _MEMORY)
    + _message(Request.GET_STATUS),
    "inflight": _HELLO
    + _message(Request.GET_INFLIGHT_FD, Inflight(0, 0, 1, 64).pack())
    + _message(Request.SET_INFLIGHT_FD, _INFLIGHT, _MEMORY)
    + _TABLE
    + _CHAINS
    + _ring(0x1000)
    + _message(Request.RESET_DEVICE),
    "config": _HELLO
    + _TABLE
    + _CHAINS
    + _message(Request.SET_BACKEND_REQ_FD, b"", _SOCKET)
    + _ring(0x1000)
    + _message(Request.GET_VRING_BASE, VringState(0, 0).pack())
    + _ring(0x1000)
    + _message(Request.SET_CONFIG, ConfigSpace(0, 0, b"later").pack()),
    "state": _HELLO
    + _message(Request.SET_DEVICE_STATE_FD, DeviceState(Direction.LOAD, 0).pack(), _SOCKET)
    + _message(Request.CHECK_DEVICE_STATE)
    + _message(Request.SET_DEVICE_STATE_FD, DeviceState(Direction.LOAD, 0).pack(), _MEMORY)
    + _TABLE
    + _CHAINS
    + _ring(0x1000)
    + _message(Request.GET_VRING_BASE, VringState(0, 0).pack())
    + _message(Request.SET_DEVICE_STATE_FD, DeviceState(Direction.SAVE, 0).pack(), _SOCKET)
    + _message(Request.CHECK_DEVICE_STATE),
    "wrong-state": _HELLO
    + _message(Request.SET_DEVICE_STATE_FD, DeviceState(Direction.SAVE, 0).pack(), _EVENTFD),
    "wrong-bell": _HELLO + _message(Request.SET_VRING_KICK, U64(0).pack(), _FILE),
    "wrong-file": _HELLO + _message(Request.ADD_MEM_REG, pack_region(_LOW), _SOCKET),
    "requests": _HELLO + _message(Request.SET_BACKEND_REQ_FD, b"", _FILE),
    "too-many": _HELLO + _message(Request.SET_OWNER, b"", *(_EVENTFD,) * 9),
    "halves": _part(_SEND, vhost_user.pack(Request.GET_FEATURES)[:7], _EVENTFD)
    + _part(_SEND, vhost_user.pack(Request.GET_FEATURES)[7:], _EVENTFD),
}
