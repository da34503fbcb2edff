"""Instructions that the engine lacks, by name: for a line in the log when a guest tries one.

The guest gets an exception, as on a processor without them; CPUID and ID registers told it.
Opcodes: Intel SDM, volume 2, appendix A; Arm ARM, C4.1, "A64 instruction set encoding".
"""

from __future__ import annotations

# What a program executes on purpose, to have the exception: UD2, UD1, UD0.
_ON_PURPOSE = (b"\x0f\x0b", b"\x0f\xb9", b"\x0f\xff")

# Legacy prefixes and REX.
_PREFIXES = b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3" + bytes(range(0x40, 0x50))

_NAMES = (
    (b"\xc4", "an AVX instruction"),
    (b"\xc5", "an AVX instruction"),
    (b"\x62", "an AVX-512 instruction"),
    (b"\x0f\x01\xd0", "XGETBV"),
    (b"\x0f\x01\xd1", "XSETBV"),
    (b"\x0f\x01\xf9", "RDTSCP"),
    (b"\x0f\x01", "a system instruction of group 7"),
    (b"\x0f\x38", "an instruction of the map 0F 38 (SSE4, AES, SHA)"),
    (b"\x0f\x3a", "an instruction of the map 0F 3A (SSE4, AES, SHA)"),
    (b"\x0f\xae", "an instruction of group 15 (XSAVE, FSGSBASE, CLWB)"),
    (b"\x0f\xc7", "an instruction of group 9 (RDRAND, RDSEED, XSAVES)"),
)


def name(code: bytes) -> str | None:
    """What begins ``code``, in words; None if the exception is what the program wanted."""
    bare = code.lstrip(_PREFIXES)
    if bare.startswith(_ON_PURPOSE):
        return None
    for opcode, words in _NAMES:
        if bare.startswith(opcode):
            return words
    return "an instruction"


# Mask, value, name.
_ARM64_NAMES = (
    (0x3B20_0C00, 0x3820_0000, "an atomic instruction of Armv8.1 (LSE)"),
    (0x3FA0_7C00, 0x08A0_7C00, "an atomic instruction of Armv8.1 (LSE)"),  # CAS
    (0x1E00_0000, 0x0400_0000, "an SVE instruction"),
)
# UDF, on purpose; and system registers, which kernels answer in place of the processor.
_ARM64_ON_PURPOSE = ((0xFFFF_0000, 0), (0xFFC0_0000, 0xD500_0000))


def name_arm64(code: bytes) -> str | None:
    """:func:`name` of an arm64 processor's."""
    word = int.from_bytes(code[:4], "little")
    if len(code) >= 4 and any(word & mask == value for mask, value in _ARM64_ON_PURPOSE):
        return None
    for mask, value, words in _ARM64_NAMES:
        if word & mask == value:
            return words
    return "an instruction"
