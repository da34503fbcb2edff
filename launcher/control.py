"""The control interface of one machine: clients ask, and one table says who answers.

It lives in the launcher's loop, between everything else that happens there. So a turn has a
bound, and nothing here waits::

    client ──frame──► Service ──► decode ──► table[type(request)](request, reply)
                                                                   │  now or later
           ◄─────────────────────────────────────────────────── reply(message)
           ◄──── Event ◄──── Events (who has asked to follow)
"""

from __future__ import annotations

import resource
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from launcher.events import KEPT, Events
from launcher.loop import Loop
from protocol import control as wire
from protocol.errors import VibeError
from protocol.service import Context, Sent, Service

Reply = Callable[[object], None]
Handler = Callable[[Any, Reply], None]
"""Answers a request by calling its ``reply`` once, now or later, or by raising a VibeError."""

# Messages in one turn of the loop, and the seconds until the next turn if there are more: a flood
# is answered 3200 times a second, which leaves the loop most of its time (arbitrary).
_TURN, _BREATH = 32, 0.01


class ControlServer:
    """Serves ``path`` with the ``handlers`` of each class of request, and :class:`wire.Follow`."""

    def __init__(
        self,
        loop: Loop,
        context: Context,
        path: str,
        handlers: Mapping[type, Handler],
        events: Events,
    ) -> None:
        self._loop = loop
        self._handlers = handlers
        # libzmq ends the process when it is out of descriptors. The service shuts its door well
        # before, but only in this loop, and its thread may have let in some hundreds by then.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self._service = Service(context, path)
        self._fds = (self._service.fd, self._service.doorway)
        self._is_coming_back = self._rests = False
        # Of each follower, how many events it has missed.
        self._followers: dict[bytes, int] = {}
        self._history: deque[bytes] = deque(maxlen=KEPT)
        loop.on_readable(self._fds[0], self._turn)
        loop.on_readable(self._fds[1], self._service.count)
        events.listen(self._tell)

    def close(self) -> None:
        """Serve no more; who follows is told what it missed, if it can be."""
        for fd in self._fds:
            self._loop.on_readable(fd, None)
        for client, missed in self._followers.items():
            if missed:
                self._send(client, wire.encode(wire.Lost(missed)))
        self._service.close()

    def _turn(self) -> None:
        if self._rests:
            return
        self._is_coming_back = False
        for _ in range(_TURN):
            received = self._service.receive()
            if received is None:
                return
            self._take(*received)
        self._rests = True
        self._loop.on_readable(self._fds[0], None)
        self._loop.after(_BREATH, self._go_on)

    def _go_on(self) -> None:
        self._rests = False
        self._loop.on_readable(self._fds[0], self._turn)
        self._turn()

    def _come_back(self) -> None:
        # The descriptor says only once that something came, and sending may have been when.
        if not self._is_coming_back:
            self._is_coming_back = True
            self._loop.after(0, self._turn)

    def _take(self, client: bytes, frame: bytes | None) -> None:
        sequence = 0
        try:
            if frame is None:
                raise wire.BadMessage("a message is one frame")
            envelope = wire.decode(frame, wire.TO_LAUNCHER)
            sequence = envelope.sequence
            if not sequence:
                raise wire.BadMessage("a request has a sequence number above 0")
            if isinstance(envelope.message, wire.Follow):
                self._follow(client, envelope.message)
                self._reply(client, sequence, wire.Done())
            else:
                reply = partial(self._reply, client, sequence)
                self._handlers[type(envelope.message)](envelope.message, reply)
        except wire.BadMessage as error:
            self._reply(client, error.sequence or sequence, wire.Failed(2, str(error)))
        except VibeError as error:
            self._reply(client, sequence, wire.Failed(error.exit_status, str(error)))
        except Exception as error:  # of ours, or of a device's class: the guest has no part in it
            self._reply(client, sequence, wire.Failed(3, f"{type(error).__name__}: {error}"))

    def _reply(self, client: bytes, sequence: int, message: object) -> None:
        # Who does not read its replies, or is gone, gets none.
        self._send(client, wire.encode(message, sequence))

    def _send(self, client: bytes, frame: bytes) -> Sent:
        sent = self._service.send(client, frame)
        self._come_back()
        return sent

    # ── events ────────────────────────────────────────────────────────────────────────

    def _tell(self, event: wire.Event) -> None:
        frame = wire.encode(event)
        self._history.append(frame)
        for client in list(self._followers):
            self._offer(client, frame)

    def _follow(self, client: bytes, request: wire.Follow) -> None:
        self._followers.setdefault(client, 0)
        for frame in self._history:
            if client in self._followers:
                self._offer(client, frame)
        if not request.follow and (missed := self._followers.pop(client, 0)):
            self._send(client, wire.encode(wire.Lost(missed)))

    def _offer(self, client: bytes, frame: bytes) -> None:
        # Send an event, after the number of those that could not be sent; or count it to them.
        missed, sent = self._followers[client], Sent.QUEUED
        if missed:
            sent = self._send(client, wire.encode(wire.Lost(missed)))
            missed = 0 if sent is Sent.QUEUED else missed
        if not missed:
            sent = self._send(client, frame)
        if sent is Sent.GONE:
            del self._followers[client]
        else:
            self._followers[client] = missed + (sent is Sent.DROPPED)
