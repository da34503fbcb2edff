"""The first CPU state, read back as the processor would read it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.boot.cpu import CpuState, Mode, page_tables, page_tables_size
from vmm.boot.layout import GDT, START_INFO
from vmm.boot.segment import Segment
from vmm.hypervisor.state import Sregs
from vmm.memory_map import GIB

PRESENT, WRITABLE, LARGE = 1 << 0, 1 << 1, 1 << 7


def number(segment: Segment, gpa: int) -> int:
    """The 64-bit number at guest address ``gpa``, inside ``segment``."""
    assert isinstance(segment.data, bytes)
    return int.from_bytes(segment.data[gpa - segment.gpa :][:8], "little")


def translate(tables: Segment, address: int) -> int | None:
    """Walk 4-level page tables (SDM volume 3, 4.5); None where nothing is mapped."""
    table = tables.gpa
    for shift in (39, 30, 21):
        entry = number(tables, table + 8 * (address >> shift & 511))
        if not entry & PRESENT:
            return None
        assert entry & WRITABLE
        if entry & LARGE:
            return (entry & ~0x1F_FFFF) + (address & 0x1F_FFFF)
        table = entry & ~0xFFF
    raise AssertionError("no large page at the last level")


@given(st.integers(0, 4 * GIB - 1))
def test_four_gib_are_mapped_to_themselves(address: int) -> None:
    tables = page_tables(0x2000, 4 * GIB)

    assert translate(tables, address) == address


def test_nothing_is_mapped_above_the_end() -> None:
    tables = page_tables(0x2000, 4 * GIB)

    assert translate(tables, 4 * GIB) is None
    assert translate(tables, 512 * GIB) is None


@pytest.mark.parametrize("end", [4 * GIB, 4 * GIB + 4096, 600 * GIB])
def test_memory_beyond_4_gib_and_512_gib_is_mapped(end: int) -> None:
    tables = page_tables(0x10_0000, end)

    assert tables.size == page_tables_size(end)
    for address in (0, end // 2, end - 1):
        assert translate(tables, address) == address


@pytest.mark.parametrize(("mode", "long_mode"), [(Mode.FLAT64, 1), (Mode.FLAT32, 0)])
def test_segments_are_flat_and_are_what_the_gdt_says(mode: Mode, long_mode: int) -> None:
    state, sregs = CpuState(mode, rip=0x1000), Sregs()

    state.set_up(sregs)

    assert (sregs.cs.selector, sregs.ss.selector) == (0x10, 0x18)
    assert (sregs.cs.l, sregs.cs.db) == (long_mode, 1 - long_mode)
    for register in (sregs.cs, sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
        assert (register.base, register.limit, register.present) == (0, 0xFFFF_FFFF, 1)
    assert (sregs.tr.type, sregs.tr.limit) == (0xB, 0x67)
    table = state.gdt()
    assert (sregs.gdt.base, sregs.gdt.limit) == (GDT, len(table.data) - 1)
    assert number(table, GDT + 0x10) >> 53 & 1 == long_mode


def test_long_mode_is_on_with_the_page_tables_given() -> None:
    sregs = Sregs()

    CpuState(Mode.FLAT64, rip=0x1000, page_table=0x2000).set_up(sregs)

    assert sregs.cr3 == 0x2000
    assert sregs.cr0 >> 31 & 1
    assert sregs.cr4 >> 5 & 1
    assert sregs.efer == 1 << 8 | 1 << 10


def test_protected_mode_has_no_paging_and_start_info_in_ebx() -> None:
    state, sregs = CpuState(Mode.FLAT32, rip=0x100_0000, rbx=START_INFO), Sregs()

    state.set_up(sregs)

    assert sregs.cr0 & ~(1 << 4) == 1
    assert (sregs.cr3, sregs.cr4, sregs.efer) == (0, 0, 0)
    assert (state.regs().rip, state.regs().rbx) == (0x100_0000, START_INFO)
