"""Raw binaries on arm64."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from protocol.errors import BadInput
from protocol.memory import GuestMemory
from protocol.specs import BootSpec
from vmm.boot import Hardware, Kind
from vmm.boot.arm64 import Arm64Plan, load, plan
from vmm.memory_map import MIB

FileOf = Callable[[bytes], int]
MemoryOf = Callable[[int], GuestMemory]

CODE = bytes(range(200))


def planned(fd: int, entry: int | None, load_at: int | None = None, cmdline: str = "") -> Arm64Plan:
    return plan(BootSpec(True, cmdline, entry, load_at), fd, None, Hardware(16 * MIB))


def test_it_is_loaded_at_its_entry_and_started_there(file_of: FileOf, memory_of: MemoryOf) -> None:
    boot, memory = planned(file_of(CODE), 0x1_0000), memory_of(16 * MIB)

    load(boot, memory)

    assert (boot.kind, boot.entry) == (Kind.RAW, 0x1_0000)
    assert (boot.cpu.x0, boot.cpu.sp) == (0, 0x1_0000)
    assert memory.read(0x1_0000, len(CODE)) == CODE


def test_it_is_loaded_elsewhere_when_told(file_of: FileOf) -> None:
    boot = planned(file_of(CODE), 0x20_0010, 0x20_0000)

    assert [(segment.name, segment.gpa) for segment in boot.segments] == [
        ("stack", 0x8000),
        ("binary", 0x20_0000),
    ]


@pytest.mark.parametrize(
    ("entry", "load_at", "message"),
    [
        (None, None, "--entry: a raw binary does not say where it starts"),
        (0x9000_0000, None, "--entry: .* outside of memory"),
        (0xA0_0000, None, "--entry: .* virtio window"),
        (0x1_0000, 0x100_0000, "--load: .* outside of memory"),
        (0x1_0000, 0x2_0000, "--entry: 0x10000 is not in the binary"),
        (0x1_0002, 0x1_0000, "--entry: 0x10002 is not a multiple of 4"),
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
