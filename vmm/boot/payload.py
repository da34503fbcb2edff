"""The kernel inside a bzImage, unpacked here: for a processor in software, to which it is seconds.

A bzImage is a small program around a packed ELF file. On a processor of silicon that program takes
a fraction of a second, on a translated one longer than all the rest of the boot to /init. What it
would unpack is entered as a vmlinux is; it is not moved to a random address.

Source: Documentation/arch/x86/boot.rst, payload_offset and payload_length; the formats are those
of the kernel's Makefiles, of which lzo and zstd are left to the guest.
"""

from __future__ import annotations

import bz2
import io
import lzma
import os
import struct
import zlib
from collections.abc import Callable, Iterator

from vmm.boot.bzimage import SETUP_HEADER, SetupHeader
from vmm.boot.image import Image
from vmm.memory_map import LOW_RAM_END

_PAYLOAD = 0x248  # payload_offset and payload_length, since protocol 2.08

# lz4's old frame (lz4_Frame_format.md, "Legacy frame"): a magic number, then blocks of 8 MiB, each
# behind the 32-bit size of what it is packed to.
_LZ4_BLOCK = 8 << 20

_Method = Callable[[bytes], Iterator[bytes]]

_SIZE = struct.Struct("<I")


def unpack(image: Image) -> Image | None:
    """The ELF file in ``image``, a bzImage; None if it is packed in a way that is not known here,
    or damaged: the guest will say that better."""
    head = image.read(0, SETUP_HEADER + 0x100)
    if len(head) < _PAYLOAD + 8:
        return None
    offset, length = struct.unpack_from("<II", head, _PAYLOAD)
    packed = image.read(SetupHeader.parse(head.ljust(0x264, b"\0")).kernel_offset + offset, length)
    method = next((m for magic, m in _METHODS.items() if packed.startswith(magic)), None)
    if method is None:
        return None
    try:
        found = b"".join(_bounded(method(packed)))
    except (OSError, ValueError, EOFError, RuntimeError, zlib.error, lzma.LZMAError, ImportError):
        return None
    if not found.startswith(b"\x7fELF"):
        return None
    file = os.fdopen(os.memfd_create("vmlinux", os.MFD_CLOEXEC), "w+b", buffering=0)
    for start in range(0, len(found), _LZ4_BLOCK):
        file.write(found[start : start + _LZ4_BLOCK])
    return Image(file, image.option)


def _bounded(parts: Iterator[bytes]) -> Iterator[bytes]:
    size = 0
    for part in parts:
        size += len(part)
        if size > LOW_RAM_END:
            raise ValueError("no kernel is that large")
        yield part


def _lz4(packed: bytes) -> Iterator[bytes]:
    import lz4.block  # of the software extra, which alone comes here

    at = 4
    # The last four bytes are the size of all, which the kernel's build appends.
    while at + _SIZE.size < len(packed) - _SIZE.size:
        (size,) = _SIZE.unpack_from(packed, at)
        at += _SIZE.size
        try:
            yield lz4.block.decompress(packed[at : at + size], uncompressed_size=_LZ4_BLOCK)
        except lz4.block.LZ4BlockError as error:
            raise ValueError(str(error)) from error
        at += size


def _stream(
    opened: Callable[[io.BytesIO], io.BufferedIOBase],
) -> Callable[[bytes], Iterator[bytes]]:
    def read(packed: bytes) -> Iterator[bytes]:
        with opened(io.BytesIO(packed[: -_SIZE.size])) as file:
            while part := file.read(_LZ4_BLOCK):
                yield part

    return read


def _gzip(packed: bytes) -> Iterator[bytes]:
    # The size at its end is gzip's own. Bounded while it unpacks, and not after.
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
    while packed and not unpacker.eof:
        yield unpacker.decompress(packed, _LZ4_BLOCK)
        packed = unpacker.unconsumed_tail
    if not unpacker.eof:
        raise ValueError("it is cut off")


_METHODS: dict[bytes, _Method] = {
    b"\x1f\x8b": _gzip,
    b"BZh": _stream(bz2.BZ2File),
    b"\xfd7zXZ\0": _stream(lzma.LZMAFile),
    b"\x5d\0\0": _stream(lzma.LZMAFile),
    b"\x02\x21\x4c\x18": _lz4,
}
