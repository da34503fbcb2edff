"""Names for what people hand over in place of a kernel."""

from __future__ import annotations

# Offset, magic number, what it is. Compression formats as in the kernel's lib/decompress.c;
# arm64 from its Documentation/arch/arm64/booting.rst.
_KNOWN = (
    (0, b"\x1f\x8b", "it is compressed with gzip; unpack it first"),
    (0, b"\xfd7zXZ\0", "it is compressed with xz; unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "it is compressed with zstd; unpack it first"),
    (0, b"\x02\x21\x4c\x18", "it is compressed with lz4; unpack it first"),
    (0, b"\x04\x22\x4d\x18", "it is compressed with lz4; unpack it first"),
    (0, b"BZh", "it is compressed with bzip2; unpack it first"),
    (0, b"070701", "it is a cpio archive; is it the initrd?"),
    (0, b"#!", "it is a script"),
    (56, b"ARM\x64", "it is an arm64 kernel"),
    (0x202, b"HdrS", "it is an x86 kernel"),
    # Documentation/riscv/boot-image-header.rst: magic2
    (56, b"RSC\x05", "it is a RISC-V kernel, which no CPU here runs"),
    # drivers/firmware/efi/libstub/zboot-header.S
    (4, b"zimg", "it is compressed, and unpacks itself under EFI only; unpack it first"),
)


def what_else(head: bytes, wanted: str) -> str:
    """What a file that starts with ``head`` is, which is, in words, ``wanted``."""
    for offset, magic, name in _KNOWN:
        if head[offset : offset + len(magic)] == magic:
            return name
    return f"it is {wanted} (for a raw binary there is --binary)"
