"""Which architecture a guest is of, found out by looking at it."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest

from tests.support.guest import KERNELS, build
from vmm.boot.architecture import ARM64, X86_64, detect

FileOf = Callable[[bytes], int]

NOP, RETURN, ITSELF = 0xD503_201F, 0xD65F_03C0, 0x1400_0000
HVC, FLOATING = 0xD400_0002, 0x1E6E_1000
AHEAD_2, BACK_2 = 0x1400_0002, 0x17FF_FFFE  # b . + 8; b . - 8


def code(*words: int) -> bytes:
    return struct.pack(f"<{len(words)}I", *words)


def elf(machine: int) -> bytes:
    return (b"\x7fELF".ljust(18, b"\0") + struct.pack("<H", machine)).ljust(64, b"\0")


@pytest.mark.parametrize(
    ("kernel", "architecture"),
    [
        (bytes(56) + b"ARM\x64" + bytes(4), ARM64),
        (elf(183), ARM64),
        (elf(62), X86_64),
        (b"neither", X86_64),
    ],
    ids=["Image", "ELF of arm64", "ELF of x86-64", "something"],
)
def test_a_kernel_says_it(file_of: FileOf, kernel: bytes, architecture: str) -> None:
    assert detect(file_of(kernel), None, None, binary=False).name == architecture


def test_every_guest_here_is_found_to_be_what_its_name_says() -> None:
    build()
    for path in KERNELS.glob("*.raw"):
        with path.open("rb") as file:
            found = detect(file, 0x1_0000, None, binary=True).name

        assert path.name.startswith(found)


@pytest.mark.parametrize(
    ("binary", "architecture"),
    [
        (code(*[NOP] * 8), ARM64),
        (code(*[NOP] * 7), X86_64),
        (code(*[NOP] * 7, FLOATING, RETURN), X86_64),
        (code(NOP, RETURN) + b"data", ARM64),
        (code(HVC, ITSELF), ARM64),
        (code(ITSELF), X86_64),
        (code(AHEAD_2) + b"data" + code(NOP, BACK_2, RETURN), X86_64),
        (code(AHEAD_2) + b"data" + code(NOP, ITSELF), ARM64),
        (code(NOP, BACK_2), X86_64),
        (b"\xf4", X86_64),
    ],
)
def test_a_raw_binary_is_arm64_if_all_that_it_begins_with_is(
    file_of: FileOf, binary: bytes, architecture: str
) -> None:
    assert detect(file_of(binary), 0x1_0000, None, binary=True).name == architecture


def test_it_is_the_entry_that_counts(file_of: FileOf) -> None:
    fd = file_of(b"data" + code(*[NOP] * 8))

    assert detect(fd, 0x2_0004, 0x2_0000, binary=True).name == ARM64
    assert detect(fd, 0x2_0000, None, binary=True).name == X86_64
    assert detect(fd, 0x1_0000, 0x2_0000, binary=True).name == X86_64
    assert detect(fd, 0x9_0000, 0x2_0000, binary=True).name == X86_64


def test_what_is_random_is_not_arm64(file_of: FileOf) -> None:
    size = 64
    fd = file_of(random.Random(15).randbytes(1000 * size))

    starts = [0x1_0000 + number * size for number in range(1000)]
    found = [detect(fd, start, 0x1_0000, binary=True).name for start in starts]

    assert found.count(ARM64) < 10
