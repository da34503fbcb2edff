"""A bzImage's kernel is unpacked by the VMM where the guest's processor is slow."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable
from functools import partial

import lz4.block
import pytest

from protocol.specs import BootSpec
from tests.support.boot_files import BzImage, Elf
from vmm import memory_map
from vmm.boot import payload
from vmm.boot.hardware import Hardware
from vmm.boot.image import Image
from vmm.boot.kernel import Kind
from vmm.boot.plan import plan
from vmm.memory_map import MIB

ELF = Elf(load=[(0x100_0000, bytes(range(256)) * 40_000, 0xA0_0000)]).build()
SIZE = struct.pack("<I", len(ELF))


def lz4_legacy(data: bytes) -> bytes:
    frame = struct.pack("<I", 0x184C2102)
    for start in range(0, len(data), 8 << 20):
        block = lz4.block.compress(data[start : start + (8 << 20)], store_size=False)
        frame += struct.pack("<I", len(block)) + block
    return frame


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": partial(gzip.compress, mtime=0),
    "bzip2": lambda data: bz2.compress(data) + SIZE,
    "xz": lambda data: lzma.compress(data) + SIZE,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE) + SIZE,
    "lz4": lambda data: lz4_legacy(data) + SIZE,
}


def bzimage(packed: bytes) -> bytes:
    """One whose code is 0x300 bytes of something, and then ``packed``."""
    image = bytearray(BzImage(code=bytes(0x300) + packed).build())
    struct.pack_into("<II", image, 0x248, 0x300, len(packed))
    return bytes(image)


@pytest.mark.parametrize("packer", PACKERS)
def test_kernel_is_unpacked_as_it_was_packed(packer: str, file_of: Callable[[bytes], int]) -> None:
    found = payload.unpack(Image(file_of(bzimage(PACKERS[packer](ELF))), "--kernel"))

    assert found is not None
    assert found.read(0, len(ELF) + 1) == ELF


@pytest.mark.parametrize(
    "packed",
    [
        b"(\xb5/\xfd" + bytes(64),  # zstd: the guest does that
        PACKERS["gzip"](ELF)[:1000] + bytes(1000),
        PACKERS["xz"](ELF)[:300] + bytes(300),
        PACKERS["lz4"](ELF)[:1000] + bytes(1000),
        struct.pack("<II", 0x184C2102, 0xFFFF_FFFF),
        PACKERS["gzip"](b"not a kernel"),
        b"",
    ],
)
def test_what_cannot_be_unpacked_is_left_to_the_guest(
    packed: bytes, file_of: Callable[[bytes], int]
) -> None:
    fd = file_of(bzimage(packed))

    assert payload.unpack(Image(fd, "--kernel")) is None
    assert booted(fd, 64).kind is Kind.BZIMAGE


def test_bomb_is_given_up_early(
    file_of: Callable[[bytes], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payload, "LOW_RAM_END", len(ELF) - 1)

    assert payload.unpack(Image(file_of(bzimage(PACKERS["gzip"](ELF))), "--kernel")) is None


def test_unpacked_kernel_is_booted_as_the_vmlinux_that_it_is(
    file_of: Callable[[bytes], int],
) -> None:
    fd = file_of(bzimage(PACKERS["lz4"](ELF)))

    assert booted(fd, 64).kind is Kind.ELF
    assert booted(fd, 64, unpack=False).kind is Kind.BZIMAGE


def test_one_that_does_not_fit_unpacked_is_booted_packed(file_of: Callable[[bytes], int]) -> None:
    large = Elf(load=[(0x100_0000, b"\xf4", 128 * MIB)]).build()

    assert booted(file_of(bzimage(PACKERS["gzip"](large))), 64).kind is Kind.BZIMAGE


def booted(fd: int, mebibytes: int, *, unpack: bool = True):  # type: ignore[no-untyped-def]
    spec = BootSpec(binary=False, cmdline="", entry=None, load=None)
    hardware = Hardware(mebibytes * MIB, 1, ())
    assert hardware.regions == memory_map.regions(mebibytes * MIB)
    return plan(spec, fd, None, hardware, unpack=unpack)
