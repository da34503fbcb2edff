"""The other place that speaks ZeroMQ: one server and many clients that come and go.

protocol.channel is for two, who stay the same. Here a client may be anybody whom the directory of
the socket lets in: it may flood, send garbage, read nothing, or be gone. Nothing of that holds up
the server, whose every call returns at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import time
from enum import Enum

import zmq

from protocol.codec import MAX_MESSAGE
from protocol.errors import HostError

Context = zmq.Context[zmq.Socket[bytes]]
"""As protocol.channel.new_context() makes it."""

# Messages that wait in either direction for one client. Four times what a machine keeps of its
# history, which goes out at once.
_HIGH_WATER = 1024
# Connections at a time. libzmq aborts the process when it is out of descriptors, so at this many
# nobody more is let in until somebody has left. Arbitrary: people have few terminals.
MOST_CLIENTS = 64
# Milliseconds for what was sent last when the server ends (arbitrary; clients that read take
# less than one), and for a new connection to speak ZeroMQ.
_LINGER, _HANDSHAKE = 200, 2000
# Milliseconds until a client connects again: a day. Without reconnection (-1), what it has received
# and not yet read would be lost with the connection.
_NEVER = 86_400_000


class Sent(Enum):
    """What became of a message."""

    QUEUED = "queued"
    DROPPED = "dropped"
    """The client does not read."""
    GONE = "gone"


class Service:
    """The server, at the Unix socket ``path``; HostError if it cannot be.

    Descriptors :attr:`fd` and :attr:`doorway` become readable, edge-triggered, when
    :meth:`receive` and :meth:`count` have something to do.
    """

    def __init__(self, context: Context, path: str) -> None:
        self._path, self._shut = path, f"{path}.shut"
        self._socket = context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.LINGER, _LINGER),
            (zmq.MAXMSGSIZE, MAX_MESSAGE),
            (zmq.SNDHWM, _HIGH_WATER),
            (zmq.RCVHWM, _HIGH_WATER),
            (zmq.HANDSHAKE_IVL, _HANDSHAKE),
            (zmq.ROUTER_MANDATORY, 1),
        ):
            self._socket.setsockopt(option, value)
        self._connected: set[int] = set()
        self._is_open = False
        try:
            self._doorway = self._socket.get_monitor_socket(
                zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
            )
            self._socket.bind(f"ipc://{self._shut}")
        except zmq.ZMQError as error:
            self.close()
            raise HostError(f"{path}: {error.strerror}") from error
        self._let_in(True)

    @property
    def fd(self) -> int:
        """Look with :meth:`receive`, until that gives None; and after each :meth:`send`."""
        return int(self._socket.getsockopt(zmq.FD))

    @property
    def doorway(self) -> int:
        """Look with :meth:`count`."""
        return int(self._doorway.getsockopt(zmq.FD))

    def receive(self) -> tuple[bytes, bytes | None] | None:
        """The next message and whose it is, or None when there is none now. A message of several
        frames is none of ours: its frame is None."""
        try:
            client, *frames = self._socket.recv_multipart(flags=zmq.DONTWAIT)
        except zmq.Again:
            return None
        return client, frames[0] if len(frames) == 1 else None

    def send(self, client: bytes, frame: bytes) -> Sent:
        """Queue ``frame`` for ``client``."""
        try:
            self._socket.send_multipart([client, frame], flags=zmq.DONTWAIT)
        except zmq.Again:
            return Sent.DROPPED
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise
            return Sent.GONE
        return Sent.QUEUED

    def count(self) -> None:
        """Note who came and who left, and close or open the door."""
        while True:
            try:
                event, _endpoint = self._doorway.recv_multipart(flags=zmq.DONTWAIT)
            except zmq.Again:
                break
            # zmq_socket_monitor(3): a number of 16 bits, then one of 32, here the descriptor.
            kind, fd = struct.unpack("=HI", event)
            if kind == zmq.EVENT_ACCEPTED:
                self._connected.add(fd)
            else:
                self._connected.discard(fd)
        self._let_in(len(self._connected) < MOST_CLIENTS)

    def _let_in(self, wanted: bool) -> None:
        # A socket takes whoever finds it: shut, it has another name. It gets its own only when it
        # listens, for a client connects once, as soon as there is a name.
        if wanted is not self._is_open:
            self._is_open = wanted
            names = (self._shut, self._path) if wanted else (self._path, self._shut)
            with contextlib.suppress(FileNotFoundError):  # the machine ends: everything is removed
                os.rename(*names)

    def close(self) -> None:
        """Close; what was sent last goes out while the context ends."""
        self._socket.disable_monitor()
        self._socket.close()


class Client:
    """A connection to a :class:`Service`, made once: it never comes to talk to a successor."""

    def __init__(self, path: str) -> None:
        self._context: Context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        for option, value in (
            (zmq.LINGER, _LINGER),
            (zmq.MAXMSGSIZE, MAX_MESSAGE),
            (zmq.SNDHWM, _HIGH_WATER),
            (zmq.RCVHWM, _HIGH_WATER),
            (zmq.RECONNECT_IVL, _NEVER),
        ):
            self._socket.setsockopt(option, value)
        self._socket.connect(f"ipc://{path}")

    def send(self, *frames: bytes) -> None:
        """Send one message (of one frame, if it is to be understood); it is lost if the server is
        gone, or has left too many unread."""
        with contextlib.suppress(zmq.Again):
            self._socket.send_multipart(frames, flags=zmq.DONTWAIT)

    def receive(self, seconds: float) -> bytes | None:
        """The next message, waited for ``seconds``; None if none came."""
        until = time.monotonic() + seconds
        while not self._socket.poll(max(0, int((until - time.monotonic()) * 1000))):
            if time.monotonic() >= until:
                return None
        return self._socket.recv_multipart()[0]

    def close(self) -> None:
        """Hang up."""
        self._context.destroy(linger=_LINGER)
