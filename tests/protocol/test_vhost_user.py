"""Messages of vhost-user, and a connection whose other side is not believed."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest

from protocol import vhost_user
from protocol.errors import ProtocolError
from protocol.vhost_user import (
    FROM_BACK_END,
    FROM_FRONT_END,
    U64,
    ConfigSpace,
    Connection,
    DeviceState,
    HungUp,
    Inflight,
    MemoryRegion,
    ProtocolFeature,
    Request,
    VringAddr,
    VringState,
)
from tests.support.leaks import descriptors, none_left


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    with none_left():
        yield


@pytest.fixture
def pair(_no_leaks: None) -> Iterator[tuple[Connection, Connection, socket.socket]]:
    """A front-end, a back-end, and the front-end's socket, to say what it would not."""
    ours, theirs = socket.socketpair()
    raw = socket.socket(fileno=os.dup(ours.fileno()))
    front, back = Connection(ours, FROM_BACK_END), Connection(theirs, FROM_FRONT_END)
    yield front, back, raw
    raw.close()
    front.close()
    back.close()


Pair = tuple[Connection, Connection, socket.socket]


def test_a_request_comes_with_its_descriptors_and_a_reply_goes_back(pair: Pair) -> None:
    front, back, _ = pair
    reading, writing = os.pipe()
    front.send(Request.SET_VRING_KICK, U64(3).pack(), [writing], needs_reply=True)
    os.close(writing)

    with back.wait(1) as message:
        assert (message.request, message.number) == (Request.SET_VRING_KICK, 3)
        assert message.needs_reply
        assert not message.is_reply
        taken = message.take()
        with pytest.raises(ProtocolError, match="no descriptor came with it"):
            message.take()
    os.write(taken, b"through")
    os.close(taken)
    back.send(Request.SET_VRING_KICK, U64(0).pack(), is_reply=True)

    assert os.read(reading, 10) == b"through"
    assert front.wait(1).is_reply
    os.close(reading)


def test_the_numbers_are_those_of_the_specification() -> None:
    assert VringState(1, 2).pack() == struct.pack("=II", 1, 2)
    assert VringAddr(1, 0, 2, 3, 4, 5).pack() == struct.pack("=IIQQQQ", 1, 0, 2, 3, 4, 5)
    assert ConfigSpace(4, 1, b"abc").pack() == struct.pack("=III", 4, 3, 1) + b"abc"
    assert Inflight(1, 2, 3, 4).pack() == struct.pack("=QQHH", 1, 2, 3, 4)
    assert DeviceState(1, 2).pack() == struct.pack("=II", 1, 2)
    assert (Request.SET_DEVICE_STATE_FD, Request.CHECK_DEVICE_STATE) == (42, 43)
    assert (ProtocolFeature.STATUS, ProtocolFeature.DEVICE_STATE) == (16, 19)
    region = MemoryRegion(1, 2, 3, 4)
    assert vhost_user.pack_region(region) == struct.pack("=QQQQQ", 0, 1, 2, 3, 4)
    assert vhost_user.pack_table([region]) == struct.pack("=IIQQQQ", 1, 0, 1, 2, 3, 4)
    assert vhost_user.pack(Request.GET_CONFIG, b"x", is_reply=True, needs_reply=True) == (
        struct.pack("=III", 24, 0b1101, 1) + b"x"
    )


def test_what_is_packed_is_what_is_unpacked() -> None:
    regions = [MemoryRegion(number, 2, 3, 4) for number in range(8)]
    assert vhost_user.unpack_table(vhost_user.pack_table(regions)) == regions
    # Some send room for eight, whatever there are.
    assert vhost_user.unpack_table(vhost_user.pack_table(regions[:1]) + bytes(224)) == regions[:1]
    assert vhost_user.unpack_region(vhost_user.pack_region(regions[3])) == regions[3]
    config = ConfigSpace(4, 1, b"abc")
    assert ConfigSpace.unpack(config.pack()) == config
    assert Inflight.unpack(Inflight(1, 2, 3, 4).pack() + bytes(4)) == Inflight(1, 2, 3, 4)


def test_messages_that_come_together_keep_their_own_descriptors(pair: Pair) -> None:
    front, back, _ = pair
    with open(os.devnull, "rb") as null, socket.socket() as other:
        front.send(Request.SET_VRING_CALL, U64(0).pack(), [null.fileno()])
        front.send(Request.SET_OWNER)
        front.send(Request.SET_VRING_KICK, U64(1).pack(), [other.fileno()])

        for request, count in (
            (Request.SET_VRING_CALL, 1),
            (Request.SET_OWNER, 0),
            (Request.SET_VRING_KICK, 1),
        ):
            with back.wait(1) as message:
                assert message.request is request
                assert len(message.descriptors) == count
    assert back.receive() is None


def test_a_message_in_pieces_is_whole_at_its_last_byte(pair: Pair) -> None:
    _, back, raw = pair
    packet = vhost_user.pack(Request.SET_VRING_NUM, VringState(0, 4).pack())
    for end in range(1, len(packet)):
        raw.send(packet[end - 1 : end])
        assert back.receive() is None

    raw.send(packet[-1:])

    message = back.receive()
    assert message is not None
    assert VringState.unpack(message.payload) == VringState(0, 4)


@pytest.mark.parametrize("count", [2, 8, 9, 200])
def test_descriptors_too_many_are_closed(pair: Pair, count: int) -> None:
    _, back, raw = pair
    before = descriptors()
    with open(os.devnull, "rb") as null:
        packet = vhost_user.pack(Request.SET_VRING_KICK, U64(0).pack())
        socket.send_fds(raw, [packet], [null.fileno()] * count)

    with pytest.raises(ProtocolError, match="descriptors"):
        back.receive()

    back.close()
    assert {fd for fd in descriptors() if fd not in before} == set()


def test_descriptors_of_half_a_message_are_closed_with_the_connection(pair: Pair) -> None:
    _, back, raw = pair
    before = descriptors()
    with open(os.devnull, "rb") as null:
        packet = vhost_user.pack(Request.SET_VRING_KICK, U64(0).pack())
        socket.send_fds(raw, [packet[:9]], [null.fileno()])
    assert back.receive() is None
    assert len(descriptors()) == len(before) + 1

    back.close()

    assert len(descriptors()) == len(before) - 1


@pytest.mark.parametrize("size", [0, 7, 9, 4096, 0xFFFFFFFF])
def test_a_size_is_not_believed(pair: Pair, size: int) -> None:
    _, back, raw = pair
    raw.send(struct.pack("=III", Request.SET_FEATURES, 1, size))

    with pytest.raises(ProtocolError, match=f"SET_FEATURES: {size} bytes"):
        back.receive()


def test_one_that_hangs_up_is_told_from_one_that_is_silent(pair: Pair) -> None:
    front, back, raw = pair
    with pytest.raises(ProtocolError, match=r"nothing came within 0.01 seconds"):
        back.wait(0.01)
    raw.shutdown(socket.SHUT_RDWR)

    with pytest.raises(HungUp):
        back.wait(1)
    with pytest.raises(HungUp):
        back.send(Request.GET_FEATURES)
    with pytest.raises(HungUp):
        front.receive()


def test_one_that_does_not_read_is_not_waited_for(pair: Pair) -> None:
    front, _, _ = pair

    def send_for_ever() -> None:
        while True:
            front.send(Request.GET_FEATURES)

    with pytest.raises(ProtocolError, match="does not read"):
        send_for_ever()
