"""The zero page, against the kernel's own header."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from vmm.boot import zero_page
from vmm.boot.e820 import e820_map
from vmm.boot.segment import Segment
from vmm.memory_map import GIB, regions

FIELDS = {
    "acpi_rsdp_addr": zero_page.ACPI_RSDP_ADDR,
    "e820_entries": zero_page.E820_ENTRIES,
    "hdr": zero_page.HDR,
    "hdr.vid_mode": zero_page.VID_MODE,
    "hdr.boot_flag": zero_page.BOOT_FLAG,
    "hdr.header": zero_page.HEADER,
    "hdr.version": zero_page.VERSION,
    "hdr.type_of_loader": zero_page.TYPE_OF_LOADER,
    "hdr.code32_start": zero_page.CODE32_START,
    "hdr.ramdisk_image": zero_page.RAMDISK_IMAGE,
    "hdr.ramdisk_size": zero_page.RAMDISK_SIZE,
    "hdr.cmd_line_ptr": zero_page.CMD_LINE_PTR,
    "e820_table": zero_page.E820_TABLE,
}

KERNEL = Segment("kernel", 0x100_0000, b"code")
COMMAND_LINE = Segment("command line", 0x9000, b"quiet\0")
INITRD = Segment("initrd", 0x300_0000, b"", 12345)


def build(header: bytes, initrd: Segment | None = INITRD) -> bytes:
    e820 = e820_map(regions(4 * GIB))
    data = zero_page.zero_page(header, KERNEL, COMMAND_LINE, initrd, e820, 0xE_0000).data
    assert isinstance(data, bytes)
    return data


def number(page: bytes, offset: int, format_: str) -> int:
    (value,) = struct.unpack_from("<" + format_, page, offset)
    assert isinstance(value, int)
    return value


def test_offsets_are_those_of_the_kernels_header(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    header = Path("/usr/include/x86_64-linux-gnu/asm/bootparam.h")
    if compiler is None or not header.exists():
        pytest.skip("needs cc and linux-libc-dev for x86-64")
    source, program = tmp_path / "offsets.c", tmp_path / "offsets"
    prints = "\n".join(
        f'printf("{name} %zu\\n", offsetof(struct boot_params, {name}));' for name in FIELDS
    )
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <asm/bootparam.h>\n"
        f'int main(void) {{ {prints}\nprintf("sizeof %zu\\n", sizeof(struct boot_params)); }}\n'
    )
    subprocess.run([compiler, "-o", program, source], check=True)

    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout

    lines = (line.split() for line in output.splitlines())
    assert {name: int(at) for name, at in lines} == {**FIELDS, "sizeof": zero_page.SIZE}


def test_it_points_to_everything_the_kernel_needs() -> None:
    page = build(b"")

    assert number(page, zero_page.CMD_LINE_PTR, "I") == 0x9000
    assert number(page, zero_page.RAMDISK_IMAGE, "I") == 0x300_0000
    assert number(page, zero_page.RAMDISK_SIZE, "I") == 12345
    assert number(page, zero_page.CODE32_START, "I") == 0x100_0000
    assert number(page, zero_page.ACPI_RSDP_ADDR, "Q") == 0xE_0000
    assert number(page, zero_page.TYPE_OF_LOADER, "B") == 0xFF


def test_without_initrd_its_fields_are_zero() -> None:
    page = build(b"", initrd=None)

    assert number(page, zero_page.RAMDISK_IMAGE, "Q") == 0


def test_the_memory_map_is_copied_entry_by_entry() -> None:
    page = build(b"")

    count = number(page, zero_page.E820_ENTRIES, "B")
    table = page[zero_page.E820_TABLE :][: 20 * count]
    expected = [(e.gpa, e.size, int(e.kind)) for e in e820_map(regions(4 * GIB))]
    assert list(struct.iter_unpack("<QQI", table)) == expected


def test_a_kernels_own_header_is_kept_where_nothing_is_to_be_written() -> None:
    header = bytearray(range(0x70))
    struct.pack_into("<4sH", header, 0x202 - 0x1F1, b"HdrS", 0x020F)

    page = build(bytes(header))

    assert number(page, zero_page.VERSION, "H") == 0x020F
    assert page[0x1F1:0x1F8] == bytes(header[:7])
    assert page[0x22C:0x261] == bytes(header[0x22C - 0x1F1 :])
    # A loader that copied too much would leave the sentinel set (<asm/bootparam.h>).
    assert page[0x1EF] == 0


def test_a_kernel_without_header_gets_one_that_says_linux() -> None:
    page = build(b"")

    assert page[0x1FE:0x200] == b"\x55\xaa"
    assert page[0x202:0x206] == b"HdrS"
