"""The device's half of the control conversation: messages in, calls of the worker, replies out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from devices.runtime.loop import Loop
from devices.runtime.worker import Worker
from protocol import messages
from protocol.channel import Channel
from protocol.errors import ProtocolError
from protocol.lifecycle import Event, Lifecycle
from protocol.ring import RingBroken
from protocol.trace import Trace

_logger = logging.getLogger(__name__)

# The VMM was listening before this process was told where; it may be busy making the machine
# (arbitrary, and far above the milliseconds that it takes).
_WELCOME_SECONDS = 30.0


class Session:
    """Speaks with the VMM over ``channel`` on behalf of ``worker``, in ``loop``."""

    def __init__(self, channel: Channel, worker: Worker, loop: Loop, trace: Trace | None) -> None:
        self._channel = channel
        self.worker = worker
        """Whom it speaks for."""
        self._loop = loop
        self._trace = trace
        self._life = Lifecycle()
        self.on_quit: Callable[[], None] = loop.stop
        """The VMM has said Quit."""
        self._requests: dict[type, Callable[[Any], object]] = {
            messages.Start: self._start,
            messages.Stop: self._stop,
            messages.Quiesce: self._quiesce,
            messages.StopQueue: self._stop_queue,
            messages.WriteConfig: self._write_config,
            messages.GetStats: lambda _: messages.DeviceStats(worker.counters()),
            messages.Ping: lambda _: messages.Done(),
            messages.Quit: self._quit,
        }
        worker.broken = self._broken
        worker.changed = self._config_changed

    def greet(self, kind: str) -> None:
        """Say who we are; ProtocolError if the VMM refuses, or does not answer."""
        device = self.worker.device
        hello = messages.Hello(
            messages.PROTOCOL_VERSION,
            messages.STATE_VERSION,
            kind,
            int(device.device_id),
            self.worker.features,
            self.worker.queue_sizes,
            self._config_space(),
        )
        self._channel.send(hello)
        self._life.advance(Event.HELLO)
        envelope = self._channel.wait(_WELCOME_SECONDS)
        if envelope is None:
            raise ProtocolError(f"the VMM said nothing for {_WELCOME_SECONDS:.0f} seconds")
        answer = envelope.message
        if isinstance(answer, messages.Refused):
            raise ProtocolError(f"the VMM refuses this device: {answer.reason}")
        if not isinstance(answer, messages.Welcome):
            raise ProtocolError(f"{type(answer).__name__} is no answer to Hello")
        _check_version("protocol", answer.protocol, messages.PROTOCOL_VERSION)
        _check_version("state", answer.state, messages.STATE_VERSION)

    def sealed(self, sealed: messages.Sealed) -> None:
        """Tell the VMM that the jail is closed; from now on requests are served."""
        self._channel.send(sealed)
        self._life.advance(Event.SEALED)
        self._loop.add(self._channel.fd, self._pump)
        self._loop.soon(self._pump)

    def _pump(self) -> None:
        # ZeroMQ's descriptor tells of changes only, and sending takes them away unseen: so
        # receive until there is nothing, and again after everything that was sent.
        while (envelope := self._channel.receive()) is not None:
            if self._trace is not None:
                self._trace.event("message", type(envelope.message).__name__)
            self._channel.send(self._answer(envelope.message), envelope.sequence)

    def _answer(self, request: object) -> object:
        handle = self._requests.get(type(request))
        if handle is None:
            raise ProtocolError(f"{type(request).__name__} makes no sense after the seal")
        try:
            return handle(request)
        except (ProtocolError, RingBroken) as error:
            _logger.warning("%s: %s", type(request).__name__, error)
            return messages.Failed(str(error))

    def _start(self, request: messages.Start) -> messages.Done:
        self._life.advance(Event.START)
        try:
            self.worker.start(request.features, request.queues, request.state)
        except (ProtocolError, RingBroken):
            self._life.advance(Event.STOP)
            raise
        return messages.Done()

    def _stop(self, request: messages.Stop) -> messages.Done:
        self.worker.stop()
        self.worker.device.reset()
        self._life.advance(Event.STOP)
        return messages.Done()

    def _quiesce(self, request: messages.Quiesce) -> messages.Quiesced:
        state = self.worker.quiesce()
        self._life.advance(Event.STOP)
        return messages.Quiesced(state)

    def _stop_queue(self, request: messages.StopQueue) -> messages.Done:
        self.worker.stop_queue(request.index)
        return messages.Done()

    def _write_config(self, request: messages.WriteConfig) -> messages.ConfigChanged:
        self.worker.device.write_config(request.offset, request.data)
        return messages.ConfigChanged(self._config_space())

    def _quit(self, request: messages.Quit) -> messages.Done:
        self.worker.stop()
        self.on_quit()
        return messages.Done()

    def _broken(self, reason: str) -> None:
        _logger.warning("%s; the device waits for its reset", reason)
        self._life.advance(Event.BROKEN)
        self._event(messages.NeedsReset(reason))

    def _config_changed(self) -> None:
        self._event(messages.ConfigChanged(self._config_space()))

    def _config_space(self) -> bytes:
        return self.worker.device.config_space()

    def _event(self, message: object) -> None:
        self._channel.send(message)
        self._loop.soon(self._pump)


def _check_version(what: str, theirs: int, ours: int) -> None:
    if theirs != ours:
        raise ProtocolError(f"{what} version {theirs} of the VMM is not {ours} of this device")
