"""Target ``console``: a driver, a launcher, and devices that die between any two steps.

What the guest sends is what the launcher gets, what is typed is what the guest gets: each byte once
and in order, whoever died in between. A peer that forges the cursors of the stream is told by a
ProtocolError, on either side, and by nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, cast

from devices.console import Config, Console
from protocol import stream
from protocol.errors import ProtocolError
from protocol.ring import Chain
from tests.fuzz import chains
from tests.fuzz.source import Source

RECEIVE, TRANSMIT = 0, 1
_MOST_STEPS = 200
# Its length has no factor in common with anything here, so a byte out of place shows.
_PATTERN = bytes(i * i % 251 for i in range(251)) * 512

_file = stream.create("fuzz")
_wake, _launcher_wake = stream.wake_pair()


class Runtime:
    """The queues of a device: what is in flight, and what is published, outlives it."""

    def __init__(self) -> None:
        self.in_flight: list[list[chains.Request]] = [[], []]
        self.published = [0, 0]
        self.begin()

    def begin(self) -> None:
        """For a device that takes over."""
        self.kept: list[dict[Chain, chains.Request]] = [{}, {}]
        self.done: list[list[tuple[chains.Request, int]]] = [[], []]
        self.positions = list(self.published)
        self.calls: dict[Callable[[], None], None] = {}
        self.callback: Callable[[], None] = lambda: None

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        self.callback = callback

    def soon(self, callback: Callable[[], None]) -> None:
        self.calls[callback] = None

    def oldest(self, index: int) -> Chain | None:
        return next(iter(self.kept[index]), None)

    def position(self, index: int) -> int:
        return self.positions[index]

    def advance(self, index: int, count: int) -> None:
        self.positions[index] += count

    def complete(self, index: int, chain: Chain, written: int) -> None:
        self.done[index].append((self.kept[index].pop(chain), written))


class World:
    """All of them, and what has been said so far."""

    def __init__(self) -> None:
        os.ftruncate(_file, stream.SIZE)
        self.memory = stream.Stream(_file)
        self.memory._view[: stream.SIZE] = bytes(stream.SIZE)
        self.launcher = stream.Consumer(self.memory.output), stream.Producer(self.memory.input)
        self.runtime = Runtime()
        self.sent, self.shown = bytearray(), bytearray()
        self.typed, self.received = bytearray(), bytearray()
        self.take_over(first=True)

    def take_over(self, *, first: bool = False) -> None:
        """A device begins: with what is published, and all that is in flight once more."""
        fds = {"stream": _file, "wake": _wake}
        device = Console(Config(cols=80, rows=24), fds, cast("Any", self.runtime))
        if first:
            self.runtime.published = [device.initial_position(index) for index in range(2)]
        else:
            for index in range(2):
                device.initial_position(index)
        self.runtime.begin()
        self.device = device
        for index in range(2):
            device.published(index, self.runtime.published[index])
            for request in self.runtime.in_flight[index]:
                self.hand_over(index, request)
        device.start(0)

    def hand_over(self, index: int, request: chains.Request) -> None:
        chain = request.chain()
        self.runtime.kept[index][chain] = request
        (self.device.receiveq, self.device.transmitq)[index](chain)

    def offer(self, index: int, request: chains.Request) -> None:
        """The driver makes a chain available."""
        self.runtime.in_flight[index].append(request)
        self.hand_over(index, request)

    def turn(self) -> None:
        """The device does what is to be done, and publishes nothing."""
        self.runtime.callback()
        for callback in list(self.runtime.calls):
            del self.runtime.calls[callback]
            callback()

    def publish(self, index: int) -> None:
        """The driver sees what was done, and the journal where that leaves the stream."""
        for request, written in self.runtime.done[index]:
            self.runtime.in_flight[index].remove(request)
            self.received += request.answer()[:written]
        self.runtime.done[index].clear()
        self.runtime.published[index] = self.runtime.positions[index]
        self.device.published(index, self.runtime.published[index])

    def show(self, most: int) -> None:
        """The launcher prints up to ``most`` bytes."""
        consumer, _ = self.launcher
        found = b"".join(consumer.peek())
        assert len(found) <= stream.CAPACITY
        found = found[:most]
        self.shown += found
        consumer.consume(consumer.tail + len(found))

    def type(self, data: bytes) -> None:
        """Somebody types."""
        _, producer = self.launcher
        self.typed += data[: producer.write(producer.head, [data])]

    def check(self) -> None:
        assert self.sent.startswith(self.shown), "output is lost, repeated or out of order"
        assert self.typed.startswith(self.received), "input is lost, repeated or out of order"

    def settle(self) -> None:
        """Everybody does what there is to do. Rounds: the log is smaller than what was sent."""
        for _ in range(len(self.sent) // stream.CAPACITY + 3):
            self.turn()
            for index in range(2):
                self.publish(index)
            self.show(stream.CAPACITY)
        assert self.shown == self.sent
        assert not self.runtime.in_flight[TRANSMIT]
        assert self.received == self.typed or not self.runtime.in_flight[RECEIVE]


def run(data: bytes) -> None:
    """Steps, each a byte and its operands."""
    source, world = Source(data), World()
    forged = False
    try:
        for _ in range(_MOST_STEPS):
            if not source.left:
                break
            forged |= _step(source, world)
            if not forged:
                world.check()
        if not forged:
            world.settle()
    except ProtocolError:
        assert forged
    finally:
        world.memory.close()
        # The device's mapping goes with it; what it watches is the fuzzer's.
        stream.drain(_wake)
        stream.drain(_launcher_wake)


def _step(source: Source, world: World) -> bool:
    step = source.take() % 8
    if step == 0:
        # Sizes up to a quarter of the log.
        sizes = [source.take() ** 2 // 4 for _ in range(source.take() % 4)]
        data = _pattern(len(world.sent), sum(sizes))
        world.sent += data
        world.offer(TRANSMIT, chains.Request(data, sizes, []))
    elif step == 1:
        rooms = [source.take() for _ in range(source.take() % 4)]
        world.offer(RECEIVE, chains.Request(b"", [], rooms))
    elif step == 2:
        world.turn()
    elif step == 3:
        world.publish(source.take() % 2)
    elif step == 4:
        world.show(source.take() ** 2)
    elif step == 5:
        world.type(_pattern(len(world.typed), source.take() ** 2 // 4))
    elif step == 6:
        world.take_over()
    else:
        return _forge(source, world)
    return False


def _pattern(first: int, size: int) -> bytes:
    return _PATTERN[first % 251 :][:size]


def _forge(source: Source, world: World) -> bool:
    log = (world.memory.output, world.memory.input)[source.take() % 2]
    byte = source.take() % 16
    log[byte if byte < 8 else 64 + byte - 8] = source.take()
    return True


_SEND, _ROOM, _TURN, _DIE = bytes([0, 1, 20]), bytes([1, 1, 64]), bytes([2]), bytes([6])
_PUBLISH = bytes([3, 0, 3, 1])
_SHOW, _TYPE = bytes([4, 30]), bytes([5, 40])
SEEDS = {
    "output": (_SEND + _TURN + _PUBLISH + _SHOW) * 3,
    "input": (_ROOM + _TYPE + _TURN + _PUBLISH) * 3,
    "dies": (_SEND + _ROOM + _TYPE + _TURN + _DIE + _TURN + _PUBLISH + _SHOW) * 3,
    "dies-half-way": bytes([0, 2, 255, 255]) * 5 + _TURN + _DIE + _SHOW + _TURN + _PUBLISH,
    "many": bytes([0, 3, 9, 8, 7]) * 6 + _TURN + _PUBLISH[2:] + _DIE + _SHOW * 3,
    "no-room": bytes([1, 0]) + _TYPE + _TURN + _PUBLISH + _ROOM + _TURN,
    "forged": _SEND + _TURN + bytes([7, 0, 2, 255]) + _SHOW,
    "forged-by-the-launcher": _SEND + bytes([7, 0, 8, 9]) + _TURN,
}
