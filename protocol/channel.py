"""Where two processes of a machine speak ZeroMQ: one pair of sockets, one conversation.

A channel is one ``ipc://`` endpoint for one peer and one generation. PAIR sockets talk to
exactly one peer; reconnection is off, so nothing stale can arrive and a dead peer stays
dead; limits are set before bind or connect. A channel belongs to one thread at a time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import zmq

from protocol import codec
from protocol.codec import MAX_MESSAGE
from protocol.errors import ProtocolError, Unheard

Context: TypeAlias = "zmq.Context[zmq.Socket[bytes]]"
"""What :func:`new_context` makes."""

# Messages that may wait in either direction. Control is request and answer: a peer with more
# than this many unread ones floods (arbitrary, far above what a conversation needs).
_HIGH_WATER = 256


class Channel:
    """Messages to and from one peer; ``incoming`` are the classes that it may send."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], incoming: Iterable[type], generation: int = 0
    ) -> None:
        self._incoming = tuple(incoming)
        self._generation = generation
        self._bound: str | None = None
        self._socket = context.socket(zmq.PAIR)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.MAXMSGSIZE, MAX_MESSAGE),
            (zmq.SNDHWM, _HIGH_WATER),
            (zmq.RCVHWM, _HIGH_WATER),
            (zmq.RECONNECT_IVL, -1),
        ):
            self._socket.setsockopt(option, value)

    @property
    def handle(self) -> zmq.Socket[bytes]:
        """What :func:`wait_any` waits for."""
        return self._socket

    def bind(self, path: str) -> None:
        """Wait for the peer at the Unix socket ``path`` (made now, in a directory of mode 0700)."""
        self._socket.bind(f"ipc://{path}")
        self._bound = path
        # The peer may be a process whose user is nobody; it is the directory that lets no one in.
        os.chmod(path, 0o666)

    def connect(self, path: str) -> None:
        """Connect, once, to a peer that has bound ``path``."""
        self._socket.connect(f"ipc://{path}")

    @property
    def fd(self) -> int:
        """Becomes readable, edge-triggered, when :meth:`receive` may have something."""
        return int(self._socket.getsockopt(zmq.FD))

    def send(self, message: object, sequence: int = 0) -> None:
        """Queue ``message``; Unheard when the peer does not read its messages, or is gone."""
        try:
            self._socket.send(codec.encode(message, sequence, self._generation), flags=zmq.DONTWAIT)
        except zmq.Again:
            raise Unheard("the peer does not read its messages") from None

    def receive(self) -> codec.Envelope | None:
        """The next message of this generation, or None when there is none now.

        Those of another are dropped, as long as there are not too many to be left-overs.
        """
        for _ in range(_HIGH_WATER):
            try:
                frame = self._socket.recv(flags=zmq.DONTWAIT)
            except zmq.Again:
                return None
            if self._socket.getsockopt(zmq.RCVMORE):
                raise ProtocolError("a message is one frame")
            envelope = codec.decode(frame, self._incoming)
            if envelope.generation == self._generation:
                return envelope
        raise ProtocolError("nothing comes but messages of another generation")

    def wait(self, seconds: float) -> codec.Envelope | None:
        """The next message, waiting for it at most ``seconds``; None when none came."""
        envelope = self.receive()
        if envelope is None and self._socket.poll(int(seconds * 1000)):
            envelope = self.receive()
        return envelope

    def close(self, seconds: float = 0) -> None:
        """Close; what could not be sent ``seconds`` from now, when the context ends, is dropped."""
        self._socket.close(linger=int(seconds * 1000))
        if self._bound is not None:
            # ZeroMQ does not do that. The whole directory may be gone.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._bound)


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
    ready = {key for key, _ in poller.poll(None if seconds is None else int(seconds * 1000))}
    return [c for c in channels if c.handle in ready], [fd for fd in fds if fd in ready]
