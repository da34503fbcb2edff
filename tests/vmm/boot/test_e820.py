"""The guest's memory map: what is RAM, what is not."""

from __future__ import annotations

from itertools import pairwise

import pytest

from vmm.boot.e820 import Kind, e820_map
from vmm.memory_map import GIB, MIB, regions


@pytest.mark.parametrize("size", [16 * MIB, 512 * MIB, 2304 * MIB, 8 * GIB])
def test_entries_are_in_order_and_do_not_overlap(size: int) -> None:
    entries = e820_map(regions(size))

    assert all(entry.size > 0 for entry in entries)
    assert all(one.end <= other.gpa for one, other in pairwise(entries))


@pytest.mark.parametrize("size", [16 * MIB, 512 * MIB, 8 * GIB])
def test_all_memory_but_the_pc_hole_and_the_window_is_ram(size: int) -> None:
    ram = sum(entry.size for entry in e820_map(regions(size)) if entry.kind is Kind.RAM)

    assert ram == size - (0x10_0000 - 0x9_F000) - 0x1_0000


@pytest.mark.parametrize("gpa", [0x9_F000, 0xE_0000, 0xA0_0000, 0xA0_F000, 0x9000_0000])
def test_what_belongs_to_devices_and_tables_is_reserved(gpa: int) -> None:
    kinds = [entry.kind for entry in e820_map(regions(8 * GIB)) if entry.gpa <= gpa < entry.end]

    assert kinds == [Kind.RESERVED]


def test_high_ram_is_told() -> None:
    last = e820_map(regions(4 * GIB))[-1]

    assert (last.gpa, last.end, last.kind) == (0x1_0000_0000, 0x1_7000_0000, Kind.RAM)
