"""bzImages: header checks, where the kernel goes, and what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from protocol.errors import BadInput
from protocol.memory import GuestMemory
from protocol.specs import BootSpec
from tests.support.boot_files import BzImage
from vmm.boot import BootPlan, Hardware, Kind, load, plan
from vmm.boot.cpu import Mode
from vmm.boot.segment import Segment
from vmm.memory_map import GIB, MIB

FileOf = Callable[[bytes], int]
MemoryOf = Callable[[int], GuestMemory]

GOOD = BzImage()


def planned(
    file_of: FileOf, image: BzImage, memory: int = 64 * MIB, initrd: bytes = b"", cmdline: str = ""
) -> BootPlan:
    archive = file_of(initrd) if initrd else None
    boot = BootSpec(False, cmdline, None, None)
    return plan(boot, file_of(image.build()), archive, Hardware(memory))


def piece(boot: BootPlan, name: str) -> Segment:
    (found,) = [segment for segment in boot.segments if segment.name == name]
    return found


def test_it_is_entered_at_0x200_behind_its_preferred_address(
    file_of: FileOf, memory_of: MemoryOf
) -> None:
    boot, memory = planned(file_of, GOOD), memory_of(64 * MIB)

    load(boot, memory)

    assert (boot.kind, boot.entry, boot.cpu.mode) == (Kind.BZIMAGE, 0x100_0200, Mode.FLAT64)
    assert boot.title == "Linux 6.1.0-test"
    assert memory.read(0x100_0000, len(GOOD.code)) == GOOD.code
    assert piece(boot, "kernel").size == GOOD.init_size


def test_no_setup_sectors_means_four(file_of: FileOf, memory_of: MemoryOf) -> None:
    boot, memory = planned(file_of, replace(GOOD, setup_sects=0)), memory_of(64 * MIB)

    load(boot, memory)

    assert memory.read(0x100_0000, len(GOOD.code)) == GOOD.code


@pytest.mark.parametrize(
    ("preferred", "size", "address"),
    [
        (0x10_0000, 4 * MIB, 0x10_0000),
        (0, 4 * MIB, 0x20_0000),
        # It would reach into the virtio window from below.
        (0x10_0000, 12 * MIB, 0xC0_0000),
    ],
)
def test_a_relocatable_kernel_is_moved_only_where_it_has_to_be(
    file_of: FileOf, preferred: int, size: int, address: int
) -> None:
    boot = planned(file_of, replace(GOOD, pref_address=preferred, init_size=size))

    assert piece(boot, "kernel").gpa == address
    assert boot.entry == address + 0x200


def test_the_initrd_is_as_high_as_memory_goes(file_of: FileOf, memory_of: MemoryOf) -> None:
    archive = b"initrd" * 1000
    boot, memory = planned(file_of, GOOD, initrd=archive), memory_of(64 * MIB)

    load(boot, memory)

    initrd = piece(boot, "initrd")
    assert (initrd.gpa % 4096, 64 * MIB - initrd.end < 4096) == (0, True)
    assert memory.read(initrd.gpa, initrd.size) == archive


@pytest.mark.parametrize(("highest", "memory"), [(0x7FFF_FFFF, 8 * GIB), (0x1FF_FFFF, 64 * MIB)])
def test_the_initrd_stays_below_the_limit_of_the_kernel(
    file_of: FileOf, highest: int, memory: int
) -> None:
    boot = planned(file_of, replace(GOOD, initrd_addr_max=highest), memory, initrd=b"x" * 5000)

    assert highest + 1 - piece(boot, "initrd").end < 4096


def test_an_initrd_finds_room_below_the_kernel_when_there_is_none_above(file_of: FileOf) -> None:
    boot = planned(file_of, GOOD, memory=20 * MIB, initrd=b"x" * MIB)

    assert piece(boot, "initrd").gpa == 0x100_0000 - MIB


def test_an_initrd_without_room_is_refused(file_of: FileOf) -> None:
    with pytest.raises(BadInput, match="--initrd: its 6M do not fit"):
        planned(file_of, GOOD, memory=20 * MIB, initrd=b"x" * 6 * MIB)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (replace(GOOD, version=0x020B), "speaks boot protocol 2.11"),
        (replace(GOOD, xloadflags=0x7E), "32-bit kernel"),
        (replace(GOOD, kernel_alignment=0), "alignment of 0"),
        (replace(GOOD, kernel_alignment=0x30_0000), "not a power of two"),
        (replace(GOOD, code=bytes(512)), "no code"),
        (replace(GOOD, init_size=50 * MIB), "needs 50M .* try --mem 80M"),
        (replace(GOOD, init_size=3000 * MIB), "low RAM does not have"),
        (replace(GOOD, pref_address=1 << 40), "low RAM does not have"),
        (
            replace(GOOD, relocatable_kernel=0, pref_address=0x10_0000, init_size=12 * MIB),
            "low RAM does not have",
        ),
    ],
)
def test_what_cannot_be_booted_is_refused(file_of: FileOf, image: BzImage, message: str) -> None:
    with pytest.raises(BadInput, match=f"^--kernel: .*({message})"):
        planned(file_of, image)


@pytest.mark.parametrize(
    ("length", "message"), [(900, "within the setup header"), (-1, "truncated")]
)
def test_a_truncated_file_is_refused(file_of: FileOf, length: int, message: str) -> None:
    fd = file_of(GOOD.build()[:length])

    with pytest.raises(BadInput, match=f"--kernel: .*{message}"):
        plan(BootSpec(False, "", None, None), fd, None, Hardware(64 * MIB))


def test_the_command_line_may_fill_what_the_kernel_takes_and_no_more(file_of: FileOf) -> None:
    small = replace(GOOD, cmdline_size=10)

    boot = planned(file_of, small, cmdline="0123456789")

    assert piece(boot, "command line").data == b"0123456789\0"
    with pytest.raises(BadInput, match="--cmdline: it is 11 bytes long; this kernel takes 10"):
        planned(file_of, small, cmdline="0123456789a")
    with pytest.raises(BadInput, match="--cmdline: it contains a NUL"):
        planned(file_of, small, cmdline="a\0b")
