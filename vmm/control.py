"""The control thread: owner of every ZeroMQ channel that the VMM has.

Other threads post requests and wait for a future; what peers say unasked is handed to them on
this thread, so their handlers must not wait. A peer that breaks the protocol is cut off, and
everybody else goes on.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from protocol import channel as channels
from protocol import codec, doorbell
from protocol.channel import Channel
from protocol.errors import DeviceGone, ProtocolError
from protocol.trace import Trace

log = logging.getLogger(__name__)

# Messages of one peer that are handled before the others get their turn (arbitrary).
_TURN = 32
# What a peer may say: so many messages a second, and so many at once. Arbitrary: handling one
# takes some 50 us, or 300 where it changes a configuration.
_RATE = 500
_BURST = 500.0


class Peer(Protocol):
    """Who is at the other end of a channel; all of it is called on the control thread."""

    def on_event(self, message: object) -> None:
        """A message that is no reply and wants none."""
        ...

    def on_request(self, message: object, sequence: int) -> None:
        """A message that wants a reply, by :meth:`Control.send`; or ProtocolError."""
        ...

    def on_violation(self, error: ProtocolError) -> None:
        """The peer was cut off because of ``error``."""
        ...


@dataclass(slots=True)
class _Conversation:
    peer: Peer
    pending: dict[int, Future[Any]] = field(default_factory=dict)
    allowance: float = _BURST
    counted: float = field(default_factory=time.monotonic)

    def count(self) -> None:
        """A message came; ProtocolError if they come faster than anybody has reason to send."""
        now = time.monotonic()
        self.allowance = min(_BURST, self.allowance + (now - self.counted) * _RATE) - 1
        self.counted = now
        if self.allowance < 0:
            raise ProtocolError(f"more than {_RATE} messages a second")


class Control(threading.Thread):
    """The thread that owns every channel of the VMM."""

    def __init__(self, trace: Trace | None = None) -> None:
        super().__init__(name="control", daemon=True)
        self._context = channels.new_context()
        self._trace = trace
        self._conversations: dict[Channel, _Conversation] = {}
        self._outgoing: deque[tuple[Channel, object, int]] = deque()
        # What this thread listens to, and what others want it to begin or cease to.
        self._listening: list[Channel] = []
        self._changes: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._sequence = 0
        self._wake = doorbell.create()
        self._ending = False

    def bind(self, endpoint: str, incoming: Sequence[type], generation: int, peer: Peer) -> Channel:
        """A new channel, bound; ``peer`` hears of what comes in. From any thread but this one."""
        made = Channel(self._context, incoming, generation)
        made.bind(endpoint)
        with self._lock:
            self._conversations[made] = _Conversation(peer)
        # The socket wanders to this thread; the queue, and the doorbell, are the fence that
        # ZeroMQ wants for that.
        self._change(partial(self._listening.append, made))
        return made

    def unbind(self, channel: Channel, why: str) -> None:
        """Close ``channel``; what waits for an answer fails with DeviceGone. From any thread."""
        self.abandon(channel, why)
        self._change(partial(self._close, channel))

    def _change(self, change: Callable[[], None]) -> None:
        self._changes.append(change)
        doorbell.ring(self._wake)

    def _close(self, channel: Channel) -> None:
        if channel in self._listening:
            self._listening.remove(channel)
        with self._lock:
            del self._conversations[channel]
        channel.close()

    def post(self, channel: Channel, request: object) -> Future[Any]:
        """Send ``request``; the future of its reply. From any thread but this one."""
        reply: Future[Any] = Future()
        with self._lock:
            if channel not in self._conversations:
                reply.set_exception(DeviceGone("its channel is closed"))
                return reply
            self._sequence += 1
            self._conversations[channel].pending[self._sequence] = reply
            self._outgoing.append((channel, request, self._sequence))
        doorbell.ring(self._wake)
        return reply

    def send(self, channel: Channel, message: object, sequence: int = 0) -> None:
        """Send an event, or the reply to request ``sequence``. From any thread."""
        self._outgoing.append((channel, message, sequence))
        doorbell.ring(self._wake)

    def abandon(self, channel: Channel, why: str) -> None:
        """Nothing more will come on ``channel``: fail what waits for it. From any thread."""
        with self._lock:
            conversation = self._conversations.get(channel)
            pending = conversation.pending if conversation else {}
            waiting = list(pending.values())
            pending.clear()
        for reply in waiting:
            # Taken out of the table under the lock, so nobody else settles it.
            reply.set_exception(DeviceGone(why))

    def end(self) -> None:
        """Send what is queued, stop the thread and close the channels."""
        self._ending = True
        doorbell.ring(self._wake)
        self.join()
        for channel in self._conversations:
            channel.close()
        self._context.term()
        os.close(self._wake)

    def run(self) -> None:
        """The thread: send what is queued, hand out what comes in."""
        while True:
            doorbell.drain(self._wake)
            ending = self._ending
            while self._changes:
                self._changes.popleft()()
            self._send_all()
            if ending:
                return
            ready, _ = channels.wait_any(self._listening, [self._wake], None)
            for channel in ready:
                self._guard(channel, partial(self._receive, channel))

    def _guard(self, channel: Channel, action: Callable[[], None]) -> None:
        # A peer that breaks the protocol is cut off; everybody else goes on. So does this thread
        # where a peer has found an error of ours: without it nobody can end the machine.
        try:
            action()
        except ProtocolError as error:
            self._cut_off(channel, error)
        except Exception as error:
            log.exception("a message met an error of ours")
            self._cut_off(channel, ProtocolError(type(error).__name__))

    def _cut_off(self, channel: Channel, error: ProtocolError) -> None:
        if channel in self._listening:
            self._listening.remove(channel)
        self._conversations[channel].peer.on_violation(error)

    def _send_all(self) -> None:
        while self._outgoing:
            channel, message, sequence = self._outgoing.popleft()
            if channel not in self._listening:
                self.abandon(channel, "the peer was cut off")
                continue
            if self._trace:
                self._trace.event("control", f"> {message}"[:200])
            self._guard(channel, partial(channel.send, message, sequence))

    def _receive(self, channel: Channel) -> None:
        # A bounded number, then it is the others' turn: the wait tells of what is left. Who wakes
        # us with a part of a message only has that counted for one.
        conversation = self._conversations[channel]
        for turn in range(_TURN):
            envelope = channel.receive()
            if envelope is None and turn:
                return
            conversation.count()
            if envelope is None:
                return
            if self._trace:
                self._trace.event("control", f"< {envelope.message}"[:200])
            self._hand_out(conversation, envelope)

    def _hand_out(self, conversation: _Conversation, envelope: codec.Envelope) -> None:
        if not envelope.sequence:
            conversation.peer.on_event(envelope.message)
            return
        with self._lock:
            reply = conversation.pending.pop(envelope.sequence, None)
        if reply is not None:
            reply.set_result(envelope.message)
        else:
            conversation.peer.on_request(envelope.message, envelope.sequence)
