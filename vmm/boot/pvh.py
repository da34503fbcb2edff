"""PVH: ``struct hvm_start_info``, what a kernel entered by the x86/HVM direct boot ABI is told.

Source: Xen, include/public/arch-x86/hvm/start_info.h (the same file in Linux,
include/xen/interface/hvm/start_info.h) and docs/misc/pvh.pandoc.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from vmm.boot.e820 import Entry
from vmm.boot.layout import START_INFO
from vmm.boot.segment import Segment

MAGIC = 0x336E_C578
VERSION = 1

# magic, version, flags, nr_modules; modlist, cmdline, rsdp, memmap; memmap_entries, reserved
START_INFO_FORMAT = struct.Struct("<4I4Q2I")
# paddr, size, cmdline, reserved
MODULE_FORMAT = struct.Struct("<4Q")
# addr, size, type, reserved; the types are those of e820
MEMORY_FORMAT = struct.Struct("<2Q2I")


def start_info(
    command_line: Segment, initrd: Segment | None, e820: Sequence[Entry], rsdp: int
) -> Segment:
    """The structure, with the module list (the initrd, if there is one) and the memory map
    right behind it."""
    modules = b"" if initrd is None else MODULE_FORMAT.pack(initrd.gpa, initrd.size, 0, 0)
    memory = b"".join(MEMORY_FORMAT.pack(entry.gpa, entry.size, entry.kind, 0) for entry in e820)
    modlist = START_INFO + START_INFO_FORMAT.size
    memmap = modlist + len(modules)
    head = START_INFO_FORMAT.pack(
        MAGIC,
        VERSION,
        0,
        len(modules) // MODULE_FORMAT.size,
        modlist if modules else 0,
        command_line.gpa,
        rsdp,
        memmap,
        len(e820),
        0,
    )
    return Segment("PVH start info", START_INFO, head + modules + memory)
