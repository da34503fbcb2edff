"""ELF kernels: the entry that is chosen, and what is not a kernel for us."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.errors import BadInput
from protocol.memory import GuestMemory
from protocol.specs import BootSpec
from tests.support.boot_files import (
    EM_AARCH64,
    ET_DYN,
    ET_REL,
    PT_DYNAMIC,
    PT_INTERP,
    PT_TLS,
    Elf,
    elf32,
    xen_note,
)
from vmm.boot import BootPlan, Hardware, Kind, load, plan
from vmm.boot.cpu import Mode
from vmm.boot.layout import START_INFO
from vmm.memory_map import MIB

FileOf = Callable[[bytes], int]
MemoryOf = Callable[[int], GuestMemory]

PHYS32_ENTRY = 18


def planned(fd: int, memory: int = 64 * MIB) -> BootPlan:
    return plan(BootSpec(False, "", None, None), fd, None, Hardware(memory))


def test_a_kernel_is_entered_in_64_bit_mode_with_a_zero_page(file_of: FileOf) -> None:
    boot = planned(file_of(Elf(entry=0x100_0010).build()))

    assert (boot.kind, boot.entry, boot.cpu.mode) == (Kind.ELF, 0x100_0010, Mode.FLAT64)
    assert boot.cpu.rsi == START_INFO
    assert any(segment.name == "zero page" for segment in boot.segments)


def test_a_pvh_note_wins_and_means_32_bit_with_start_info(file_of: FileOf) -> None:
    notes = xen_note(5, 7) + xen_note(PHYS32_ENTRY, 0x100_0020)

    boot = planned(file_of(Elf(notes=notes).build()))

    assert (boot.kind, boot.entry, boot.cpu.mode) == (Kind.PVH, 0x100_0020, Mode.FLAT32)
    assert boot.cpu.rbx == START_INFO
    assert any(segment.name == "PVH start info" for segment in boot.segments)


def test_segments_go_to_their_physical_addresses_and_keep_their_bss(
    file_of: FileOf, memory_of: MemoryOf
) -> None:
    pieces = [(0x100_0000, b"text" * 8, 0x1000), (0x120_0000, b"data", 0x30_0000)]
    boot, memory = planned(file_of(Elf(load=pieces).build())), memory_of(64 * MIB)

    load(boot, memory)

    assert memory.read(0x100_0000, 32) == b"text" * 8
    assert memory.read(0x120_0000, 8) == b"data\0\0\0\0"
    assert [s.end for s in boot.segments if s.name.startswith("kernel")] == [0x100_1000, 0x150_0000]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (elf32(), "32-bit ELF"),
        (Elf(machine=EM_AARCH64).build(), "is for AArch64, not for x86-64"),
        (Elf(type=ET_REL).build(), "not a linked program"),
        (Elf(load=[]).build(), "nothing to load"),
        (Elf().build()[:-1], "truncated"),
        (Elf().build()[:50], "damaged"),
        (Elf().build()[:100], "damaged"),
        (Elf(load=[(0x100_0000, bytes(64), 32)]).build(), "larger in the file than in memory"),
        (Elf(load=[(0x400_0000, b"x", 1)], entry=0x400_0000).build(), "not in memory"),
        (Elf(load=[(0x9F_0000, b"x", 0x2_0000)], entry=0x9F_0000).build(), "not in memory"),
        (Elf(entry=0xFFFF_FFFF_8100_0000).build(), "its entry 0xffffffff81000000 is in none"),
        (
            Elf(load=[(0x2000, b"x", 8)], entry=0x2000).build(),
            "its kernel segment 0 at 0x2000-0x2008 overlaps the page tables",
        ),
        (
            Elf(load=[(0x100_0000, b"x", 0x2000), (0x100_1000, b"y", 1)]).build(),
            "its kernel segment 0 at .* overlaps the kernel segment 1",
        ),
    ],
)
def test_what_cannot_be_booted_is_refused(file_of: FileOf, data: bytes, message: str) -> None:
    with pytest.raises(BadInput, match=f"^--kernel: .*{message}"):
        planned(file_of(data))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(
    st.lists(st.sampled_from([PT_DYNAMIC, PT_INTERP, PT_TLS]), max_size=1),
    st.lists(st.tuples(st.integers(4, 250), st.binary(min_size=1, max_size=8)), max_size=6),
    st.integers(1, 400),
)
def test_a_damaged_file_is_bad_input_and_nothing_worse(
    file_of: FileOf, others: list[int], changes: list[tuple[int, bytes]], length: int
) -> None:
    data = bytearray(Elf(notes=xen_note(PHYS32_ENTRY, 0x100_0000), others=others).build())
    for offset, patch in changes:
        data[offset : offset + len(patch)] = patch
    fd = file_of(bytes(data[:length]))

    # Any other exception fails the test.
    with contextlib.suppress(BadInput):
        planned(fd)


@pytest.mark.parametrize(
    ("elf", "why"),
    [
        (Elf(others=[PT_INTERP, PT_DYNAMIC], type=ET_DYN), "it asks for an interpreter"),
        (Elf(others=[PT_INTERP]), "it asks for an interpreter"),
        (Elf(others=[PT_DYNAMIC]), "it is linked dynamically"),
        (Elf(others=[PT_TLS]), "it has thread-local storage"),
        (Elf(type=ET_DYN), "it has no address of its own"),
        (Elf(others=[PT_TLS], load=[(0x2000, b"x", 8)], entry=0x2000), "it has thread-local"),
    ],
)
def test_a_program_is_not_a_kernel(file_of: FileOf, elf: Elf, why: str) -> None:
    with pytest.raises(BadInput, match=f"^--kernel: .* is a program, not a kernel: {why}"):
        planned(file_of(elf.build()))


@pytest.mark.parametrize("path", ["/bin/ls", "/bin/busybox"])
def test_a_program_of_this_host_is_not_a_kernel(path: str, file_of: FileOf) -> None:
    program = Path(path)
    if not program.exists():
        pytest.skip(f"{path} is not here")

    with pytest.raises(BadInput, match="is a program, not a kernel"):
        planned(file_of(program.read_bytes()))


def test_what_has_a_pvh_entry_is_a_kernel_whatever_else_it_has(file_of: FileOf) -> None:
    notes = xen_note(PHYS32_ENTRY, 0x100_0020)

    boot = planned(file_of(Elf(notes=notes, others=[PT_INTERP, PT_DYNAMIC], type=ET_DYN).build()))

    assert (boot.kind, boot.entry) == (Kind.PVH, 0x100_0020)


def test_thousands_of_program_headers_are_refused(file_of: FileOf) -> None:
    data = bytearray(Elf().build())
    struct.pack_into("<H", data, 56, 0xFFFE)

    with pytest.raises(BadInput, match="65534 program headers"):
        planned(file_of(bytes(data)))
