"""Raw binaries: where they go, and what is said when they cannot."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from protocol.errors import BadInput
from protocol.memory import GuestMemory
from protocol.specs import BootSpec
from vmm.boot import BootPlan, Hardware, Kind, load, plan
from vmm.boot.cpu import Mode
from vmm.boot.layout import RSDP
from vmm.memory_map import GIB, HIGH_RAM, MIB

FileOf = Callable[[bytes], int]
MemoryOf = Callable[[int], GuestMemory]

CODE = bytes(range(1, 201))


def planned(
    fd: int,
    entry: int | None,
    load_at: int | None = None,
    memory: int = 16 * MIB,
    cmdline: str = "",
) -> BootPlan:
    return plan(BootSpec(True, cmdline, entry, load_at), fd, None, Hardware(memory))


def test_it_is_loaded_at_its_entry_and_started_there(file_of: FileOf, memory_of: MemoryOf) -> None:
    boot, memory = planned(file_of(CODE), 0x1_0000), memory_of(16 * MIB)

    load(boot, memory)

    assert (boot.kind, boot.entry, boot.cpu.mode) == (Kind.RAW, 0x1_0000, Mode.FLAT64)
    assert memory.read(0x1_0000, len(CODE)) == CODE
    assert memory.read(RSDP, 8) == b"RSD PTR "


def test_it_is_loaded_elsewhere_when_told(file_of: FileOf) -> None:
    boot = planned(file_of(CODE), 0x20_0010, 0x20_0000)

    (binary,) = [segment for segment in boot.segments if segment.name == "binary"]
    assert (binary.gpa, boot.entry) == (0x20_0000, 0x20_0010)


def test_the_stack_has_32_kib_of_its_own(file_of: FileOf) -> None:
    boot = planned(file_of(CODE), 0x1_0000)

    (stack,) = [segment for segment in boot.segments if segment.name == "stack"]
    assert (stack.end, stack.size) == (boot.cpu.rsp, 0x8000)
    assert sum(segment.overlaps(stack) for segment in boot.segments) == 1


def test_high_memory_is_mapped_by_tables_at_its_top(file_of: FileOf) -> None:
    boot = planned(file_of(CODE), HIGH_RAM, memory=8 * GIB)

    (tables,) = [segment for segment in boot.segments if segment.name == "page tables"]
    end = HIGH_RAM + 8 * GIB - 0x9000_0000
    assert tables.end == end
    assert boot.cpu.page_table == tables.gpa


@pytest.mark.parametrize(
    ("entry", "load_at", "message"),
    [
        (None, None, "--entry: a raw binary does not say where it starts"),
        (0x9000_0000, None, "--entry: .* outside of memory"),
        (0x100_0000, None, "--entry: .* outside of memory"),
        (-0x1000, None, "--entry: .* outside of memory"),
        (0x100_0000 - 100, None, "--entry: .* outside of memory"),
        (0xA0_0000, None, "--entry: .* virtio window"),
        (0xA0_0000 - 100, None, "--entry: .* virtio window"),
        (0x1_0000, 0x100_0000, "--load: .* outside of memory"),
        (0x1_0000, 0x2_0000, "--entry: 0x10000 is not in the binary"),
        (0x2_00C8, 0x2_0000, "--entry: 0x200c8 is not in the binary"),
        (0x1000, None, "--binary: .* overlaps the GDT"),
        (0xE_0000, None, "--binary: .* overlaps the ACPI tables"),
        (0xFFF0, None, "--binary: .* overlaps the stack"),
    ],
)
def test_a_place_that_cannot_be_is_refused(
    file_of: FileOf, entry: int | None, load_at: int | None, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        planned(file_of(CODE), entry, load_at)


def test_what_only_a_kernel_takes_is_refused(file_of: FileOf) -> None:
    with pytest.raises(BadInput, match="--cmdline: goes with --kernel"):
        planned(file_of(CODE), 0x1_0000, cmdline="quiet")
    with pytest.raises(BadInput, match="--initrd: goes with --kernel"):
        plan(BootSpec(True, "", 0x1_0000, None), file_of(CODE), file_of(CODE), Hardware(16 * MIB))
