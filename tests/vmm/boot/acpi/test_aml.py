"""AML terms, against the encodings of the ACPI specification, chapter 20.2 and 6.4."""

from __future__ import annotations

import pytest

from vmm.boot.acpi import aml


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (1, "01"),
        (2, "0a 02"),
        (0xFF, "0a ff"),
        (0x100, "0b 00 01"),
        (0xFFFF, "0b ff ff"),
        (0x1_0000, "0c 00 00 01 00"),
        (0x1_0000_0000, "0e 00 00 00 00 01 00 00 00"),
    ],
)
def test_integers_take_their_shortest_form(value: int, encoded: str) -> None:
    assert aml.integer(value) == bytes.fromhex(encoded)


def test_an_eisa_id_is_packed_big_endian() -> None:
    assert aml.eisa_id("PNP0501") == bytes.fromhex("0c 41 d0 05 01")


def test_short_names_are_padded() -> None:
    assert aml.name("_S5", aml.integer(1)) == b"\x08_S5_\x01"


@pytest.mark.parametrize(
    ("size", "length"),
    [
        # The length counts its own bytes and the name's four.
        (0, "05"),
        (58, "3f"),
        (59, "41 04"),
        (4089, "4f ff"),
        (4090, "81 00 01"),
    ],
)
def test_a_package_length_grows_by_bytes(size: int, length: str) -> None:
    term = aml.scope("_SB", bytes(size))

    assert term[1 : term.index(b"_SB_")] == bytes.fromhex(length)


def test_a_term_that_no_length_can_tell_is_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        aml.scope("_SB", bytes(1 << 20))


def test_resources_end_with_the_end_tag() -> None:
    assert aml.resources(aml.irq(4)) == bytes.fromhex("11 08 0a 05 22 10 00 79 00")


def test_a_virtio_line_is_edge_triggered_active_high_and_exclusive() -> None:
    assert aml.interrupt(0x17) == bytes.fromhex("89 06 00 03 01 17 00 00 00")
