"""The arm64 Image: Linux as distributions ship it for arm64.

Source: the kernel's Documentation/arm64/booting.rst, section 4. The header is 64 bytes at the
start of what is loaded; the kernel begins with its first instruction. An Image may be an EFI
program too, which changes nothing here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from protocol.memory import Region
from vmm.boot.image import Image
from vmm.boot.kernel import Kernel, Kind
from vmm.boot.segment import Segment, align_up, is_ram
from vmm.memory_map import LOW_RAM_END, MIB, VIRTIO_WINDOW, VIRTIO_WINDOW_SIZE

# code0, code1, text_offset, image_size, flags, res2 to res4, magic, res5
_HEADER = struct.Struct("<2I6Q4sI")
MAGIC_AT = 56
MAGIC = b"ARM\x64"

BASE_ALIGNMENT = 2 * MIB
# Of an Image from before 3.17, which leaves image_size at zero.
_OLD_TEXT_OFFSET = 0x8_0000
# Such an Image does not say how much it needs behind itself for its bss: "as much memory as
# possible". Arbitrary; a kernel of its time has a bss of about one MiB.
_OLD_ROOM = 16 * MIB

_FLAG_BIG_ENDIAN = 1 << 0
_PAGE_SIZE_SHIFT, _PAGE_SIZE_MASK = 1, 3
_FLAG_ANYWHERE = 1 << 3
_KNOWN_FLAGS = 0xF


class PageSize(IntEnum):
    """Bits 1 and 2 of the flags."""

    UNSPECIFIED = 0
    K4 = 1
    K16 = 2
    K64 = 3


_PAGE_SIZES = {
    PageSize.UNSPECIFIED: "pages of a size that it does not name",
    PageSize.K4: "4 KiB pages",
    PageSize.K16: "16 KiB pages",
    PageSize.K64: "64 KiB pages",
}


@dataclass(frozen=True, slots=True)
class Header:
    """The fields that a boot loader needs, by their names in the document."""

    text_offset: int
    image_size: int
    flags: int

    @classmethod
    def parse(cls, head: bytes) -> Header:
        """From the first 64 bytes or more of the file."""
        _, _, text_offset, image_size, flags, *_ = _HEADER.unpack_from(head)
        return cls(text_offset, image_size, flags)

    @property
    def page_size(self) -> PageSize:
        """What the kernel divides its memory into."""
        return PageSize(self.flags >> _PAGE_SIZE_SHIFT & _PAGE_SIZE_MASK)

    @property
    def may_lie_anywhere(self) -> bool:
        """Whether the kernel can use memory that lies below it."""
        return bool(self.flags & _FLAG_ANYWHERE)


def is_image(head: bytes) -> bool:
    """Whether a file that starts with ``head`` has the header."""
    return head[MAGIC_AT : MAGIC_AT + 4] == MAGIC


def read_image(image: Image, regions: Sequence[Region]) -> Kernel:
    """Check the header and place the kernel; BadInput if it cannot be booted or does not fit."""
    head = image.read(0, _HEADER.size)
    if len(head) < _HEADER.size:
        raise image.bad("the file is truncated: it ends within the header of an arm64 Image")
    header = Header.parse(head)
    _check_flags(image, header)
    if header.image_size:
        text_offset, size = header.text_offset, max(header.image_size, image.size)
    else:
        text_offset, size = _OLD_TEXT_OFFSET, image.size + _OLD_ROOM
    if text_offset >= BASE_ALIGNMENT:
        raise image.bad(
            f"its header asks for an offset of {text_offset:#x} from an address that 2M divides; "
            "no kernel needs as much"
        )
    address = _load_address(image, text_offset, size, regions)
    title = f"{Kind.ARM64_IMAGE.value}, {_PAGE_SIZES[header.page_size]}"
    segment = Segment("kernel", address, image.part(), reserve=size)
    return Kernel(Kind.ARM64_IMAGE, title, (segment,), entry=address)


def _check_flags(image: Image, header: Header) -> None:
    if header.flags & _FLAG_BIG_ENDIAN:
        raise image.bad("this arm64 Image is big-endian (flag 0x1); a little-endian one is needed")
    if header.page_size is PageSize.K16:
        # ID_AA64MMFR0_EL1.TGran16 of a Cortex-A72; the kernel would stop without a word.
        raise image.bad("this arm64 Image has 16 KiB pages (flags 0x4), which the CPU has not")
    unknown = header.flags & ~_KNOWN_FLAGS
    if unknown:
        raise image.bad(f"its header has flags that are unknown here: {unknown:#x}")


def _load_address(image: Image, text_offset: int, size: int, regions: Iterable[Region]) -> int:
    # As low as it goes, whether the kernel may lie anywhere or not: one that may not cannot use
    # the memory below itself, and one that may does not care.
    regions = list(regions)
    for region in regions:
        address = align_up(region.gpa, BASE_ALIGNMENT) + text_offset
        if address + size <= LOW_RAM_END and is_ram(regions, address, size):
            return address
    needs = f"the kernel needs {size / MIB:.0f}M in one piece from an address that 2M divides"
    behind_window = VIRTIO_WINDOW + VIRTIO_WINDOW_SIZE
    enough = align_up(align_up(behind_window, BASE_ALIGNMENT) + text_offset + size, 16 * MIB)
    if enough > LOW_RAM_END:
        raise image.bad(f"{needs}, which low RAM does not have")
    raise image.bad(f"{needs}, which --mem does not leave; try --mem {enough // MIB}M")
