"""bzImage: Linux as distributions ship it, entered in 64-bit mode.

Source: the kernel's Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header" and "64-bit
Boot Protocol". The real-mode code in front of the kernel is skipped; what it would have found
out goes into the zero page.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from protocol.memory import Region
from vmm.boot.image import Image
from vmm.boot.kernel import Kernel, Kind
from vmm.boot.layout import BIOS_END
from vmm.boot.segment import Segment, align_up, is_ram
from vmm.memory_map import LOW_RAM_END, MIB, VIRTIO_WINDOW, VIRTIO_WINDOW_SIZE

SECTOR = 512
SETUP_HEADER = 0x1F1
MAGIC_AT = 0x202
MAGIC = b"HdrS"

# Protocol 2.12 brought xloadflags, and with it the 64-bit entry; Linux 3.8.
_FIRST_64BIT_PROTOCOL = 0x020C
_XLF_KERNEL_64 = 1 << 0
_ENTRY64 = 0x200


@dataclass(frozen=True, slots=True)
class SetupHeader:
    """The fields of the setup header that a 64-bit boot loader needs, by their names there."""

    setup_sects: int
    syssize: int
    version: int
    kernel_version: int
    initrd_addr_max: int
    kernel_alignment: int
    relocatable_kernel: int
    xloadflags: int
    cmdline_size: int
    pref_address: int
    init_size: int

    @classmethod
    def parse(cls, head: bytes) -> SetupHeader:
        """From the first 0x264 bytes or more of the file."""
        # Offset in the file and struct format of each field above, in the same order.
        rows = (
            (0x1F1, "B"),
            (0x1F4, "I"),
            (0x206, "H"),
            (0x20E, "H"),
            (0x22C, "I"),
            (0x230, "I"),
            (0x234, "B"),
            (0x236, "H"),
            (0x238, "I"),
            (0x258, "Q"),
            (0x260, "I"),
        )
        return cls(*(struct.unpack_from(f"<{format_}", head, at)[0] for at, format_ in rows))

    @property
    def kernel_offset(self) -> int:
        """Where in the file the protected-mode code starts; 0 setup sectors mean 4."""
        return ((self.setup_sects or 4) + 1) * SECTOR


def is_bzimage(head: bytes) -> bool:
    """Whether a file that starts with ``head`` has a setup header."""
    return head[MAGIC_AT : MAGIC_AT + 4] == MAGIC


def read_bzimage(image: Image, regions: Sequence[Region]) -> Kernel:
    """Check the header and place the kernel; BadInput if it cannot be booted or does not fit."""
    head = image.read(0, 2 * SECTOR)
    if len(head) < 2 * SECTOR:
        raise image.bad("the file is truncated: it ends within the setup header")
    header = SetupHeader.parse(head)
    major, minor = header.version >> 8, header.version & 0xFF
    if header.version < _FIRST_64BIT_PROTOCOL:
        raise image.bad(
            f"this bzImage speaks boot protocol {major}.{minor:02}; the 64-bit entry came with 2.12"
        )
    if not header.xloadflags & _XLF_KERNEL_64:
        raise image.bad("this bzImage is a 32-bit kernel; it has no 64-bit entry")
    alignment = header.kernel_alignment
    if alignment == 0 or alignment & (alignment - 1):
        raise image.bad(f"its header asks for an alignment of {alignment}, not a power of two")

    code = image.part(header.kernel_offset, header.syssize * 16)
    if len(code) <= _ENTRY64:
        raise image.bad("this bzImage has no code behind its setup sectors")
    size = max(header.init_size, len(code))
    address = _load_address(image, header, size, regions)
    return Kernel(
        Kind.BZIMAGE,
        f"Linux {_version(image, header)}",
        (Segment("kernel", address, code, reserve=size),),
        entry=address + _ENTRY64,
        # The header's own length is the operand of the jump in front of its magic number.
        setup_header=head[SETUP_HEADER : MAGIC_AT + head[0x201]],
        cmdline_size=header.cmdline_size,
        initrd_addr_max=header.initrd_addr_max,
    )


def _load_address(image: Image, header: SetupHeader, size: int, regions: Sequence[Region]) -> int:
    # A kernel below its preferred address would only move itself up to it, so that is where it
    # goes; elsewhere only if it is relocatable and there is no room, for instance because it
    # would reach into the virtio window from below.
    places = [header.pref_address]
    if header.relocatable_kernel:
        starts = (max(region.gpa, header.pref_address, BIOS_END) for region in regions)
        places += [align_up(start, header.kernel_alignment) for start in starts]
    for place in places:
        if place >= BIOS_END and place + size <= LOW_RAM_END and is_ram(regions, place, size):
            return place
    needs = f"the kernel needs {size / MIB:.0f}M in one piece from {header.pref_address:#x} on"
    behind_window = VIRTIO_WINDOW + VIRTIO_WINDOW_SIZE
    movable = header.relocatable_kernel or header.pref_address >= behind_window
    enough = align_up(max(header.pref_address, behind_window) + size, 16 * MIB)
    if not movable or enough > LOW_RAM_END:
        raise image.bad(f"{needs}, which low RAM does not have")
    raise image.bad(f"{needs}, which --mem does not leave; try --mem {enough // MIB}M")


def _version(image: Image, header: SetupHeader) -> str:
    if header.kernel_version == 0:
        return "of unknown version"
    text = image.read(header.kernel_version + SECTOR, 256).split(b"\0")[0]
    return text.decode("ascii", "replace").split(" ")[0]
