"""The launcher's end of its conversation with the VMM: requests and their answers, and events."""

from __future__ import annotations

from collections.abc import Callable

from launcher.loop import Loop
from launcher.trace import Traces
from protocol.channel import Channel, Context
from protocol.errors import ProtocolError
from protocol.messages import FROM_VMM

Answered = Callable[[object], None]


class Conversation:
    """Over the channel at ``endpoint``. ``event`` hears what the VMM says unasked, and answers
    that nobody waits for; ``breach`` that it has broken the protocol."""

    def __init__(
        self,
        context: Context,
        endpoint: str,
        loop: Loop,
        traces: Traces,
        event: Callable[[object], None],
        breach: Callable[[ProtocolError], None],
    ) -> None:
        self._traces = traces
        self._event = event
        self._breach = breach
        self._sequence = 0
        self._awaited: dict[int, Answered] = {}
        self._channel = Channel(context, FROM_VMM)
        self._channel.connect(endpoint)
        loop.on_readable(self._channel.fd, self.receive)

    def request(self, message: object, answered: Answered | None = None) -> None:
        """Send ``message``; ``answered`` gets the reply."""
        self._sequence += 1
        if answered is not None:
            self._awaited[self._sequence] = answered
        self._traces.control(f"> {message}")
        try:
            self._channel.send(message, self._sequence)
        except ProtocolError as error:
            self._breach(error)
        # The notification of an answer may have come with an earlier one, so look at once.
        self.receive()

    def receive(self) -> None:
        """Hand out everything that has come."""
        try:
            while (envelope := self._channel.receive()) is not None:
                self._traces.control(f"< {envelope.message}")
                self._awaited.pop(envelope.sequence, self._event)(envelope.message)
        except ProtocolError as error:
            self._breach(error)

    def close(self) -> None:
        """Hang up."""
        self._channel.close()
