"""Instructions that the engine lacks have names; those that are invalid on purpose have none."""

from __future__ import annotations

import pytest

from vmm.hypervisor.software import missing


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("c5 f8 77", "an AVX instruction"),
        ("62 f1 7c 48 28 c0", "an AVX-512 instruction"),
        ("0f 01 d0", "XGETBV"),
        ("66 0f 38 82 00", "an instruction of the map 0F 38 (SSE4, AES, SHA)"),
        ("48 0f c7 f0", "an instruction of group 9 (RDRAND, RDSEED, XSAVES)"),
        ("f1", "an instruction"),
        ("0f 0b", None),
        ("48 0f b9 c0", None),
        ("", "an instruction"),
    ],
)
def test_name_of_an_instruction(code: str, name: str | None) -> None:
    assert missing.name(bytes.fromhex(code)) == name


@pytest.mark.parametrize(
    ("word", "name"),
    [
        (0xF820_0022, "an atomic instruction of Armv8.1 (LSE)"),  # ldadd x0, x2, [x1]
        (0xC8A0_7C22, "an atomic instruction of Armv8.1 (LSE)"),  # cas x0, x2, [x1]
        (0x2518_E3E0, "an SVE instruction"),  # ptrue p0.b
        (0x4E28_4800, "an instruction"),  # aese v0.16b, v0.16b
        (0x0000_0000, None),  # udf
        (0xD538_0700, None),  # mrs x0, ID_AA64MMFR0_EL1
    ],
)
def test_name_of_an_arm64_instruction(word: int, name: str | None) -> None:
    assert missing.name_arm64(word.to_bytes(4, "little")) == name
