"""The control server in a loop of its own: whatever clients do, the loop goes round."""

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.control import ControlServer, Reply
from launcher.events import Events
from launcher.loop import Loop
from protocol import channel, codec
from protocol import control as wire
from protocol.errors import BadInput, HostError
from protocol.service import Client

DEADLINE = 20.0


class Served:
    """A server with a few handlers, whose loop runs in a thread; :meth:`call` is run there."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.loop = Loop()
        self.events = Events()
        self.later: list[Reply] = []
        self._calls: list[Callable[[], object]] = []
        self._context = channel.new_context()
        handlers = {
            wire.Pause: lambda _, reply: reply(wire.Done()),
            wire.Resume: lambda _, reply: self.later.append(reply),
            wire.Kill: self._kill,
            wire.Measure: lambda _, reply: reply(1 // 0),
        }
        self.server = ControlServer(self.loop, self._context, path, handlers, self.events)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _kill(self, request: wire.Kill, reply: Reply) -> None:
        error = BadInput if request.device == "nobody" else HostError
        raise error(*(("'nobody'", "no such device") if error is BadInput else ("no process",)))

    def _run(self) -> None:
        self._turn()
        self.loop.run()

    def _turn(self) -> None:
        while self._calls:
            self._calls.pop(0)()
        self.loop.after(0.005, self._turn)

    def call(self, what: Callable[[], object]) -> None:
        """Run ``what`` in the loop, and wait for it."""
        done = threading.Event()
        self._calls.append(lambda: (what(), done.set()))
        assert done.wait(DEADLINE), "the loop stands still"

    def close(self) -> None:
        self.call(self.loop.end)
        self._thread.join(DEADLINE)
        self.server.close()
        self._context.destroy(linger=0)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(str(tmp_path / "control"))
    yield made
    made.close()


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    made = Client(served.path)
    yield made
    made.close()


def told(client: Client) -> codec.Envelope:
    """The next message to ``client``."""
    frame = client.receive(DEADLINE)
    assert frame is not None, "no message came"
    return wire.decode(frame, wire.FROM_LAUNCHER)


def test_request_is_answered_with_its_number(client: Client) -> None:
    client.send(wire.encode(wire.Pause(), 41))

    assert told(client) == codec.Envelope(wire.Done(), 41, wire.CONTROL_VERSION)


def test_reply_may_come_later_than_those_to_others(served: Served, client: Client) -> None:
    client.send(wire.encode(wire.Resume(), 1))
    client.send(wire.encode(wire.Pause(), 2))
    assert told(client).sequence == 2

    served.call(lambda: served.later[0](wire.Done()))

    assert told(client).sequence == 1


@pytest.mark.parametrize(
    ("frames", "sequence", "words"),
    [
        ([b"garbage"], 0, "msgpack"),
        ([b""], 0, "msgpack"),
        ([wire.encode(wire.Pause(), 1), b"more"], 0, "one frame"),
        ([codec.pack(["Pause", 9, 99, {}])], 9, "control version 99 there"),
        ([codec.pack(["Pause", 9, wire.CONTROL_VERSION, {"x": 1}])], 9, "unknown field 'x'"),
        (
            [codec.pack(["Explode", 9, wire.CONTROL_VERSION, {}])],
            9,
            "'Explode' is not allowed here",
        ),
        ([wire.encode(wire.Done(), 9)], 9, "'Done' is not allowed here"),
        ([wire.encode(wire.Pause(), 0)], 0, "a sequence number above 0"),
        ([wire.encode(wire.Kill("nobody"), 9)], 9, "'nobody': no such device"),
    ],
)
def test_what_is_wrong_is_said_with_status_2_and_the_next_request_is_served(
    client: Client, frames: list[bytes], sequence: int, words: str
) -> None:
    client.send(*frames)
    client.send(wire.encode(wire.Pause(), 10))

    failed = told(client)
    assert isinstance(failed.message, wire.Failed)
    assert (failed.sequence, failed.message.status) == (sequence, 2)
    assert words in failed.message.reason
    assert told(client).message == wire.Done()


def test_error_of_the_host_has_its_own_status(client: Client) -> None:
    client.send(wire.encode(wire.Kill("blk0"), 1))

    assert told(client).message == wire.Failed(3, "no process")


def test_error_that_nobody_thought_of_is_told_and_the_next_request_is_served(
    client: Client,
) -> None:
    client.send(wire.encode(wire.Measure(), 5))
    client.send(wire.encode(wire.Pause(), 6))

    failed, done = told(client), told(client)

    assert failed.sequence == 5
    assert failed.message == wire.Failed(3, "ZeroDivisionError: integer division or modulo by zero")
    assert (done.sequence, done.message) == (6, wire.Done())


def test_client_that_leaves_before_its_reply_is_not_missed(served: Served, client: Client) -> None:
    hasty = Client(served.path)
    hasty.send(wire.encode(wire.Resume(), 1))
    hasty.send(wire.encode(wire.Pause(), 2))
    assert told(hasty).sequence == 2
    hasty.close()

    served.call(lambda: served.later[0](wire.Done()))
    client.send(wire.encode(wire.Pause(), 3))

    assert told(client).sequence == 3


def test_history_comes_before_the_reply_and_what_follows_after_it(
    served: Served, client: Client
) -> None:
    served.call(lambda: served.events.emit("ready"))
    client.send(wire.encode(wire.Follow(True), 1))

    assert told(client).message.kind == "ready"
    assert told(client) == codec.Envelope(wire.Done(), 1, wire.CONTROL_VERSION)
    served.call(lambda: served.events.emit("paused"))
    assert told(client).message.kind == "paused"


def test_request_that_comes_while_an_event_is_sent_is_not_overlooked(
    served: Served, client: Client
) -> None:
    client.send(wire.encode(wire.Follow(True), 1))
    assert told(client).message == wire.Done()

    def meet() -> None:
        client.send(wire.encode(wire.Pause(), 2))
        # It is here, and the loop has not seen it. Sending takes the descriptor's word for it.
        assert select.select([served.server._fds[0]], [], [], DEADLINE)[0]
        served.events.emit("paused")

    served.call(meet)

    assert {told(client).sequence, told(client).sequence} == {0, 2}


def test_who_does_not_follow_hears_no_more(served: Served, client: Client) -> None:
    client.send(wire.encode(wire.Follow(False), 1))
    assert told(client).message == wire.Done()

    served.call(lambda: served.events.emit("paused"))
    client.send(wire.encode(wire.Pause(), 2))

    assert told(client).sequence == 2


def test_follower_that_does_not_read_is_told_how_much_it_missed(
    served: Served, client: Client
) -> None:
    client.send(wire.encode(wire.Follow(True), 1))
    assert told(client).message == wire.Done()

    def emit(count: int = 1) -> None:
        for _ in range(count):
            served.events.emit("died", detail="x" * 500)

    served.call(lambda: emit(20_000))
    got = 0
    # What was kept for it comes, and then, before the next event, how much was not.
    while isinstance(message := told(client).message, wire.Event):
        got += 1
        if got % 100 == 0:
            served.call(emit)

    assert isinstance(message, wire.Lost)
    assert message.count > 0
    assert told(client).message.number == got + message.count + 1


def test_flood_of_one_client_leaves_the_loop_and_other_clients_alive(
    served: Served, client: Client
) -> None:
    flooder, ended = Client(served.path), threading.Event()

    def flood() -> None:
        frame = wire.encode(wire.Follow(True), 1)
        while not ended.is_set():
            flooder.receive(0)  # so that its own buffers do not hold it up; mostly nothing
            for noise in (frame, b"garbage"):
                flooder.send(noise)

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        for number in range(1, 50):
            client.send(wire.encode(wire.Pause(), number))
            assert told(client).sequence == number
            served.call(lambda: None)
    finally:
        ended.set()
        thread.join(DEADLINE)
        flooder.close()
