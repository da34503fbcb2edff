"""Devices of others: whatever a vhost-user back-end is, from a disk to a shared folder.

Here is what sets one type apart; the rest is devices.runtime.front_end. Of the features of its type
a back-end's device has those that can be kept without another program beside it: none that need a
control queue, and of a disk those that our own disk has, so that either may follow the other.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from dataclasses import dataclass
from typing import ClassVar, Literal

from devices.runtime import disk
from devices.runtime.device import Host, Offer, QueueDeclaration
from devices.runtime.front_end import BackEnd, External
from protocol import fds
from protocol.errors import BadInput, HostError
from protocol.vhost_user import FROM_BACK_END, Connection
from protocol.virtio import DeviceId, bit

_TAG_SIZE = 36


@dataclass(frozen=True, slots=True)
class Config:
    """A device that another program is: a vhost-user back-end, which listens at a socket."""

    type: Literal["blk", "console", "fs", "net", "rng"]
    """What it is: a disk, a console, a shared folder, a network card, a source of entropy."""
    socket: str
    """Where it listens. After its death it is expected there again."""
    num_queues: int = 1
    """Queues for requests, of blk and fs."""
    tag: str = ""
    """The name of a shared folder, by which the guest mounts it: up to 36 bytes, of fs only."""
    direct: bool = False
    """Whether it works on the guest's own rings, without mediators between. Then it has to keep the
    journal of what is in flight itself (INFLIGHT_SHMFD), but for net, which may lose packets."""

    def __post_init__(self) -> None:
        if not 0 < self.num_queues <= disk.MAX_QUEUES:
            raise ValueError(f"num-queues: {self.num_queues} is not 1 to {disk.MAX_QUEUES}")
        if self.num_queues > 1 and self.type not in ("blk", "fs"):
            raise ValueError(f"num-queues: {self.type} has its own number of queues")
        if self.type != "fs" and self.tag:
            raise ValueError(f"tag: {self.type} has none")
        if self.type == "fs" and not 0 < len(os.fsencode(self.tag)) <= _TAG_SIZE:
            raise ValueError(f"tag: {self.tag!r} is not 1 to {_TAG_SIZE} bytes")


class VhostUser(External[Config]):
    """What every type has in common; :meth:`fitting` says which it is."""

    device_id = DeviceId.NULL  # none yet
    allowed: ClassVar[int] = 0
    """Of the features of its type, those that it may have."""

    @classmethod
    def open(cls, config: Config, host: Host) -> dict[str, int]:
        """A connection to the back-end, which has said that it is what is wanted."""
        opened = cls.reconnect(config)
        try:
            connection = Connection(socket.socket(fileno=os.dup(opened["back-end"])), FROM_BACK_END)
            with contextlib.closing(connection):
                BackEnd(connection).negotiate(cls.fitting(config), config)
        except HostError as error:
            fds.close_all(opened.values())
            raise BadInput("socket", f"{config.socket}: {error}") from error
        return opened

    @classmethod
    def reconnect(cls, config: Config) -> dict[str, int]:
        """A connection, to whoever listens: ``back-end``; and for what it says unasked
        ``requests``, of which it gets the other end, ``requests-theirs``."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
            stream.setblocking(False)
            try:
                stream.connect(config.socket)
            except (OSError, ValueError) as error:
                raise BadInput(
                    "socket", f"{config.socket}: {_why(config.socket, error)}"
                ) from error
            ours, theirs = socket.socketpair()
            names = ("back-end", "requests", "requests-theirs")
            return dict(zip(names, (stream.detach(), ours.detach(), theirs.detach()), strict=True))

    @classmethod
    def fitting(cls, config: Config) -> type[VhostUser]:
        """The class of that type."""
        return _TYPES[config.type]

    @classmethod
    def journals(cls, config: Config) -> bool:
        """Where it is said to."""
        return config.direct

    @property
    def features(self) -> int:
        """Those of its type that are allowed."""
        return super().features & self.allowed


class Blk(VhostUser):
    """A disk. Its requests are limited as our own disk's are, so that they fit bounce memory."""

    device_id = DeviceId.BLOCK
    label = "blk"
    config_size = disk.SPACE_SIZE
    writable = range(disk.WRITEBACK_AT, disk.WRITEBACK_AT + 1)
    allowed = sum(bit(feature) for feature in disk.Feature)

    @classmethod
    def virtqueues(cls, config: Config) -> tuple[QueueDeclaration, ...]:
        """See Device."""
        first = QueueDeclaration(0, disk.QUEUE_SIZE, "requestq", verdict=1)
        return first.times(config.num_queues)

    @classmethod
    def check(cls, back_end: BackEnd, config: Config) -> None:
        """A disk has a size; queues that its configuration knows nothing of are none."""
        found = disk.Space.unpack(back_end.config)
        if not found.capacity:
            raise HostError("its disk has no sector")
        has_many = back_end.features & bit(disk.Feature.MQ)
        if config.num_queues > (found.num_queues if has_many else 1):
            raise HostError(f"its disk has {found.num_queues} queues")

    @property
    def features(self) -> int:
        """A driver keeps to SIZE_MAX, whatever the back-end knows of it. MQ, of more than one."""
        own = super().features | bit(disk.Feature.SIZE_MAX)
        return own if self.config.num_queues > 1 else own & ~bit(disk.Feature.MQ)

    def config_space(self) -> bytes:
        """The back-end's, with the lower of its limits and ours."""
        found, most = disk.Space.unpack(super().config_space()), disk.size_max(self.largest_chain)
        # Some offer SIZE_MAX, and a maximum of nothing.
        if self.back_end.features & bit(disk.Feature.SIZE_MAX) and found.size_max:
            most = min(most, found.size_max)
        return found._replace(
            size_max=most,
            seg_max=min(found.seg_max, disk.SEG_MAX),
            num_queues=self.config.num_queues,
        ).pack()

    @classmethod
    def why_unfit(cls, ours: Offer, theirs: Offer) -> str | None:
        """As of any disk."""
        return disk.why_unfit(ours, theirs)


class Fs(VhostUser):
    """A shared folder (virtio 1.2, section 5.11). A request may wait for as long as its file."""

    device_id = DeviceId.FS
    label = "fs"

    @classmethod
    def virtqueues(cls, config: Config) -> tuple[QueueDeclaration, ...]:
        """See Device."""
        requests = QueueDeclaration(1, 128, "requestq", owes=False)
        return (QueueDeclaration(0, 128, "hiprio", owes=False), *requests.times(config.num_queues))

    def config_space(self) -> bytes:
        """struct virtio_fs_config up to num_request_queues (5.11.4), which no back-end knows."""
        tag = os.fsencode(self.config.tag)
        return struct.pack(f"<{_TAG_SIZE}sI", tag, self.config.num_queues)


class Net(VhostUser):
    """A network card with two queues. The driver gives itself an address: there is none here."""

    device_id = DeviceId.NET
    label = "net"
    may_lose = True
    # CSUM, GUEST_CSUM, GUEST_TSO4 to HOST_UFO, MRG_RXBUF (5.1.3).
    allowed = bit(0) | bit(1) | sum(bit(number) for number in range(7, 16))

    @classmethod
    def virtqueues(cls, config: Config) -> tuple[QueueDeclaration, ...]:
        """See Device."""
        return _pair(256)


class Rng(VhostUser):
    """A source of entropy."""

    device_id = DeviceId.ENTROPY
    label = "rng"

    @classmethod
    def virtqueues(cls, config: Config) -> tuple[QueueDeclaration, ...]:
        """See Device."""
        return (QueueDeclaration(0, 64, "requestq"),)


class Console(VhostUser):
    """A console with one port."""

    device_id = DeviceId.CONSOLE
    label = "console"

    @classmethod
    def virtqueues(cls, config: Config) -> tuple[QueueDeclaration, ...]:
        """See Device."""
        return _pair(64)


_TYPES: dict[str, type[VhostUser]] = {kind.label: kind for kind in (Blk, Console, Fs, Net, Rng)}


def _pair(size: int) -> tuple[QueueDeclaration, ...]:
    # Neither owes anything: what comes in comes when it comes, and what goes out may have to wait.
    names = enumerate(("receiveq", "transmitq"))
    return tuple(QueueDeclaration(index, size, name, owes=False) for index, name in names)


def _why(path: str, error: OSError | ValueError) -> str:
    # A connection to what is no socket is refused as one to which nobody listens.
    with contextlib.suppress(OSError, ValueError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return "is no socket"
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens there"
    if isinstance(error, BlockingIOError):
        return "whoever listens there is busy"
    return getattr(error, "strerror", None) or str(error)
