"""Target ``bzimage``: setup headers, and what is packed behind them."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct

import lz4.block

from tests.fuzz import kernels
from tests.support.boot_files import BzImage, Elf


def run(data: bytes) -> None:
    """A byte that says whether to unpack, and a file, but for the magic number, which is put in."""
    file = data[1:]
    kernels.check(file[:0x202] + b"HdrS" + file[0x206:], unpack=bool(data[:1] > b"\x7f"))


_ELF = Elf(load=[(0x100_0000, b"\xf4" * 64, 0x1000)]).build()
_SIZE = struct.pack("<I", len(_ELF))
_BLOCK = lz4.block.compress(_ELF, store_size=False)


def _packed(payload: bytes) -> bytes:
    data = bytearray(BzImage(code=bytes(0x210) + payload).build())
    struct.pack_into("<II", data, 0x248, 0x210, len(payload))
    return bytes(data)


_FILES = {
    "plain": BzImage(code=bytes(1024)).build(),
    "fixed": BzImage(code=bytes(1024), relocatable_kernel=0, setup_sects=0).build(),
    "elsewhere": BzImage(code=bytes(1024), pref_address=0x500_0000).build(),
    "old": BzImage(code=bytes(16), version=0x020B).build(),
    "odd": BzImage(code=bytes(1024), kernel_alignment=1).build(),
    "gzip": _packed(gzip.compress(_ELF, mtime=0)),
    "bzip2": _packed(bz2.compress(_ELF) + _SIZE),
    "xz": _packed(lzma.compress(_ELF) + _SIZE),
    "lzma": _packed(lzma.compress(_ELF, format=lzma.FORMAT_ALONE) + _SIZE),
    "lz4": _packed(struct.pack("<II", 0x184C2102, len(_BLOCK)) + _BLOCK + _SIZE),
}
SEEDS = {
    **{f"{name}-as-it-is": b"\0" + file for name, file in _FILES.items()},
    **{f"{name}-unpacked": b"\xff" + file for name, file in _FILES.items()},
}
