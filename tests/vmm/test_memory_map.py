"""Sizes as people write them, and where the RAM of a machine lies."""

import os

import pytest

from protocol.errors import BadInput
from vmm.mediation import largest_chain, shadow_size
from vmm.memory_map import (
    ARENA_SIZE,
    GIB,
    KIB,
    LARGEST_CHAIN,
    MAX_VIRTIO_DEVICES,
    MIB,
    VIRTIO_GSIS,
    VIRTIO_WINDOW,
    VIRTIO_WINDOW_SIZE,
    arena_address,
    bounce_region,
    check_memory_size,
    parse_size,
    regions,
    slot_address,
)

# Timer, keyboard, cascade, serial, RTC, SCI, mouse, FPU.
TAKEN = {0, 1, 2, 4, 8, 9, 12, 13}


def test_no_device_shares_its_interrupt_line() -> None:
    assert len(set(VIRTIO_GSIS)) == MAX_VIRTIO_DEVICES
    assert max(VIRTIO_GSIS) < 24
    assert not set(VIRTIO_GSIS) & TAKEN


@pytest.mark.parametrize(
    ("text", "size"),
    [("512M", 512 * MIB), ("2g", 2 * GIB), ("64K", 64 * KIB), ("4096", 4096)],
)
def test_sizes_are_whole_numbers_with_a_suffix(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "M", "1T", "1.5G", "-1M", "0x10", "1 M", " 1G", "1G\n", "٣M", "12MB", "9" * 5000]
)
def test_anything_else_is_refused_by_the_options_name(text: str) -> None:
    with pytest.raises(BadInput, match="^--mem: "):
        parse_size(text)


@pytest.mark.parametrize("size", [0, 1, 15 * MIB, 16 * MIB + 1])
def test_too_little_or_crooked_memory_is_refused(size: int) -> None:
    with pytest.raises(BadInput, match="^--mem: "):
        check_memory_size(size)


def test_memory_goes_from_16m_to_what_the_host_has() -> None:
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    check_memory_size(16 * MIB)
    check_memory_size(host - host % 4096)
    with pytest.raises(BadInput, match="more than"):
        check_memory_size(host + 4096 - host % 4096)


@pytest.mark.parametrize("size", [16 * MIB, 512 * MIB, 2304 * MIB, 2304 * MIB + 4096, 64 * GIB])
def test_ram_leaves_the_window_and_the_devices_out(size: int) -> None:
    found = regions(size)

    assert sum(region.size for region in found) == size - VIRTIO_WINDOW_SIZE
    for region in found:
        assert region.end <= 0x9000_0000 or region.gpa >= 0x1_0000_0000
        assert region.end <= VIRTIO_WINDOW or region.gpa >= VIRTIO_WINDOW + VIRTIO_WINDOW_SIZE
        assert region.gpa % (2 * MIB) == region.offset % (2 * MIB)


def test_every_slot_lies_in_the_window() -> None:
    last = slot_address(MAX_VIRTIO_DEVICES - 1)

    assert slot_address(0) == 0xA00000
    assert last + 0x1000 <= VIRTIO_WINDOW + VIRTIO_WINDOW_SIZE


def test_bounce_memory_has_room_for_each_queue_s_ring_and_copies() -> None:
    region = bounce_region(4)
    assert 4 * shadow_size(32768) <= arena_address(0) - region.gpa
    assert [arena_address(queue) % 4096 for queue in range(4)] == [0] * 4
    assert arena_address(3) + ARENA_SIZE == region.end
    assert largest_chain(ARENA_SIZE) == LARGEST_CHAIN
