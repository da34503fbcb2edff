"""What the targets of kernel files have in common: one is planned, and loaded."""

from __future__ import annotations

import os

from protocol.errors import BadInput
from protocol.memory import GuestMemory, create_memfd
from protocol.specs import BootSpec
from vmm.boot.architecture import detect
from vmm.boot.hardware import Hardware
from vmm.boot.image import FilePart
from vmm.boot.plan import describe, load, plan
from vmm.boot.segment import is_ram
from vmm.memory_map import MIB

_HARDWARE = Hardware(64 * MIB)
_BOOT = BootSpec(binary=False, cmdline="console=ttyS0", entry=None, load=None)
_memory = GuestMemory(create_memfd("guest", 64 * MIB), _HARDWARE.regions)
_file = os.memfd_create("kernel")


def check(data: bytes, *, unpack: bool = False) -> None:
    """Whatever the file is: BadInput, or a plan of what is in the file, to places in RAM."""
    os.ftruncate(_file, 0)
    os.pwrite(_file, data, 0)
    try:
        detect(_file, None, None, False)
        made = plan(_BOOT, _file, None, _HARDWARE, unpack=unpack)
    except BadInput as error:
        str(error)
        return
    describe(made)
    for segment in made.segments:
        assert is_ram(_HARDWARE.regions, segment.gpa, segment.size), segment.name
        if isinstance(segment.data, FilePart):
            part = segment.data
            assert part.offset >= 0
            assert part.size >= 0
            assert part.offset + part.size <= part.image.size
    assert any(segment.gpa <= made.entry < segment.end for segment in made.segments)
    load(made, _memory)
