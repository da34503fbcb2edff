"""Atomic words in shared memory."""

from __future__ import annotations

import mmap

import pytest

from protocol.ring.atomic import load32, store32


def test_a_word_is_stored_little_endian_and_loaded_again() -> None:
    with mmap.mmap(-1, 4096) as page:
        store32(page, 4092, 0x11223344)
        assert page[4092:] == b"\x44\x33\x22\x11"
        assert load32(page, 4092) == 0x11223344
        assert load32(page, 4088) == 0


def test_a_memoryview_and_its_offset_work_alike() -> None:
    buffer = bytearray(16)
    store32(memoryview(buffer)[8:], 4, 0xFFFF_FFFF)
    assert buffer == bytes(12) + b"\xff" * 4
    assert load32(memoryview(buffer), 12) == 0xFFFF_FFFF


@pytest.mark.parametrize("offset", [-4, 1, 2, 13, 14, 16, 1 << 40])
def test_a_word_that_is_misaligned_or_outside_is_refused(offset: int) -> None:
    buffer = memoryview(bytearray(16))
    with pytest.raises(ValueError, match="no aligned 32-bit word"):
        store32(buffer, offset, 0)
    with pytest.raises(ValueError, match="no aligned 32-bit word"):
        load32(buffer, offset)


@pytest.mark.parametrize("value", [-1, 1 << 32])
def test_a_value_that_does_not_fit_is_refused(value: int) -> None:
    buffer = bytearray(4)
    with pytest.raises(OverflowError):
        store32(memoryview(buffer), 0, value)
    assert buffer == bytes(4)


def test_read_only_memory_can_be_loaded_and_not_stored() -> None:
    view = memoryview(b"\x01\x00\x00\x00")
    assert load32(view, 0) == 1
    with pytest.raises(BufferError):
        store32(view, 0, 2)


def test_a_store_leaves_no_view_behind() -> None:
    page = mmap.mmap(-1, 4096)
    store32(page, 0, 1)
    page.close()
    assert page.closed
