"""Descriptors by name: handed from process to process, and audited.

The launcher keeps one Unix socket to each child. A *handover* over it is a single packet:
a payload, the names, and the descriptors as SCM_RIGHTS. ZeroMQ never carries any. It works
the same for a spawned process, for one that was forked by somebody else, and for one that a
person started by hand. Where there are more descriptors than the kernel sends at once, packets
with descriptors and no payload come first.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from protocol import codec
from protocol.errors import ProtocolError

# SCM_MAX_FD of the kernel (include/net/scm.h).
MAX_DESCRIPTORS = 253
_MAX_PAYLOAD = 128 * 1024


@dataclass(frozen=True, slots=True)
class Handover:
    """What came: the payload, and the descriptors by name, now owned by the receiver."""

    payload: bytes
    fds: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Packet:
    payload: bytes
    names: tuple[str, ...]


def handover_pair() -> tuple[socket.socket, socket.socket]:
    """The two ends of a channel for handovers; both close-on-exec."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(channel: socket.socket, payload: bytes, fds: Mapping[str, int]) -> None:
    """Send ``payload`` and duplicates of ``fds``; the caller keeps its own. Of more than
    MAX_DESCRIPTORS the receiver has to know: :func:`receive_all`."""
    names = list(fds)
    while len(names) > MAX_DESCRIPTORS:
        first, names = names[:MAX_DESCRIPTORS], names[MAX_DESCRIPTORS:]
        _send(channel, b"", {name: fds[name] for name in first})
    _send(channel, payload, {name: fds[name] for name in names})


def _send(channel: socket.socket, payload: bytes, fds: Mapping[str, int]) -> None:
    packet = codec.pack(codec.to_plain(_Packet(payload, tuple(fds))))
    rights = array.array("i", fds.values())
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else []
    channel.sendmsg([packet], ancillary)


def receive(channel: socket.socket) -> Handover | None:
    """The next handover, or None when the other side is gone.

    Descriptors without a name, and names without a descriptor, are a ProtocolError; what
    came with the broken packet is closed (a sender could otherwise fill our table).
    """
    space = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
    try:
        data, ancillary, flags, _ = channel.recvmsg(_MAX_PAYLOAD, space, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return None  # it went without having read what we sent
    received = array.array("i")
    for level, kind, rights in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received.frombytes(rights[: len(rights) - len(rights) % received.itemsize])
    if not data and not received:
        return None
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ProtocolError("handover too large")
        packet = _packet(data)
        if len(packet.names) != len(received) or len(set(packet.names)) != len(received):
            raise ProtocolError(f"{len(packet.names)} names for {len(received)} descriptors")
    except ProtocolError:
        close_all(received)
        raise
    return Handover(packet.payload, dict(zip(packet.names, received, strict=True)))


def receive_all(channel: socket.socket) -> Handover | None:
    """The next handover of however many descriptors, from who is trusted to send the rest of it;
    None when the other side is gone."""
    received: dict[str, int] = {}
    while (packet := receive(channel)) is not None:
        received |= packet.fds
        if packet.payload:
            return Handover(packet.payload, received)
    close_all(received.values())
    return None


def payload(packet: bytes) -> bytes:
    """The payload of a handover that was received as ``packet``, by who takes no descriptors."""
    return _packet(packet).payload


def _packet(data: bytes) -> _Packet:
    return codec.from_plain(_Packet, codec.unpack(data))


def close_all(fds: Iterable[int]) -> None:
    """Close every one of ``fds``, whatever the others do."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def has_ended(fd: int, seconds: float = 0) -> bool:
    """Whether the process of ``fd``, a pidfd, is dead, or is so within ``seconds``; reaped or not.
    Of a pipe's writing end: whether its last reader is gone."""
    waiting = select.poll()
    waiting.register(fd, select.POLLIN)
    return bool(waiting.poll(seconds * 1000))


def open_descriptors(proc: int | None = None) -> dict[int, str]:
    """What this process has open: number to the kernel's name of it (``socket:[12]``, a path).
    ``proc`` is a descriptor of /proc/self, for who cannot reach that by its path."""
    found: dict[int, str] = {}
    for entry in names("fd", proc):
        # The descriptor of the listing itself is gone by the time it is looked at.
        with contextlib.suppress(FileNotFoundError):
            path = f"fd/{entry}" if proc is not None else f"/proc/self/fd/{entry}"
            found[int(entry)] = os.readlink(path, dir_fd=proc)
    return found


def names(folder: str, proc: int | None = None) -> list[str]:
    """What is in ``folder`` of /proc/self."""
    path = folder if proc is not None else f"/proc/self/{folder}"
    listing = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc)
    try:
        return os.listdir(listing)
    finally:
        os.close(listing)
