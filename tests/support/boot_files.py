"""Writers of kernels that a boot protocol has to read: small, whole, and wrong on demand.

Field offsets are written down here a second time, from the ELF specification and the Linux boot
protocol, so that a mistake in the reader does not repeat itself in its tests.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE, PT_TLS = 1, 2, 3, 4, 7
ET_REL, ET_EXEC, ET_DYN = 1, 2, 3
EM_386, EM_X86_64, EM_AARCH64 = 3, 62, 183


def xen_note(kind: int, value: int) -> bytes:
    """An ELF note of owner ``Xen`` with an 8-byte number."""
    return struct.pack("<III4sQ", 4, 8, kind, b"Xen\0", value)


@dataclass
class Elf:
    """A 64-bit ELF program; ``load`` has (physical address, bytes, size in memory), ``others``
    types of further program headers, each of 16 zeros."""

    entry: int = 0x100_0000
    load: list[tuple[int, bytes, int]] = field(
        default_factory=lambda: [(0x100_0000, b"\xf4" * 32, 0x1000)]
    )
    notes: bytes = b""
    others: Sequence[int] = ()
    type: int = ET_EXEC
    machine: int = EM_X86_64

    def build(self) -> bytes:
        """The file: ELF header, program headers, then the contents in order."""
        count = len(self.load) + len(self.others) + bool(self.notes)
        at = 64 + 56 * count
        headers, contents = b"", b""
        pieces = [(PT_LOAD, *piece) for piece in self.load]
        pieces += [(kind, 0, bytes(16), 16) for kind in self.others]
        if self.notes:
            pieces.append((PT_NOTE, 0, self.notes, len(self.notes)))
        for kind, address, data, size in pieces:
            headers += struct.pack("<IIQQQQQQ", kind, 7, at, address, address, len(data), size, 4)
            contents += data
            at += len(data)
        ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
        start = ident + struct.pack(
            "<HHIQQQIHHHHHH",
            self.type,
            self.machine,
            1,
            self.entry,
            64,
            0,
            0,
            64,
            56,
            count,
            64,
            0,
            0,
        )
        return start + headers + contents


def elf32() -> bytes:
    """The header of a 32-bit x86 program with nothing in it."""
    ident = b"\x7fELF" + bytes([1, 1, 1]) + bytes(9)
    return ident + struct.pack(
        "<HHIIIIIHHHHHH", ET_EXEC, EM_386, 1, 0x10_0000, 52, 0, 0, 52, 32, 0, 40, 0, 0
    )


@dataclass
class BzImage:
    """A bzImage as boot protocol 2.15 has it, with ``code`` as its protected-mode part."""

    code: bytes = bytes(range(256)) * 8
    setup_sects: int = 4
    magic: bytes = b"HdrS"
    version: int = 0x020F
    initrd_addr_max: int = 0x7FFF_FFFF
    kernel_alignment: int = 0x20_0000
    relocatable_kernel: int = 1
    xloadflags: int = 0x7F
    cmdline_size: int = 0x7FF
    pref_address: int = 0x100_0000
    init_size: int = 0x40_0000
    release: bytes = b"6.1.0-test (somebody) #1"

    def build(self) -> bytes:
        """The file: boot sector and setup sectors, then the code in paragraphs of 16 bytes."""
        setup = bytearray(((self.setup_sects or 4) + 1) * 512)
        rows = (
            (0x1F1, "B", self.setup_sects),
            (0x1F4, "I", -(-len(self.code) // 16)),
            (0x1FE, "H", 0xAA55),
            (0x200, "H", 0x6AEB),
            (0x202, "4s", self.magic),
            (0x206, "H", self.version),
            (0x20E, "H", 0x400),
            (0x211, "B", 0x01),
            (0x22C, "I", self.initrd_addr_max),
            (0x230, "I", self.kernel_alignment),
            (0x234, "B", self.relocatable_kernel),
            (0x236, "H", self.xloadflags),
            (0x238, "I", self.cmdline_size),
            (0x258, "Q", self.pref_address),
            (0x260, "I", self.init_size),
        )
        for offset, format_, value in rows:
            struct.pack_into("<" + format_, setup, offset, value)
        setup[0x600 : 0x600 + len(self.release)] = self.release
        return bytes(setup) + self.code.ljust(-(-len(self.code) // 16) * 16, b"\0")


@dataclass
class Arm64Image:
    """An arm64 Image: a header, and ``size`` bytes in all; flag 0xA is 4 KiB pages, anywhere."""

    text_offset: int = 0
    image_size: int = 0x10_0000
    flags: int = 0xA
    magic: bytes = b"ARM\x64"
    size: int = 4096

    def build(self) -> bytes:
        """The file."""
        numbers = struct.pack("<QQQ", self.text_offset, self.image_size, self.flags)
        return (bytes(8) + numbers + bytes(24) + self.magic + bytes(4)).ljust(self.size, b"\x55")
