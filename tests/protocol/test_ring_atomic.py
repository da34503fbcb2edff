"""Atomic words in shared memory."""

from __future__ import annotations

import mmap
from collections.abc import Callable

import pytest

from protocol.ring.atomic import load32, load64, store32, store64


def test_a_word_is_stored_little_endian_and_loaded_again() -> None:
    with mmap.mmap(-1, 4096) as page:
        store32(page, 4092, 0x11223344)
        assert page[4092:] == b"\x44\x33\x22\x11"
        assert load32(page, 4092) == 0x11223344
        assert load32(page, 4088) == 0
        store64(page, 4080, 0x1122334455667788)
        assert page[4080:4088] == b"\x88\x77\x66\x55\x44\x33\x22\x11"
        assert load64(page, 4080) == 0x1122334455667788


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


@pytest.mark.parametrize("offset", [-8, 1, 4, 9, 12, 16, 1 << 40])
def test_so_is_a_longer_one(offset: int) -> None:
    buffer = memoryview(bytearray(16))
    with pytest.raises(ValueError, match="no aligned 64-bit word"):
        store64(buffer, offset, 0)
    with pytest.raises(ValueError, match="no aligned 64-bit word"):
        load64(buffer, offset)


@pytest.mark.parametrize(("store", "bits"), [(store32, 32), (store64, 64)])
@pytest.mark.parametrize("negative", [False, True])
def test_a_value_that_does_not_fit_is_refused(
    store: Callable[[memoryview, int, int], None], bits: int, negative: bool
) -> None:
    buffer = bytearray(8)
    with pytest.raises(OverflowError):
        store(memoryview(buffer), 0, -1 if negative else 1 << bits)
    assert buffer == bytes(8)


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
