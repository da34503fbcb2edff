"""Instructions that the engine lacks, by name: for a line in the log when a guest tries one.

The guest gets an invalid-opcode exception, as on a processor without them; it was told by CPUID.
Opcodes: Intel SDM, volume 2, appendix A.
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
