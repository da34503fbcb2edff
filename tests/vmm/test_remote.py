"""Requests to a device process: answered, refused, or ended by force at the deadline."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from protocol import codec, fds
from protocol.channel import LENGTH, Channel, new_context
from protocol.errors import DeviceGone, ProtocolError, Unheard
from protocol.lifecycle import State
from protocol.messages import (
    PROTOCOL_VERSION,
    STATE_VERSION,
    TO_DEVICE,
    ConfigChanged,
    DeviceReport,
    DeviceStats,
    Done,
    ExitCount,
    GetStats,
    Hello,
    MachineStats,
    Ping,
    Quit,
    Refused,
    Sealed,
    Start,
    Welcome,
)
from protocol.specs import DeviceSlot
from tests.support.seats import at_work, stand_in, waits_for
from vmm.control import Control
from vmm.remote import DEADLINE, RemoteDevice

HELLO = Hello(PROTOCOL_VERSION, STATE_VERSION, "rng", 4, 0, (64,), b"")


class Pair:
    """A RemoteDevice with its control thread, a stand-in for the process, and its channel."""

    def __init__(
        self,
        run_dir: Path,
        *,
        patience: float = DEADLINE,
        by_hand: bool = False,
        connects: bool = True,
    ) -> None:
        self.process, self.ended = stand_in()
        self.pidfd = os.pidfd_open(self.process.pid)
        endpoint = f"{run_dir}/rng0.1"
        self.control = Control()
        slot = DeviceSlot("rng0", "rng", 4, 3, 11, (64,), (0,), 1, endpoint)
        self.remote = RemoteDevice(
            slot, self.pidfd, {}, self.control, patience, ended=self.ended, by_hand=by_hand
        )
        self.control.start()
        self.context = new_context()
        self.device = Channel(self.context, TO_DEVICE, generation=1)
        self.endpoint = endpoint
        if connects:
            self.device.connect(endpoint)

    def expect(self, kind: type) -> object:
        envelope = self.device.wait(5)
        assert envelope is not None
        assert isinstance(envelope.message, kind)
        return envelope.message

    def sequence(self, kind: type) -> int:
        """Of the next request, a ``kind``."""
        envelope = self.device.wait(5)
        assert envelope is not None
        assert isinstance(envelope.message, kind)
        return envelope.sequence

    def get_ready(self) -> None:
        self.device.send(HELLO)
        self.expect(Welcome)
        self.device.send(Sealed(60, ("memory",), ()))
        self.remote.ready.result(5)

    def write(self, frame: bytes) -> None:
        """Send what need not be a message."""
        assert self.device._peer is not None
        self.device.handle.send_multipart([self.device._peer, LENGTH.pack(len(frame)) + frame])

    def close(self) -> None:
        self.control.end()
        self.device.close()
        self.context.term()
        self.process.kill()
        self.process.communicate()  # which closes its input
        for fd in (self.pidfd, self.ended):
            os.close(fd)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.close()


def test_hello_and_seal_make_it_ready(pair: Pair) -> None:
    pair.get_ready()

    assert pair.remote.life.state is State.READY
    assert pair.remote.queue_sizes == (64,)


@pytest.mark.parametrize(
    ("hello", "complaint"),
    [
        (Hello(99, 98, "rng", 4, 0, (64,), b""), "protocol 99 and state 98 do not fit"),
        (Hello(PROTOCOL_VERSION, STATE_VERSION, "blk", 2, 0, (64,), b""), "'blk' says hello"),
        (Hello(PROTOCOL_VERSION, STATE_VERSION, "rng", 4, 0, (), b""), "1 queues were expected"),
        (Hello(PROTOCOL_VERSION, STATE_VERSION, "rng", 4, 0, (1 << 40,), b""), "power of two"),
        (Hello(PROTOCOL_VERSION, STATE_VERSION, "rng", 4, 0, (0,), b""), "power of two"),
        (Hello(PROTOCOL_VERSION, STATE_VERSION, "rng", 4, 1 << 40, (64,), b""), "no device"),
        (Hello(PROTOCOL_VERSION, STATE_VERSION, "\x1b[31m", 4, 0, (64,), b""), "x1b"),
    ],
)
def test_another_version_kind_or_shape_is_refused(pair: Pair, hello: Hello, complaint: str) -> None:
    pair.device.send(hello)

    refused = pair.expect(Refused)

    assert isinstance(refused, Refused)
    assert complaint in refused.reason
    with pytest.raises(DeviceGone, match="was refused"):
        pair.remote.ready.result(5)


def test_a_refusal_names_both_sides_numbers(pair: Pair) -> None:
    pair.device.send(Hello(99, 98, "rng", 4, 0, (64,), b""))

    refused = pair.expect(Refused)

    assert isinstance(refused, Refused)
    assert f"protocol {PROTOCOL_VERSION} and state {STATE_VERSION}" in refused.reason


@pytest.mark.parametrize("by_hand", [False, True])
def test_one_that_is_to_end_quits_by_itself_and_is_not_killed(
    tmp_path: Path, by_hand: bool
) -> None:
    pair = Pair(tmp_path, by_hand=by_hand)
    pair.get_ready()

    def quit() -> None:
        pair.expect(Quit)
        pair.process.communicate()  # which ends what it reads

    device = threading.Thread(target=quit)
    device.start()
    pair.remote.end()
    device.join()

    assert pair.remote.life.state is State.GONE
    assert pair.process.returncode == 0
    assert not pair.remote.fenced_because
    pair.close()


def test_one_that_is_to_end_and_does_not_is_dead_all_the_same(pair: Pair) -> None:
    pair.get_ready()

    pair.remote.end()

    assert fds.has_ended(pair.pidfd)
    assert pair.process.wait() == -signal.SIGKILL
    assert pair.remote.fenced_because == "it was told to quit, and did not"


def test_no_answer_within_the_deadline_is_the_end_of_the_process(pair: Pair) -> None:
    pair.get_ready()
    pair.remote.patience = 0.05

    with pytest.raises(DeviceGone, match="did not answer Ping"):
        pair.remote.call(Ping())

    assert pair.process.wait(5) == -signal.SIGKILL
    assert pair.remote.life.state is State.GONE
    with pytest.raises(DeviceGone):
        pair.remote.call(Ping())


def test_a_request_that_is_given_up_leaves_a_process_that_is_dead_already(pair: Pair) -> None:
    pair.get_ready()
    pair.remote.patience = 0

    with pytest.raises(DeviceGone, match="did not answer Ping"):
        pair.remote.call(Ping())

    state = os.waitid(os.P_PIDFD, pair.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    assert state is not None, "it may still touch guest memory"
    assert state.si_status == signal.SIGKILL


@pytest.mark.parametrize("way", ["call", "fence", "end"])
def test_one_is_gone_when_nothing_goes_on_for_it(pair: Pair, way: str) -> None:
    pair.get_ready()
    order: list[str] = []
    work = at_work(pair.ended)

    def act() -> None:
        if way == "call":
            with pytest.raises(DeviceGone):
                pair.remote.call(Ping())
        elif way == "fence":
            pair.remote.fence("it is to go")
        else:
            pair.remote.end()
        order.append("gone")

    if way == "call":
        pair.process.kill()
    actor = threading.Thread(target=act)
    actor.start()
    assert fds.has_ended(pair.pidfd, DEADLINE)
    time.sleep(0.3)  # in which it could think so
    assert not pair.remote.has_ended()
    order.append("done")
    os.close(work)
    actor.join()

    assert order == ["done", "gone"]
    assert pair.remote.life.state is State.GONE


def test_one_that_was_started_by_hand_and_is_dead_is_not_waited_for_as_if_it_thought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmm.remote._FENCE_DEADLINE", 0.1)
    pair = Pair(tmp_path, by_hand=True)
    pair.get_ready()
    work = at_work(pair.ended)
    pair.process.kill()

    def call() -> None:
        with pytest.raises(DeviceGone):
            pair.remote.call(Ping())

    is_waited_for = waits_for(work, call, DEADLINE)
    pair.close()

    assert not is_waited_for


@pytest.mark.parametrize("way", ["violation", "the end"])
def test_nobody_else_waits_for_what_goes_on_for_one(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr("vmm.remote._FENCE_DEADLINE", 2 * DEADLINE)
    pair.get_ready()
    work = at_work(pair.ended)

    def act() -> None:
        if way == "violation":
            pair.remote.on_violation(ProtocolError("nonsense"))
        else:
            pair.remote.outlast_until = time.monotonic()  # others have used up the time
            pair.remote.fence("the VM ends")

    assert not waits_for(work, act, DEADLINE)
    assert fds.has_ended(pair.pidfd)


@pytest.mark.parametrize("kind", ["rng", "blk"])
def test_who_was_greeted_and_says_hello_again_is_killed(pair: Pair, kind: str) -> None:
    pair.device.send(HELLO)
    pair.expect(Welcome)

    pair.device.send(Hello(PROTOCOL_VERSION, STATE_VERSION, kind, 4, 0, (64,), b""))

    assert pair.process.wait(5) == -signal.SIGKILL
    assert "hello makes no sense while greeted" in pair.remote.fenced_because


def test_who_was_refused_is_not_listened_to_any_more(pair: Pair) -> None:
    pair.device.send(Hello(99, 98, "rng", 4, 0, (64,), b""))
    pair.expect(Refused)

    for message in (Hello(99, 98, "rng", 4, 0, (64,), b""), HELLO, Sealed(1, (), ())):
        pair.device.send(message)

    assert pair.device.wait(0.2) is None
    assert not pair.remote.is_ready
    assert pair.control.is_alive()


def test_death_is_noticed_by_who_waits_for_an_answer(pair: Pair) -> None:
    pair.get_ready()
    pair.remote.patience = 10_000
    pair.process.kill()

    with pytest.raises(DeviceGone, match="rng0 is gone"):
        pair.remote.call(Ping())


@pytest.mark.parametrize(
    "frame",
    [
        b"\x94" + b"\x91" * 1020 + b"\x00" + b"\x00\x01\x80",  # a name that is nested without end
        b"\x94\xa4Ping\x00\x01\x80",  # a message that only the VMM may send
    ],
)
def test_no_message_ends_the_control_thread(pair: Pair, frame: bytes) -> None:
    pair.get_ready()

    pair.write(frame)

    assert pair.process.wait(5) == -signal.SIGKILL
    assert pair.control.is_alive()


def test_an_error_of_ours_costs_the_device_that_found_it_and_not_the_control_thread(
    pair: Pair,
) -> None:
    def fail(config: bytes) -> None:
        raise OverflowError

    pair.remote.on_config = fail
    pair.get_ready()

    pair.device.send(ConfigChanged(b""))

    assert pair.process.wait(5) == -signal.SIGKILL
    assert pair.control.is_alive()


@pytest.mark.slow
@pytest.mark.parametrize("generation", [1, 2])
def test_a_device_that_floods_is_killed_whatever_it_says(pair: Pair, generation: int) -> None:
    pair.get_ready()
    frame = codec.encode(ConfigChanged(b""), 0, generation)

    with contextlib.suppress(zmq.Again):
        pair.device.handle.setsockopt(zmq.SNDTIMEO, 5000)
        for _ in range(5000):
            pair.write(frame)

    assert pair.process.wait(5) == -signal.SIGKILL


@pytest.fixture
def unconnected(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path, connects=False)
    yield made
    made.close()


def test_a_device_that_comes_byte_by_byte_without_end_is_killed(unconnected: Pair) -> None:
    with socket.socket(socket.AF_UNIX) as device:
        device.connect(unconnected.endpoint)
        device.settimeout(5)
        device.sendall(framed(HELLO) + framed(Sealed(60, ("memory",), ())))
        unconnected.remote.ready.result(5)

        # Nobody reads any more when it is cut off.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
            for byte in framed(ConfigChanged(bytes(60_000))) * 50:  # far from 500 messages
                device.send(bytes([byte]))
                if unconnected.process.poll() is not None:
                    break

    assert unconnected.process.wait(5) == -signal.SIGKILL


def framed(message: object) -> bytes:
    frame = codec.encode(message, 0, 1)
    return LENGTH.pack(len(frame)) + frame


def test_a_device_that_breaks_the_protocol_is_killed(pair: Pair) -> None:
    pair.get_ready()

    pair.device.send(HELLO)  # a second one, while READY

    assert pair.process.wait(5) == -signal.SIGKILL
    pair.control.end()
    assert pair.remote.fenced_because.startswith("it broke the protocol")
    assert not pair.remote.is_hung
    pair.control = Control()  # for close()
    pair.control.start()


def test_a_device_may_not_ask(pair: Pair) -> None:
    pair.get_ready()

    pair.device.send(Done(), 77)

    assert pair.process.wait(5) == -signal.SIGKILL


def test_counters_that_would_not_fit_a_report_are_cut(pair: Pair) -> None:
    pair.get_ready()
    hostile = {f"counter{number}": 1 for number in range(1000)} | {"x" * 100: 1}
    reply = pair.remote.ask_counters()
    pair.device.send(DeviceStats(hostile), pair.sequence(GetStats))

    counters = pair.remote.counters(reply.result(5))

    assert len(counters) == 32
    assert "x" * 100 not in counters


def test_a_report_of_everything_fits_one_message() -> None:
    counters = {f"{number:040}": (1 << 64) - 1 for number in range(32)}
    largest = (1 << 64) - 1
    stats = MachineStats(
        largest,
        largest,
        (ExitCount("mmio write", largest, "a name that is long", largest, largest),) * 300,
        (DeviceReport("a name that is long", "needs-reset", counters),) * 15,
    )

    assert len(codec.encode(stats)) <= codec.MAX_MESSAGE


def test_death_fails_what_waits(pair: Pair) -> None:
    pair.get_ready()
    reply = pair.control.post(pair.remote._channel, Start(0, ()))

    pair.remote.gone()

    with pytest.raises(DeviceGone, match="rng0 is gone"):
        reply.result(5)


@pytest.fixture
def by_hand(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path, patience=0.0, by_hand=True)
    made.get_ready()
    yield made
    made.close()


def test_one_by_hand_may_be_late_with_what_the_driver_waits_for(by_hand: Pair) -> None:
    answers = threading.Thread(target=lambda: by_hand.device.send(Done(), by_hand.sequence(Start)))
    answers.start()

    assert by_hand.remote.start(0, (), b"") is None
    answers.join()
    assert by_hand.process.poll() is None


def test_who_owes_its_counters_is_not_asked_again_before_it_has_told_them(pair: Pair) -> None:
    pair.get_ready()
    owed = [pair.remote.ask_counters() for _ in range(1000)]
    pair.device.send(DeviceStats({"chains": 1}), pair.sequence(GetStats))
    assert [one.result(5).counters["chains"] for one in owed] == [1] * 1000

    again = pair.remote.ask_counters()
    pair.device.send(DeviceStats({"chains": 2}), pair.sequence(GetStats))

    assert again.result(5).counters == {"chains": 2}


def test_one_by_hand_that_is_to_be_replaced_has_no_more_time_than_others(by_hand: Pair) -> None:
    with pytest.raises(DeviceGone):
        by_hand.remote.quiesce()

    assert by_hand.process.wait() == -signal.SIGKILL


def test_a_device_that_dies_while_it_is_written_to_has_broken_nothing(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmm.remote._DYING", 20.0)
    pair.get_ready()
    error = Unheard("the peer does not read its messages")
    waiting = threading.Thread(target=pair.remote.on_violation, args=(error,))
    waiting.start()

    pair.process.kill()

    waiting.join(20)
    assert pair.remote.fenced_because == ""
    with pytest.raises(DeviceGone, match="rng0 is gone"):
        pair.remote.ask(Ping()).result(5)


def test_a_device_that_lives_and_does_not_read_is_killed(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmm.remote._DYING", 0.0)

    pair.remote.on_violation(Unheard("the peer does not read its messages"))

    assert pair.process.wait(5) == -signal.SIGKILL
    assert "does not read" in pair.remote.fenced_because
