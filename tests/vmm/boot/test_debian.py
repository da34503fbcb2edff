"""Debian's own kernels, where the lab has downloaded them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.errors import BadInput
from protocol.specs import BootSpec
from tests.support import kernels
from vmm.boot import Hardware, Kind, plan
from vmm.boot.cpu import Mode
from vmm.memory_map import MIB

FileOf = Callable[[bytes], int]

KERNEL = BootSpec(False, "console=ttyS0", None, None)


def image(flavour: str) -> Path:
    if not kernels.is_here(flavour):
        pytest.skip(f"linux-image-{flavour} is not in .cache/kernels; `make lab` downloads it")
    return kernels.debian(flavour).image


@pytest.mark.parametrize("flavour", ["cloud-amd64", "amd64"])
def test_a_bzimage_is_planned_at_16_mib_with_its_release(flavour: str, file_of: FileOf) -> None:
    with image(flavour).open("rb") as file:
        boot = plan(KERNEL, file, file_of(b"x" * MIB), Hardware(512 * MIB))

    assert (boot.kind, boot.entry) == (Kind.BZIMAGE, 0x100_0200)
    assert boot.title == f"Linux {kernels.debian(flavour).release}"


def test_its_hint_for_more_memory_is_enough_and_not_far_too_much() -> None:
    with image("cloud-amd64").open("rb") as file:
        with pytest.raises(BadInput, match="--kernel: .* try --mem 80M"):
            plan(KERNEL, file, None, Hardware(64 * MIB))

        boot = plan(KERNEL, file, None, Hardware(80 * MIB))

    assert boot.kind is Kind.BZIMAGE


def test_the_vmlinux_inside_has_a_pvh_entry() -> None:
    image("cloud-amd64")
    if shutil.which("lz4") is None:
        pytest.skip("lz4 is missing: the kernel is compressed with it")
    vmlinux = kernels.debian("cloud-amd64").vmlinux()

    with vmlinux.open("rb") as file:
        boot = plan(KERNEL, file, None, Hardware(128 * MIB))

    assert (boot.kind, boot.cpu.mode) == (Kind.PVH, Mode.FLAT32)
    assert 0x100_0000 <= boot.entry < 0x200_0000
