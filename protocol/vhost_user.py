"""The vhost-user protocol: its messages, and a connection that carries them and descriptors.

Names and numbers are those of QEMU's docs/interop/vhost-user.rst, without the prefix VHOST_USER_.
Either side of a conversation uses this module, and believes nothing of the other::

    0         4         8         12
    ├─────────┼─────────┼─────────┼────────────┬──     descriptors come as SCM_RIGHTS
    │ request │  flags  │  size   │ payload … size
    └─────────┴─────────┴─────────┴────────────┴──     integers as the machine has them

Of each message the size and the number of descriptors are known to lie between two bounds before
anything else of it is looked at; what lies beyond them is a ProtocolError, after which the
connection is of no use. Descriptors that nobody has taken are closed with their message.
"""

from __future__ import annotations

import array
import select
import socket
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

from protocol import fds
from protocol.config_space import MAX_CONFIG
from protocol.errors import ProtocolError

if TYPE_CHECKING:
    from types import TracebackType


class Request(IntEnum):
    """Front-end message types."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43


class BackendRequest(IntEnum):
    """Back-end message types, over a socket of their own."""

    CONFIG_CHANGE_MSG = 2


class ProtocolFeature(IntEnum):
    """Bit numbers of the protocol features."""

    MQ = 0
    LOG_SHMFD = 1
    RARP = 2
    REPLY_ACK = 3
    MTU = 4
    BACKEND_REQ = 5
    CROSS_ENDIAN = 6
    CRYPTO_SESSION = 7
    PAGEFAULT = 8
    CONFIG = 9
    BACKEND_SEND_FD = 10
    HOST_NOTIFIER = 11
    INFLIGHT_SHMFD = 12
    RESET_DEVICE = 13
    INBAND_NOTIFICATIONS = 14
    CONFIGURE_MEM_SLOTS = 15
    STATUS = 16
    DEVICE_STATE = 19


F_PROTOCOL_FEATURES = 30
"""The bit among a device's features that says that there are protocol features."""

MAX_REGIONS = 8
"""Of one SET_MEM_TABLE."""

MAX_DESCRIPTORS = MAX_REGIONS
"""Of one message."""

VRING_INDEX, VRING_NOFD = 0xFF, 0x100
"""Of the payload of SET_VRING_KICK, CALL and ERR: which ring; no descriptor comes with it."""

STATE_ERROR, STATE_NOFD = 0xFF, 0x100
"""Of the reply to SET_DEVICE_STATE_FD: what is no 0 says no; no descriptor comes with it, and the
one that was sent is used."""

VRING_F_LOG = 1
"""The flag of SET_VRING_ADDR: what is written there is to be logged."""

_HEADER = struct.Struct("=III")
_VERSION, _VERSION_MASK, _REPLY, _NEED_REPLY = 1, 3, 4, 8
_KNOWN_FLAGS = _VERSION_MASK | _REPLY | _NEED_REPLY


# ── payloads ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Payload:
    # Its fields are what ``layout`` packs, in that order.
    layout: ClassVar[struct.Struct]

    def pack(self) -> bytes:
        """As it is sent."""
        return self.layout.pack(*astuple(self))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """From the first bytes of ``data``, which has so many."""
        return cls(*cls.layout.unpack_from(data))


@dataclass(frozen=True, slots=True)
class U64(_Payload):
    """A number: features, and most of what is replied."""

    layout = struct.Struct("=Q")
    value: int


@dataclass(frozen=True, slots=True)
class VringState(_Payload):
    """Of ring ``index`` a number: its size, where it stands, whether it is enabled."""

    layout = struct.Struct("=II")
    index: int
    num: int


@dataclass(frozen=True, slots=True)
class VringAddr(_Payload):
    """Where the parts of ring ``index`` are, as user addresses."""

    layout = struct.Struct("=IIQQQQ")
    index: int
    flags: int
    descriptor: int
    used: int
    available: int
    log: int


@dataclass(frozen=True, slots=True)
class MemoryRegion(_Payload):
    """``size`` bytes of guest memory, at ``guest_address`` to the guest and ``user_address`` to
    the front-end, and at ``mmap_offset`` of the file that comes with it."""

    layout = struct.Struct("=QQQQ")
    guest_address: int
    size: int
    user_address: int
    mmap_offset: int


@dataclass(frozen=True, slots=True)
class ConfigSpace:
    """A part of the configuration space: its ``data`` is at ``offset``."""

    header: ClassVar[struct.Struct] = struct.Struct("=III")
    offset: int
    flags: int
    data: bytes

    def pack(self) -> bytes:
        """As it is sent."""
        return self.header.pack(self.offset, len(self.data), self.flags) + self.data

    @classmethod
    def unpack(cls, payload: bytes) -> ConfigSpace:
        """ProtocolError if the data is not as long as it says."""
        offset, size, flags = cls.header.unpack_from(payload)
        data = payload[cls.header.size :]
        if len(data) != size:
            raise ProtocolError(f"{size} bytes of configuration in {len(data)}")
        return cls(offset, flags, data)


@dataclass(frozen=True, slots=True)
class Inflight(_Payload):
    """The in-flight region: where it is in its file, and for how many queues of which size."""

    layout = struct.Struct("=QQHH")
    mmap_size: int
    mmap_offset: int
    num_queues: int
    queue_size: int


class Direction(IntEnum):
    """Which way a device's state goes."""

    SAVE = 0
    LOAD = 1


@dataclass(frozen=True, slots=True)
class DeviceState(_Payload):
    """A transfer of a device's state: its Direction, and the phase, 0: all rings are stopped."""

    layout = struct.Struct("=II")
    direction: int
    phase: int


_TABLE = struct.Struct("=II")
_SINGLE = struct.Struct("=Q")


def pack_table(regions: Sequence[MemoryRegion]) -> bytes:
    """The payload of SET_MEM_TABLE; a descriptor for each of ``regions`` goes with it."""
    return _TABLE.pack(len(regions), 0) + b"".join(region.pack() for region in regions)


def unpack_table(payload: bytes) -> list[MemoryRegion]:
    """Its regions; ProtocolError if there are not as many as it says."""
    count, _ = _TABLE.unpack_from(payload)
    step = MemoryRegion.layout.size
    # Some send room for eight, whatever the number.
    if not 0 < count <= MAX_REGIONS or len(payload) < _TABLE.size + count * step:
        raise ProtocolError(f"{count} regions of memory in {len(payload)} bytes")
    return [MemoryRegion.unpack(payload[_TABLE.size + i * step :]) for i in range(count)]


def pack_region(region: MemoryRegion) -> bytes:
    """The payload of ADD_MEM_REG and REM_MEM_REG."""
    return _SINGLE.pack(0) + region.pack()


def unpack_region(payload: bytes) -> MemoryRegion:
    """The region in it."""
    return MemoryRegion.unpack(payload[_SINGLE.size :])


# ── what a message may be like ────────────────────────────────────────────────────────────


class Shape(NamedTuple):
    """Bounds of a message: bytes of its payload, and descriptors."""

    least: int
    most: int
    descriptors: int = 0


_EMPTY = Shape(0, 0)
_U64 = Shape(8, 8)
_STATE = Shape(8, 8)
_BELL = Shape(8, 8, 1)
_CONFIG = Shape(ConfigSpace.header.size, ConfigSpace.header.size + MAX_CONFIG)
# 20 bytes, or 24 of a compiler that pads.
_INFLIGHT = Shape(Inflight.layout.size, Inflight.layout.size + 4)
_REGION = Shape(40, 40, 1)

FROM_FRONT_END: Mapping[Request, Shape] = {
    Request.GET_FEATURES: _EMPTY,
    Request.SET_FEATURES: _U64,
    Request.SET_OWNER: _EMPTY,
    Request.RESET_OWNER: _EMPTY,
    Request.SET_MEM_TABLE: Shape(40, 8 + 32 * MAX_REGIONS, MAX_REGIONS),
    Request.SET_VRING_NUM: _STATE,
    Request.SET_VRING_ADDR: Shape(40, 40),
    Request.SET_VRING_BASE: _STATE,
    Request.GET_VRING_BASE: _STATE,
    Request.SET_VRING_KICK: _BELL,
    Request.SET_VRING_CALL: _BELL,
    Request.SET_VRING_ERR: _BELL,
    Request.GET_PROTOCOL_FEATURES: _EMPTY,
    Request.SET_PROTOCOL_FEATURES: _U64,
    Request.GET_QUEUE_NUM: _EMPTY,
    Request.SET_VRING_ENABLE: _STATE,
    Request.SET_BACKEND_REQ_FD: Shape(0, 8, 1),
    Request.GET_CONFIG: _CONFIG,
    Request.SET_CONFIG: _CONFIG,
    Request.GET_INFLIGHT_FD: _INFLIGHT,
    Request.SET_INFLIGHT_FD: _INFLIGHT._replace(descriptors=1),
    Request.RESET_DEVICE: _EMPTY,
    Request.GET_MAX_MEM_SLOTS: _EMPTY,
    Request.ADD_MEM_REG: _REGION,
    Request.REM_MEM_REG: _REGION,
    Request.SET_STATUS: _U64,
    Request.GET_STATUS: _EMPTY,
    Request.SET_DEVICE_STATE_FD: Shape(8, 8, 1),
    Request.CHECK_DEVICE_STATE: _EMPTY,
}
"""Requests that a back-end takes."""

FROM_BACK_END: Mapping[Request, Shape] = {
    # Where nothing else is said: whether it went well.
    **dict.fromkeys(FROM_FRONT_END, _U64),
    Request.GET_CONFIG: Shape(0, _CONFIG.most),
    Request.GET_INFLIGHT_FD: _INFLIGHT._replace(descriptors=1),
    Request.SET_DEVICE_STATE_FD: Shape(8, 8, 1),
}
"""Replies that a front-end takes, by what they reply to."""


@dataclass(slots=True)
class Message:
    """One message, and the descriptors that came with it, which are closed with it unless they
    are taken (:meth:`take`)."""

    request: Request
    payload: bytes
    is_reply: bool = False
    needs_reply: bool = False
    descriptors: list[int] = field(default_factory=list)

    def take(self) -> int:
        """The next descriptor, the caller's from now on; ProtocolError if there is none."""
        if not self.descriptors:
            raise ProtocolError("no descriptor came with it")
        return self.descriptors.pop(0)

    @property
    def number(self) -> int:
        """What a payload of one number is."""
        return U64.unpack(self.payload).value

    def close(self) -> None:
        """Close what nobody has taken."""
        fds.close_all(self.descriptors)
        self.descriptors.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class HungUp(ProtocolError):
    """The other side has closed the connection."""


class Connection:
    """Messages over ``stream``, a connected Unix stream socket, which it owns; ``shapes`` are
    those of what may come. It never waits, but for :meth:`wait`.

    ProtocolError for what makes no sense: then there is nothing to be done but to close it.
    """

    def __init__(self, stream: socket.socket, shapes: Mapping[Request, Shape]) -> None:
        self._stream = stream
        self._shapes = shapes
        self._header = b""
        self._message: Message | None = None
        self._size = 0
        self._descriptors: list[int] = []

    def fileno(self) -> int:
        """Readable when something has come."""
        return self._stream.fileno()

    def receive(self) -> Message | None:
        """The next message; None if it is not there yet, or not whole. HungUp."""
        while self._message is None:
            if not (data := self._read(_HEADER.size - len(self._header))):
                return None
            self._header += data
            if len(self._header) == _HEADER.size:
                self._message = self._begin(*_HEADER.unpack(self._header))
        message = self._message
        while len(message.payload) < self._size:
            if not (data := self._read(self._size - len(message.payload))):
                return None
            message.payload += data
        self._check_descriptors(message.request)
        message.descriptors, self._descriptors = self._descriptors, []
        self._header, self._message = b"", None
        return message

    def wait(self, seconds: float) -> Message:
        """The next message; ProtocolError if it is not there ``seconds`` from now."""
        deadline = time.monotonic() + seconds
        waiting = select.poll()
        waiting.register(self._stream, select.POLLIN)
        while (message := self.receive()) is None:
            left = deadline - time.monotonic()
            if left <= 0 or not waiting.poll(left * 1000):
                raise ProtocolError(f"nothing came within {seconds:g} seconds")
        return message

    def send(
        self,
        request: Request,
        payload: bytes = b"",
        descriptors: Iterable[int] = (),
        *,
        is_reply: bool = False,
        needs_reply: bool = False,
    ) -> None:
        """Send a message with duplicates of ``descriptors``. HungUp, or ProtocolError if the other
        side does not read what it is sent."""
        packet = pack(request, payload, is_reply=is_reply, needs_reply=needs_reply)
        given = array.array("i", descriptors)
        flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
        try:
            if given:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, given)]
                sent = self._stream.sendmsg([packet], rights, flags)
            else:
                # Not by sendmsg, which is forbidden behind a device's seal.
                sent = self._stream.send(packet, flags)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise HungUp(f"it has hung up: {error.strerror}") from error
        if sent < len(packet):
            raise ProtocolError("it does not read what it is sent")

    def close(self) -> None:
        """Hang up, and close what came with a message that never became whole."""
        fds.close_all(self._descriptors)
        self._descriptors.clear()
        self._stream.close()

    def _begin(self, number: int, flags: int, size: int) -> Message:
        try:
            request = Request(number)
        except ValueError:
            raise ProtocolError(f"{number} is no request of vhost-user") from None
        if flags & _VERSION_MASK != _VERSION or flags & ~_KNOWN_FLAGS:
            raise ProtocolError(f"{request.name}: flags {flags:#x}")
        if (shape := self._shapes.get(request)) is None:
            raise ProtocolError(f"{request.name} was not offered")
        if not shape.least <= size <= shape.most:
            raise ProtocolError(f"{request.name}: {size} bytes")
        self._size = size
        return Message(request, b"", bool(flags & _REPLY), bool(flags & _NEED_REPLY))

    def _check_descriptors(self, request: Request) -> None:
        if len(self._descriptors) > self._shapes[request].descriptors:
            raise ProtocolError(f"{request.name}: {len(self._descriptors)} descriptors")

    def _read(self, size: int) -> bytes:
        # Never more than the rest of a header or of a payload: what belongs to the next message
        # stays where it is, and so do its descriptors.
        space = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
        flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        try:
            data, ancillary, how, _ = self._stream.recvmsg(size, space, flags)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise HungUp(f"it has hung up: {error.strerror}") from error
        for level, kind, rights in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                came = array.array("i")
                came.frombytes(rights[: len(rights) - len(rights) % came.itemsize])
                self._descriptors += came
        if how & socket.MSG_CTRUNC or len(self._descriptors) > MAX_DESCRIPTORS:
            raise ProtocolError("more descriptors than any message has, or than there is room for")
        if not data:
            raise HungUp("it has hung up")
        return data


def pack(
    request: Request | BackendRequest,
    payload: bytes = b"",
    *,
    is_reply: bool = False,
    needs_reply: bool = False,
) -> bytes:
    """A message as it is sent, without descriptors."""
    flags = _VERSION | (_REPLY if is_reply else 0) | (_NEED_REPLY if needs_reply else 0)
    return _HEADER.pack(request, flags, len(payload)) + payload
