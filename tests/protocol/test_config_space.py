"""What a driver wrote into a configuration space: kept byte by byte, and told in runs."""

from __future__ import annotations

import pytest

from protocol.config_space import MAX_CONFIG, Written


@pytest.fixture
def written() -> Written:
    return Written(bytearray(Written.SIZE))


def test_nothing_was_written_to_begin_with(written: Written) -> None:
    assert list(written) == []


def test_what_was_written_is_told_in_order_and_without_gaps(written: Written) -> None:
    written.note(32, b"\0")
    written.note(4, b"abcd")
    written.note(8, b"ef")
    written.note(6, b"XY")

    assert list(written) == [(4, b"abXYef"), (32, b"\0")]


def test_what_lies_beyond_is_nobodys(written: Written) -> None:
    written.note(MAX_CONFIG - 2, b"wxyz")
    written.note(MAX_CONFIG, b"0")
    written.note(1 << 20, b"1")

    assert list(written) == [(MAX_CONFIG - 2, b"wx")]


def test_a_reset_clears_it(written: Written) -> None:
    written.note(0, b"x")

    written.clear()

    assert list(written) == []


def test_it_outlives_whoever_noted_it() -> None:
    memory = bytearray(Written.SIZE)
    Written(memory).note(32, b"\0")

    assert list(Written(memory)) == [(32, b"\0")]
