"""What is found in a file, what belongs to which option, and how a plan reads."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from protocol.errors import BadInput
from protocol.specs import BootSpec
from tests.support.boot_files import BzImage, Elf
from vmm.boot import Hardware, Kind, VirtioMmio, describe, plan
from vmm.memory_map import MIB

FileOf = Callable[[bytes], int]

KERNEL = BootSpec(False, "quiet", None, None)
HARDWARE = Hardware(64 * MIB, cpus=2, devices=(VirtioMmio(0, 5),))


@pytest.mark.parametrize(
    ("data", "kind"), [(BzImage().build(), Kind.BZIMAGE), (Elf().build(), Kind.ELF)]
)
def test_the_kind_is_found_by_looking(file_of: FileOf, data: bytes, kind: Kind) -> None:
    assert plan(KERNEL, file_of(data), None, HARDWARE).kind is kind


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"hello", "neither bzImage nor ELF"),
        (b"\x1f\x8b\x08", "compressed with gzip"),
        (b"\xfd7zXZ\0", "compressed with xz"),
        (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
        (b"070701", "cpio archive; is it the initrd"),
        (b"#!/bin/sh", "a script"),
        (bytes(56) + b"ARM\x64", "an arm64 kernel"),
        (bytes(56) + b"RSC\x05", "a RISC-V kernel, which no CPU here runs"),
        (BzImage(magic=b"old!").build(), "neither bzImage nor ELF"),
    ],
)
def test_what_is_not_a_kernel_is_named(file_of: FileOf, head: bytes, message: str) -> None:
    with pytest.raises(BadInput, match=f"--kernel: this is not a kernel: .*{message}"):
        plan(KERNEL, file_of(head), None, HARDWARE)


def test_an_empty_kernel_and_an_empty_initrd_are_refused(file_of: FileOf) -> None:
    with pytest.raises(BadInput, match="--kernel: the file is empty"):
        plan(KERNEL, file_of(b""), None, HARDWARE)
    with pytest.raises(BadInput, match="--initrd: the file is empty"):
        plan(KERNEL, file_of(Elf().build()), file_of(b""), HARDWARE)


@pytest.mark.parametrize(
    ("boot", "option"),
    [(BootSpec(False, "", 0x1000, None), "--entry"), (BootSpec(False, "", None, 0x1000), "--load")],
)
def test_what_only_a_raw_binary_takes_is_refused(
    file_of: FileOf, boot: BootSpec, option: str
) -> None:
    with pytest.raises(BadInput, match=f"{option}: goes with --binary"):
        plan(boot, file_of(Elf().build()), None, HARDWARE)


def test_segments_never_overlap_and_are_in_order(file_of: FileOf) -> None:
    boot = plan(KERNEL, file_of(BzImage().build()), file_of(b"x" * 9000), HARDWARE)

    assert all(one.end <= other.gpa for one, other in pairwise(boot.segments))


def test_planning_twice_gives_the_same_plan(file_of: FileOf) -> None:
    # The launcher plans, and the VMM plans again from the same descriptors.
    kernel, initrd = file_of(BzImage().build()), file_of(b"x" * 9000)

    first, second = (plan(KERNEL, kernel, initrd, HARDWARE) for _ in range(2))

    assert describe(first) == describe(second)
    assert first.cpu == second.cpu


def test_a_plan_reads_as_what_goes_where(file_of: FileOf) -> None:
    boot = plan(KERNEL, file_of(BzImage().build()), file_of(b"x" * 9000), HARDWARE)

    text = describe(boot)

    assert text[:2] == [
        "kernel: Linux 6.1.0-test",
        "entry: 0x1000200 in 64-bit mode, identity-mapped",
    ]
    assert "  0x001000000-0x001400000        4M  kernel" in text
    assert "  0x000a00000-0x000a10000       64K  reserved" in text
