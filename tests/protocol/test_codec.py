"""The codec takes what the classes say, and nothing else."""

import contextlib
from dataclasses import dataclass
from typing import Literal

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import codec
from protocol.codec import MAX_MESSAGE
from protocol.errors import ProtocolError
from protocol.messages import FROM_DEVICE, MAX_STATE, TO_DEVICE, Done, Hello, QueueSetup, Start

START = Start(features=1 << 32, queues=(QueueSetup(0, 64, 0x1000, 0x2000, 0x3000),))


def frame(name: str, body: object, sequence: object = 1, generation: object = 0) -> bytes:
    return msgpack.packb([name, sequence, generation, body])


def test_a_message_comes_back_as_it_went() -> None:
    envelope = codec.decode(codec.encode(START, 7, 3), TO_DEVICE)

    assert envelope == codec.Envelope(START, 7, 3)


@pytest.mark.parametrize(
    ("name", "body", "complaint"),
    [
        ("Start", {"features": 1}, "'queues' is missing"),
        ("Start", {"features": 1, "queues": [], "x": 1}, "unknown field 'x'"),
        ("Start", {"features": True, "queues": []}, "Start.features: int expected, got bool"),
        ("Start", {"features": -1, "queues": []}, "not a 64-bit unsigned"),
        ("Start", {"features": 1, "queues": [{"index": 0}]}, r"queues\[0\]: field 'size'"),
        ("Start", {"features": 1, "queues": "no"}, "list expected, got str"),
        ("Start", [], "dict expected"),
        ("Hello", {}, "not allowed here"),
        ("Frobnicate", {}, "not allowed here"),
    ],
)
def test_anything_else_is_refused_by_name(name: str, body: object, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        codec.decode(frame(name, body), TO_DEVICE)


@pytest.mark.parametrize("sequence", [-1, "1", None, 1.5, True])
def test_a_sequence_that_is_no_number_is_refused(sequence: object) -> None:
    with pytest.raises(ProtocolError, match="sequence"):
        codec.decode(frame("Done", {}, sequence=sequence), FROM_DEVICE)


def test_a_device_cannot_speak_as_the_vmm() -> None:
    with pytest.raises(ProtocolError, match="'Start' is not allowed"):
        codec.decode(codec.encode(START), FROM_DEVICE)


def test_what_is_too_large_is_refused_on_both_ways() -> None:
    large = Hello(1, 1, "blk", 2, 0, (64,), b"x" * MAX_MESSAGE)

    with pytest.raises(ProtocolError, match="over"):
        codec.encode(large)
    with pytest.raises(ProtocolError, match="over"):
        codec.decode(b"\x00" * (MAX_MESSAGE + 1), FROM_DEVICE)


def test_nesting_without_end_is_refused() -> None:
    with pytest.raises(ProtocolError):
        codec.decode(b"\x91" * 60_000 + b"\x00", FROM_DEVICE)


def test_trailing_bytes_are_refused() -> None:
    with pytest.raises(ProtocolError):
        codec.decode(codec.encode(Done()) + b"\x00", FROM_DEVICE)


@given(st.binary(max_size=300))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        codec.decode(data, FROM_DEVICE)


def test_the_largest_state_fits_beside_the_most_queues() -> None:
    most = (QueueSetup(63, 32768, *(((1 << 64) - 1),) * 3),) * 63
    codec.encode(Start((1 << 64) - 1, most, bytes(MAX_STATE)), (1 << 64) - 1, (1 << 64) - 1)


@dataclass(frozen=True)
class _Word:
    word: Literal["red", "green"]


def test_a_literal_is_one_of_its_words() -> None:
    assert codec.from_plain(_Word, {"word": "red"}) == _Word("red")
    with pytest.raises(ProtocolError, match="_Word.word: 'blue' is not one of its words"):
        codec.from_plain(_Word, {"word": "blue"})
