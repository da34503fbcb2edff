"""The zero page: ``struct boot_params``, what Linux is told when it is entered in 64-bit mode.

Offsets are those of <asm/bootparam.h>, which a test compares with what the C compiler makes of
that header; the fields are described in Documentation/arch/x86/boot.rst and zero-page.rst.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from vmm.boot.e820 import Entry
from vmm.boot.layout import START_INFO
from vmm.boot.segment import Segment

SIZE = 4096

ACPI_RSDP_ADDR = 0x070
E820_ENTRIES = 0x1E8
HDR = 0x1F1
VID_MODE = 0x1FA
BOOT_FLAG = 0x1FE
HEADER = 0x202
VERSION = 0x206
TYPE_OF_LOADER = 0x210
CODE32_START = 0x214
RAMDISK_IMAGE = 0x218
RAMDISK_SIZE = 0x21C
CMD_LINE_PTR = 0x228
E820_TABLE = 0x2D0
E820_MAX_ENTRIES = 128

_BOOT_FLAG_MAGIC = 0xAA55
_VID_MODE_NORMAL = 0xFFFF
_LOADER_WITHOUT_ID = 0xFF
# For a kernel without a header of its own: the protocol that has the 64-bit entry.
_VERSION = 0x020C


def zero_page(
    setup_header: bytes,
    kernel: Segment,
    command_line: Segment,
    initrd: Segment | None,
    e820: Sequence[Entry],
    rsdp: int,
) -> Segment:
    """The page for a kernel with ``setup_header`` (empty: one is made up, as for a vmlinux)."""
    page = bytearray(SIZE)

    def put(offset: int, format_: str, *values: int | bytes) -> None:
        struct.pack_into("<" + format_, page, offset, *values)

    put(BOOT_FLAG, "H", _BOOT_FLAG_MAGIC)
    put(HEADER, "4s", b"HdrS")
    put(VERSION, "H", _VERSION)
    page[HDR : HDR + len(setup_header)] = setup_header

    put(VID_MODE, "H", _VID_MODE_NORMAL)
    put(TYPE_OF_LOADER, "B", _LOADER_WITHOUT_ID)
    put(CODE32_START, "I", kernel.gpa)
    put(CMD_LINE_PTR, "I", command_line.gpa)
    if initrd is not None:
        put(RAMDISK_IMAGE, "II", initrd.gpa, initrd.size)
    put(ACPI_RSDP_ADDR, "Q", rsdp)
    put(E820_ENTRIES, "B", len(e820))
    for number, entry in enumerate(e820):
        put(E820_TABLE + 20 * number, "QQI", entry.gpa, entry.size, entry.kind)
    return Segment("zero page", START_INFO, bytes(page))
