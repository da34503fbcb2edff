"""A kernel as it was found in its file, before anything else is placed around it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from vmm.boot.segment import Segment

# Limits of an x86 kernel that names none: COMMAND_LINE_SIZE less the NUL
# (arch/x86/include/asm/setup.h), and the highest initrd address it would put in its header
# (arch/x86/boot/header.S).
CMDLINE_SIZE = 2047
INITRD_ADDR_MAX = 0x7FFF_FFFF


class Kind(Enum):
    """What there is to boot."""

    RAW = "raw binary"
    ELF = "64-bit ELF kernel"
    PVH = "ELF kernel with a PVH entry"
    BZIMAGE = "Linux bzImage"
    ARM64_IMAGE = "Linux arm64 Image"


@dataclass(frozen=True, slots=True)
class Kernel:
    """Where a kernel's pieces go and what it wants to be told.

    ``setup_header`` is a bzImage's own, from 0x1F1 on; empty for the others. ``cmdline_size``
    excludes the NUL; ``initrd_addr_max`` is the highest byte that an initrd may occupy.
    """

    kind: Kind
    title: str
    segments: tuple[Segment, ...]
    entry: int
    setup_header: bytes = b""
    cmdline_size: int = CMDLINE_SIZE
    initrd_addr_max: int = INITRD_ADDR_MAX
