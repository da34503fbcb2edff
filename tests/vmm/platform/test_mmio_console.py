"""The MMIO console: one register an access, whatever its width."""

from __future__ import annotations

import pytest

from vmm.platform.mmio_console import MmioConsole


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_store_of_any_width_to_offset_0_prints_its_low_byte(size: int) -> None:
    sent = bytearray()
    console = MmioConsole(sent.extend)

    console.write(0, size, 0x41)
    console.write(0, size, (1 << 8 * size) - 1 & ~0xFF | 0x42)

    assert sent == b"AB"
    assert console.read(1, 1) == 0


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_load_of_any_width_is_the_register_extended_with_zeros(size: int) -> None:
    console = MmioConsole(bytearray().extend)

    assert console.read(5, size) == 0x60


def test_input_is_read_by_polling() -> None:
    console = MmioConsole(bytearray().extend)

    assert console.receive(b"x") == 1

    assert console.read(5, 1) & 1
    assert console.read(0, 1) == ord("x")


def test_the_rest_of_the_page_is_empty() -> None:
    sent = bytearray()
    console = MmioConsole(sent.extend)

    console.write(8, 1, 0x41)
    console.write(0xFFC, 4, 0x41)

    assert sent == b""
    assert console.read(8, 4) == 0xFFFF_FFFF


def test_it_interrupts_where_it_has_a_line() -> None:
    levels: list[bool] = []
    console = MmioConsole(bytearray().extend, set_irq=levels.append)

    # MCR: OUT2; IER: received data.
    console.write(4, 1, 0x08)
    console.write(1, 1, 0x01)
    console.receive(b"x")
    console.read(0, 1)

    assert levels == [True, False]
