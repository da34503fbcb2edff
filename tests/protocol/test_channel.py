"""A channel is one peer, one generation, bounded."""

import contextlib
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from protocol import codec
from protocol.channel import LENGTH, Channel, Frames, wait_any
from protocol.codec import MAX_MESSAGE
from protocol.errors import ProtocolError, Unheard
from protocol.messages import FROM_DEVICE, TO_DEVICE, ConfigChanged, Done, NeedsReset, Ping

DEADLINE = 20.0
# More than ZeroMQ keeps of what is not read, 16 chunks of 8 KiB, and the kernel of both sides, some
# 200 KiB each.
KEPT = 2 << 20


def framed(message: object) -> bytes:
    frame = codec.encode(message)
    return LENGTH.pack(len(frame)) + frame


@pytest.fixture
def context() -> Iterator["zmq.Context[zmq.Socket[bytes]]"]:
    with zmq.Context() as made:
        yield made


def test_a_request_and_its_answer(
    context: "zmq.Context[zmq.Socket[bytes]]", tmp_path: Path
) -> None:
    vmm = Channel(context, FROM_DEVICE)
    vmm.bind(f"{tmp_path}/c")
    device = Channel(context, TO_DEVICE)
    device.connect(f"{tmp_path}/c")

    device.send(NeedsReset("hello"))  # the side that connects speaks first
    assert vmm.wait(5) is not None
    vmm.send(Ping(), 5)
    request = device.wait(5)
    assert request is not None
    device.send(Done(), request.sequence)
    answer = vmm.wait(5)

    assert answer is not None
    assert (answer.message, answer.sequence) == (Done(), 5)
    vmm.close()
    device.close()


def test_who_listens_and_goes_is_an_end_and_not_connected_to_again(
    context: "zmq.Context[zmq.Socket[bytes]]", tmp_path: Path
) -> None:
    path = f"{tmp_path}/c"
    device = Channel(context, TO_DEVICE)
    with socket.socket(socket.AF_UNIX) as dying:
        dying.bind(path)
        dying.listen()
        device.connect(path)
        dying.settimeout(5)
        dying.accept()[0].close()  # it took the connection, and was no more

        assert device.wait(0.3) is None
        dying.settimeout(0)
        with pytest.raises(BlockingIOError):
            dying.accept()
    device.close()


def test_messages_of_another_generation_are_dropped(
    context: "zmq.Context[zmq.Socket[bytes]]", tmp_path: Path
) -> None:
    vmm = Channel(context, FROM_DEVICE, generation=2)
    vmm.bind(f"{tmp_path}/c")
    stale = Channel(context, TO_DEVICE, generation=1)
    stale.connect(f"{tmp_path}/c")

    stale.send(Done(), 5)

    assert vmm.wait(0.2) is None
    vmm.close()
    stale.close()


def test_who_is_not_there_yet_cannot_be_told(
    context: "zmq.Context[zmq.Socket[bytes]]", tmp_path: Path
) -> None:
    vmm = Channel(context, FROM_DEVICE)
    vmm.bind(f"{tmp_path}/c")

    with pytest.raises(Unheard, match="has not come"):
        vmm.send(Ping())
    vmm.close()


class Raw:
    """A channel, and a peer that writes what it likes."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", path: Path) -> None:
        self.path = str(path)
        self.channel = Channel(context, FROM_DEVICE)
        self.channel.bind(self.path)
        self.peer = self.connect()

    def connect(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX)
        made.connect(self.path)  # waits where there are too many; with a timeout it does not
        made.settimeout(DEADLINE)
        return made

    def get_known(self) -> None:
        self.peer.sendall(framed(Done()))
        assert self.channel.wait(DEADLINE) is not None

    def pour(self, data: bytes, most: int) -> int:
        """Write it again and again, until nobody has taken any for a second: how much was."""
        taken = 0
        self.peer.setblocking(False)
        while taken < most and select.select([], [self.peer], [], 1)[1]:
            with contextlib.suppress(BlockingIOError):
                taken += self.peer.send(data)
        return taken

    def hangs_up(self, other: socket.socket) -> bool:
        """Whether it does on ``other``, which it has to look for."""
        other.settimeout(0.01)
        for _ in range(int(DEADLINE / 0.02)):
            assert self.channel.wait(0.01) is None
            with contextlib.suppress(TimeoutError):
                return other.recv(1) == b""
        return False


@pytest.fixture
def raw(context: "zmq.Context[zmq.Socket[bytes]]", tmp_path: Path) -> Iterator[Raw]:
    made = Raw(context, tmp_path / "c")
    yield made
    made.channel.close()
    made.peer.close()


def test_a_peer_that_does_not_read_is_an_error_and_not_a_hang(raw: Raw) -> None:
    raw.get_known()

    def flood() -> None:
        for _ in range(100_000):
            raw.channel.send(Ping())

    with pytest.raises(Unheard, match="does not read"):
        flood()


@pytest.mark.slow
@pytest.mark.parametrize(
    "data",
    [
        bytes(MAX_MESSAGE),
        b"\x03" + MAX_MESSAGE.to_bytes(8, "big") + bytes(MAX_MESSAGE),  # ZMTP's: more to come
        framed(Done()),
    ],
)
def test_what_nobody_reads_has_a_bound(raw: Raw, data: bytes) -> None:
    assert raw.pour(data, 64 << 20) < KEPT


@pytest.mark.slow
def test_of_a_message_that_never_ends_no_more_is_kept_though_it_is_read(raw: Raw) -> None:
    raw.peer.sendall(LENGTH.pack(MAX_MESSAGE) + bytes(MAX_MESSAGE - 1))
    assert raw.channel.wait(0.2) is None

    raw.peer.sendall(b"\xc1" * MAX_MESSAGE)

    with pytest.raises(ProtocolError, match="not msgpack"):
        raw.channel.wait(DEADLINE)
    assert raw.pour(bytes(MAX_MESSAGE), 64 << 20) < KEPT


@pytest.mark.parametrize("size", [MAX_MESSAGE + 1, (1 << 32) - 1])
def test_too_large_a_message_is_known_by_its_length(raw: Raw, size: int) -> None:
    raw.peer.sendall(framed(Done()) + LENGTH.pack(size))

    assert raw.channel.wait(DEADLINE) is not None
    with pytest.raises(ProtocolError, match=f"message of {size} bytes is over"):
        raw.channel.wait(DEADLINE)


def test_the_largest_message_goes_through(
    context: "zmq.Context[zmq.Socket[bytes]]", raw: Raw
) -> None:
    room = MAX_MESSAGE - len(codec.encode(ConfigChanged(bytes(1000)))) + 1000
    largest = ConfigChanged(os.urandom(room))
    assert len(codec.encode(largest)) == MAX_MESSAGE
    raw.peer.sendall(framed(largest) * 2)

    for _ in range(2):
        envelope = raw.channel.wait(DEADLINE)
        assert envelope is not None
        assert envelope.message == largest


def test_who_comes_byte_by_byte_holds_up_nobody(
    context: "zmq.Context[zmq.Socket[bytes]]", raw: Raw, tmp_path: Path
) -> None:
    other = Raw(context, tmp_path / "other")
    message = framed(NeedsReset("slowly"))

    for at in range(len(message)):
        assert raw.channel.receive() is None
        raw.peer.sendall(message[at : at + 1])
        other.get_known()
    envelope = raw.channel.wait(DEADLINE)

    assert envelope is not None
    assert envelope.message == NeedsReset("slowly")
    other.channel.close()
    other.peer.close()


def test_the_first_to_connect_is_the_peer_and_all_others_are_hung_up_on(raw: Raw) -> None:
    second = raw.connect()
    second.sendall(framed(NeedsReset("I am it")))

    assert raw.hangs_up(second)
    raw.get_known()
    assert not os.path.exists(raw.path)
    with pytest.raises(FileNotFoundError):
        raw.connect()
    second.close()


def test_a_storm_of_others_leaves_nothing_and_replaces_nobody(raw: Raw, tmp_path: Path) -> None:
    os.link(raw.path, f"{tmp_path}/other name")  # the first takes away the one that it has
    raw.get_known()
    raw.path = f"{tmp_path}/other name"
    before = len(os.listdir("/proc/self/fd"))

    for _ in range(500):
        with raw.connect() as stranger:
            stranger.sendall(framed(NeedsReset("I am it")))
        assert raw.channel.receive() is None
    last = raw.connect()

    assert raw.hangs_up(last)
    last.close()
    raw.get_known()
    raw.channel.send(Ping())
    assert raw.peer.recv(100) == framed(Ping())
    assert len(os.listdir("/proc/self/fd")) - before < 20


def test_a_peer_that_goes_in_the_middle_of_a_frame_has_said_nothing(raw: Raw) -> None:
    raw.get_known()
    raw.peer.sendall(framed(Done()) + framed(Done())[:-1])
    raw.peer.close()

    assert raw.channel.wait(DEADLINE) is not None
    assert raw.channel.wait(0.2) is None
    with pytest.raises(Unheard, match="gone"):
        raw.channel.send(Ping())


def test_what_came_with_another_message_is_told_of(
    context: "zmq.Context[zmq.Socket[bytes]]", raw: Raw
) -> None:
    raw.peer.sendall(framed(Done()) + framed(NeedsReset("two")) + LENGTH.pack(MAX_MESSAGE + 1))
    assert raw.channel.wait(DEADLINE) is not None

    assert wait_any([raw.channel], [], None) == ([raw.channel], [])
    assert raw.channel.receive() is not None
    assert wait_any([raw.channel], [], None) == ([raw.channel], [])
    with pytest.raises(ProtocolError, match="over"):
        raw.channel.receive()


def test_half_a_message_is_nothing_to_be_told_of(raw: Raw) -> None:
    raw.peer.sendall(framed(Done()) + framed(Done())[:-1])
    assert raw.channel.wait(DEADLINE) is not None

    assert wait_any([raw.channel], [], 0.1) == ([], [])


def test_frames_are_the_same_however_they_are_cut() -> None:
    sent = [b"abc", b"", bytes(MAX_MESSAGE), b"d"]
    stream = b"".join(LENGTH.pack(len(frame)) + frame for frame in sent)

    for step in (1, 3, 8192, len(stream)):
        frames, got = Frames(), []
        for at in range(0, len(stream), step):
            frames.add(stream[at : at + step])
            while frames.is_whole:
                got.append(frames.take())
        assert got == sent
        assert frames.take() is None
