"""An arm64 kernel, its initrd and its device tree: what goes where, and what is said if not."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from libfdt import Fdt

from protocol.errors import BadInput
from protocol.memory import GuestMemory
from protocol.specs import BootSpec
from tests.support.boot_files import Arm64Image, BzImage, Elf
from vmm.boot import Hardware, Kind, VirtioMmio
from vmm.boot.arm64 import Arm64Plan, describe, load, plan
from vmm.boot.segment import Segment
from vmm.memory_map import GIB, MAX_VIRTIO_DEVICES, MIB

FileOf = Callable[[bytes], int]
MemoryOf = Callable[[int], GuestMemory]

KERNEL = BootSpec(False, "quiet", None, None)
HARDWARE = Hardware(64 * MIB, devices=(VirtioMmio(0, 5),))


def part(boot: Arm64Plan, name: str) -> Segment:
    (found,) = [segment for segment in boot.segments if segment.name == name]
    return found


def test_the_kernel_starts_with_its_tree_in_x0(file_of: FileOf, memory_of: MemoryOf) -> None:
    boot, memory = plan(KERNEL, file_of(Arm64Image().build()), None, HARDWARE), memory_of(64 * MIB)

    load(boot, memory)

    tree = Fdt(memory.read(boot.cpu.x0, 65536))
    assert (boot.kind, boot.cpu.pc, boot.cpu.x0) == (Kind.ARM64_IMAGE, 0, 62 * MIB)
    assert memory.read(56, 4) == b"ARM\x64"
    assert tree.getprop(tree.path_offset("/chosen"), "bootargs") == b"quiet\0"


def test_the_initrd_lies_as_high_as_it_can_and_the_tree_says_where(file_of: FileOf) -> None:
    boot = plan(KERNEL, file_of(Arm64Image().build()), file_of(bytes(3 * MIB)), HARDWARE)

    initrd, tree = part(boot, "initrd"), part(boot, "device tree")
    assert (initrd.gpa, initrd.end) == (59 * MIB, tree.gpa)
    assert isinstance(tree.data, bytes)
    assert (59 * MIB).to_bytes(8, "big") in tree.data


@pytest.mark.parametrize("size", [16, 17, 48, 100, 1024, 2304, 4096])
def test_nothing_but_memory_is_in_the_block_of_the_tree(file_of: FileOf, size: int) -> None:
    boot = plan(KERNEL, file_of(Arm64Image().build()), file_of(b"x"), Hardware(size * MIB))

    place = part(boot, "device tree").gpa
    assert place % (2 * MIB) == 0
    assert place + 64 * 1024 <= min(size * MIB, 0x9000_0000, 512 * MIB)
    assert not place <= 0xA0_0000 < place + 2 * MIB


def test_segments_are_in_order_and_apart(file_of: FileOf) -> None:
    devices = tuple(VirtioMmio(slot, 5 + slot) for slot in range(MAX_VIRTIO_DEVICES))
    spec = BootSpec(False, "x" * 2047, None, None)
    image = Arm64Image(image_size=27 * MIB)

    boot = plan(spec, file_of(image.build()), file_of(bytes(MIB)), Hardware(8 * GIB, 1, devices))

    assert [segment.name for segment in boot.segments] == ["kernel", "device tree", "initrd"]
    assert all(one.end <= other.gpa for one, other in pairwise(boot.segments))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"hello", "no arm64 Image"),
        (b"\x1f\x8b\x08", "compressed with gzip"),
        (b"MZ\0\0zimg", "unpacks itself under EFI only"),
        (BzImage().build(), "an x86 kernel"),
        (Elf().build(), "boots as an Image"),
    ],
)
def test_what_is_not_a_kernel_is_named(file_of: FileOf, data: bytes, message: str) -> None:
    with pytest.raises(BadInput, match=f"--kernel: .*{message}"):
        plan(KERNEL, file_of(data), None, HARDWARE)


def test_what_does_not_fit_is_named(file_of: FileOf) -> None:
    small = Hardware(16 * MIB)

    with pytest.raises(BadInput, match="--initrd: its 60M do not fit in low RAM"):
        plan(KERNEL, file_of(Arm64Image().build()), file_of(bytes(60 * MIB)), HARDWARE)
    with pytest.raises(BadInput, match="--kernel: the kernel needs 12M .* try --mem 32M"):
        plan(KERNEL, file_of(Arm64Image(image_size=12 * MIB).build()), None, small)


def test_beside_a_kernel_that_reaches_the_end_of_low_ram_the_tree_lies_before_the_window(
    file_of: FileOf,
) -> None:
    kernel = file_of(Arm64Image(image_size=2292 * MIB).build())

    boot = plan(KERNEL, kernel, None, Hardware(4 * GIB))

    assert part(boot, "device tree").gpa == 0x80_0000


@pytest.mark.parametrize(
    ("cmdline", "message"),
    [
        ("x" * 2048, "--cmdline: it is 2048 bytes long; this kernel takes 2047"),
        ("a\0b", "--cmdline: it contains a NUL"),
    ],
)
def test_a_bad_command_line_is_refused(file_of: FileOf, cmdline: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        plan(BootSpec(False, cmdline, None, None), file_of(Arm64Image().build()), None, HARDWARE)


@pytest.mark.parametrize(
    ("boot", "option"),
    [(BootSpec(False, "", 0x1000, None), "--entry"), (BootSpec(False, "", None, 0x1000), "--load")],
)
def test_what_only_a_raw_binary_takes_is_refused(
    file_of: FileOf, boot: BootSpec, option: str
) -> None:
    with pytest.raises(BadInput, match=f"{option}: goes with --binary"):
        plan(boot, file_of(Arm64Image().build()), None, HARDWARE)


def test_a_plan_reads_well(file_of: FileOf) -> None:
    boot = plan(KERNEL, file_of(Arm64Image().build()), file_of(bytes(1000)), HARDWARE)

    assert describe(boot) == [
        "kernel: Linux arm64 Image, 4 KiB pages",
        "entry: 0x0 at EL1, MMU off",
        "",
        "loaded into guest memory:",
        "  0x000000000-0x000100000        1M  kernel",
        "  0x003e00000-0x003e10000       64K  device tree",
        "  0x003fff000-0x003fff3e8      1000  initrd",
        "",
        "memory the guest is given:",
        "  0x000000000-0x000a00000       10M  ram",
        "  0x000a10000-0x004000000    53.94M  ram",
    ]
