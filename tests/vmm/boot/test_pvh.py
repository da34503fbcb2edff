"""PVH start info, read back as a guest reads it."""

from __future__ import annotations

import struct

from vmm.boot.e820 import e820_map
from vmm.boot.layout import START_INFO
from vmm.boot.pvh import start_info
from vmm.boot.segment import Segment
from vmm.memory_map import GIB, regions

COMMAND_LINE = Segment("command line", 0x9000, b"quiet\0")
INITRD = Segment("initrd", 0x300_0000, b"", 12345)
E820 = e820_map(regions(4 * GIB))


def read(initrd: Segment | None) -> tuple[bytes, tuple[int, ...]]:
    data = start_info(COMMAND_LINE, initrd, E820, 0xE_0000).data
    assert isinstance(data, bytes)
    return data, struct.unpack_from("<IIIIQQQQII", data)


def test_it_names_command_line_rsdp_and_magic() -> None:
    _, (magic, version, flags, _, _, cmdline, rsdp, _, _, _) = read(None)

    assert (magic, version, flags) == (0x336EC578, 1, 0)
    assert (cmdline, rsdp) == (0x9000, 0xE_0000)


def test_the_initrd_is_the_only_module() -> None:
    data, fields = read(INITRD)

    assert fields[3] == 1
    assert struct.unpack_from("<QQQQ", data, fields[4] - START_INFO) == (0x300_0000, 12345, 0, 0)


def test_without_initrd_there_are_no_modules() -> None:
    _, fields = read(None)

    assert (fields[3], fields[4]) == (0, 0)


def test_the_memory_map_is_the_whole_of_e820() -> None:
    data, fields = read(INITRD)

    table = data[fields[7] - START_INFO :]
    assert fields[8] == len(E820)
    assert list(struct.iter_unpack("<QQII", table)) == [
        (e.gpa, e.size, int(e.kind), 0) for e in E820
    ]
