"""Where two processes of a machine speak ZeroMQ: one pair of sockets, one conversation.

A channel is one ``ipc://`` endpoint for one peer and one generation. It talks with the first that
connects and with nobody else, ever; reconnection is off, so nothing stale can arrive and a dead
peer stays dead; limits are set before bind or connect. A channel belongs to one thread at a time.

Its sockets are STREAM, which hand on bytes as they come, and frames are put together here. So all
that is kept of what a peer sends has a bound, whatever it sends::

    the kernel ──► ZeroMQ's thread ──► _CHUNKS of 8 KiB ──► Frames ──► codec
                   reads no more while                      less than a frame
                   there are so many: the peer waits        and a chunk
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import struct
import time
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import zmq

from protocol import codec
from protocol.codec import MAX_MESSAGE
from protocol.errors import ProtocolError, Unheard

Context: TypeAlias = "zmq.Context[zmq.Socket[bytes]]"
"""What :func:`new_context` makes."""

LENGTH = struct.Struct("<I")
"""What goes before each frame: the number of its bytes."""

# Messages that may wait to be sent. Control is request and answer: a peer with more than this many
# unread ones floods (arbitrary, far above what a conversation needs).
_HIGH_WATER = 256
# Chunks that may wait to be received: two of the largest messages.
_CHUNKS = 16
# Chunks and stale messages that are looked at for one message. The largest comes in nine chunks or
# a few more (arbitrary).
_PATIENCE = 256
# What the side that connects calls the other one.
_BOUND = b"bound"


class Frames:
    """Chunks of bytes in, frames out, each of which has its LENGTH before it."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def add(self, chunk: bytes) -> None:
        """``chunk`` has come."""
        self._bytes += chunk

    @property
    def is_whole(self) -> bool:
        """Whether :meth:`take` has a frame to give, or something to complain of."""
        return len(self._bytes) >= self._end()

    def take(self) -> bytes | None:
        """The next frame, or None when it is not whole. ProtocolError, as soon as its length is
        known, if that is over MAX_MESSAGE."""
        if not self.is_whole:
            return None
        (size,) = LENGTH.unpack_from(self._bytes)
        if size > MAX_MESSAGE:
            raise ProtocolError(f"message of {size} bytes is over {MAX_MESSAGE}")
        end = self._end()
        frame = bytes(self._bytes[LENGTH.size : end])
        del self._bytes[:end]
        return frame

    def _end(self) -> int:
        # Where the first frame ends; if it is too large, or not known yet, where its length does.
        if len(self._bytes) < LENGTH.size:
            return LENGTH.size
        (size,) = LENGTH.unpack_from(self._bytes)
        return LENGTH.size + (size if size <= MAX_MESSAGE else 0)


class Channel:
    """Messages to and from one peer; ``incoming`` are the classes that it may send."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], incoming: Iterable[type], generation: int = 0
    ) -> None:
        self._incoming = tuple(incoming)
        self._generation = generation
        self._bound: str | None = None
        self._peer: bytes | None = None
        self._frames = Frames()
        self._socket = context.socket(zmq.STREAM)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.SNDHWM, _HIGH_WATER),
            (zmq.RCVHWM, _CHUNKS),
            (zmq.RECONNECT_IVL, -1),
        ):
            self._socket.setsockopt(option, value)

    @property
    def handle(self) -> zmq.Socket[bytes]:
        """What :func:`wait_any` waits for."""
        return self._socket

    @property
    def has_message(self) -> bool:
        """Whether :meth:`receive` has something already, of which ``handle`` does not tell."""
        return self._frames.is_whole

    def bind(self, path: str) -> None:
        """Wait for the peer at the Unix socket ``path`` (made now, in a directory of mode 0700);
        when it comes, the path goes."""
        self._socket.bind(f"ipc://{path}")
        self._bound = path
        # The peer may be a process whose user is nobody; it is the directory that lets no one in.
        os.chmod(path, 0o666)

    def connect(self, path: str) -> None:
        """Connect, once, to a peer that has bound ``path``."""
        self._socket.setsockopt(zmq.CONNECT_ROUTING_ID, _BOUND)
        self._socket.connect(f"ipc://{path}")
        self._peer = _BOUND

    @property
    def fd(self) -> int:
        """Becomes readable, edge-triggered, when :meth:`receive` may have something."""
        return int(self._socket.getsockopt(zmq.FD))

    def send(self, message: object, sequence: int = 0) -> None:
        """Queue ``message``; Unheard when the peer does not read its messages, is gone, or has not
        been heard of."""
        frame = codec.encode(message, sequence, self._generation)
        if self._peer is None:
            raise Unheard("the peer has not come")
        try:
            self._socket.send_multipart(
                [self._peer, LENGTH.pack(len(frame)) + frame], flags=zmq.DONTWAIT
            )
        except zmq.Again:
            raise Unheard("the peer does not read its messages") from None
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise
            raise Unheard("the peer is gone") from None

    def receive(self) -> codec.Envelope | None:
        """The next message of this generation, or None when there is none now.

        Those of another are dropped, as long as there are not too many to be left-overs.
        """
        for _ in range(_PATIENCE):
            if (frame := self._frames.take()) is None:
                if not self._read():
                    return None
                continue
            envelope = codec.decode(frame, self._incoming)
            if envelope.generation == self._generation:
                return envelope
        raise ProtocolError("nothing comes but crumbs, or messages of another generation")

    def _read(self) -> bool:
        # Take in the peer's next chunk; whether there was one. Empty ones tell that somebody has
        # come or gone: the first to come is the peer.
        while True:
            try:
                sender, chunk = self._socket.recv_multipart(flags=zmq.DONTWAIT)
            except zmq.Again:
                return False
            if self._peer is None:
                self._peer = sender
                self._shut()
            if sender == self._peer:
                self._frames.add(chunk)
                return True
            # Nothing hangs up. Who has done that already is not found.
            with contextlib.suppress(zmq.ZMQError):
                self._socket.send_multipart([sender, b""], flags=zmq.DONTWAIT)

    def _shut(self) -> None:
        # Nobody else finds us: unbind() would hang up on the peer, too. ZeroMQ leaves the path
        # behind in any case; the whole directory may be gone.
        if self._bound is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._bound)
            self._bound = None

    def wait(self, seconds: float) -> codec.Envelope | None:
        """The next message, waiting for it at most ``seconds``; None when none came."""
        until = time.monotonic() + seconds
        while (envelope := self.receive()) is None:
            left = until - time.monotonic()
            if left <= 0 or not self._socket.poll(math.ceil(left * 1000)):
                return None
        return envelope

    def close(self, seconds: float = 0) -> None:
        """Close; what could not be sent ``seconds`` from now, when the context ends, is dropped."""
        self._socket.close(linger=int(seconds * 1000))
        self._shut()


def new_context() -> zmq.Context[zmq.Socket[bytes]]:
    """The process's ZeroMQ context: starts its two threads at the first channel."""
    return zmq.Context()


def wait_any(
    channels: Sequence[Channel], fds: Sequence[int], seconds: float | None
) -> tuple[list[Channel], list[int]]:
    """Wait until one of ``channels`` may have a message or one of ``fds`` is readable."""
    poller = zmq.Poller()
    for channel in channels:
        poller.register(channel.handle, zmq.POLLIN)
    for fd in fds:
        poller.register(fd, zmq.POLLIN)
    waiting = any(channel.has_message for channel in channels)
    timeout = 0 if waiting else None if seconds is None else int(seconds * 1000)
    ready = {key for key, _ in poller.poll(timeout)}
    return (
        [channel for channel in channels if channel.handle in ready or channel.has_message],
        [fd for fd in fds if fd in ready],
    )
