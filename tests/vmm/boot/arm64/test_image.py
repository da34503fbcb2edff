"""The arm64 Image: what its header says, where it goes, and what is said when it cannot."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from protocol.errors import BadInput
from tests.support.boot_files import Arm64Image
from vmm.boot.arm64.image import is_image, read_image
from vmm.boot.image import Image
from vmm.boot.kernel import Kernel, Kind
from vmm.memory_map import GIB, MIB, regions

FileOf = Callable[[bytes], int]


def placed(fd: int, memory: int = 64 * MIB) -> Kernel:
    return read_image(Image(fd, "--kernel"), regions(memory))


def test_it_is_told_by_its_magic_number() -> None:
    assert is_image(Arm64Image().build())
    assert not is_image(Arm64Image(magic=b"ARM\x65").build())
    assert not is_image(b"ARM\x64")


def test_a_small_one_lies_at_the_start_of_memory(file_of: FileOf) -> None:
    kernel = placed(file_of(Arm64Image(text_offset=0x8_0000).build()))

    (segment,) = kernel.segments
    assert (kernel.kind, kernel.entry) == (Kind.ARM64_IMAGE, 0x8_0000)
    assert (segment.gpa, len(segment.data), segment.size) == (0x8_0000, 4096, 0x10_0000)


@pytest.mark.parametrize(
    ("image_size", "text_offset", "address"),
    [
        (10 * MIB, 0, 0),
        (10 * MIB + 1, 0, 0xC0_0000),
        (10 * MIB, 0x8_0000, 0xC8_0000),
    ],
)
def test_one_that_would_reach_into_the_virtio_window_lies_behind_it(
    file_of: FileOf, image_size: int, text_offset: int, address: int
) -> None:
    image = Arm64Image(text_offset, image_size)

    assert placed(file_of(image.build())).entry == address


def test_the_bss_that_the_header_promises_counts(file_of: FileOf) -> None:
    assert placed(file_of(Arm64Image(image_size=1).build())).segments[0].size == 4096
    assert placed(file_of(Arm64Image(image_size=5 * MIB).build())).segments[0].size == 5 * MIB


def test_one_without_a_size_has_the_old_offset_and_room_behind_it(file_of: FileOf) -> None:
    kernel = placed(file_of(Arm64Image(text_offset=1 << 60, image_size=0, flags=0).build()))

    assert kernel.entry == 0xC8_0000
    assert kernel.segments[0].size == 4096 + 16 * MIB


@pytest.mark.parametrize(
    ("flags", "title"),
    [(0xA, "4 KiB pages"), (0xE, "64 KiB pages"), (0x8, "pages of a size that it does not name")],
)
def test_its_title_tells_the_page_size(file_of: FileOf, flags: int, title: str) -> None:
    assert placed(file_of(Arm64Image(flags=flags).build())).title == f"Linux arm64 Image, {title}"


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Arm64Image(flags=0xB), r"big-endian \(flag 0x1\)"),
        (Arm64Image(flags=0xC), "16 KiB pages .* which the CPU has not"),
        (Arm64Image(flags=0x800A), "flags that are unknown here: 0x8000"),
        (Arm64Image(flags=1 << 63), "unknown here: 0x8000000000000000"),
        (Arm64Image(text_offset=2 * MIB), "an offset of 0x200000"),
        (Arm64Image(text_offset=(1 << 64) - 1), "an offset of 0xf+ "),
        (Arm64Image(image_size=60 * MIB), "needs 60M .* try --mem 80M"),
        (Arm64Image(image_size=3 * GIB), "needs 3072M .* which low RAM does not have"),
        (Arm64Image(image_size=(1 << 64) - 1), "which low RAM does not have"),
    ],
)
def test_one_that_cannot_be_booted_says_why(
    file_of: FileOf, image: Arm64Image, message: str
) -> None:
    with pytest.raises(BadInput, match=f"--kernel: .*{message}"):
        placed(file_of(image.build()))


def test_a_truncated_header_is_named(file_of: FileOf) -> None:
    with pytest.raises(BadInput, match="--kernel: the file is truncated"):
        placed(file_of(Arm64Image().build()[:60]))


def test_the_memory_that_is_suggested_is_enough(file_of: FileOf) -> None:
    fd = file_of(Arm64Image(image_size=60 * MIB).build())

    assert placed(fd, 80 * MIB).entry == 0xC0_0000
