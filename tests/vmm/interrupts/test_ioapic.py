"""The IOAPIC: registers behind a window, edges, levels, and what a mask does to them."""

from __future__ import annotations

import pytest

from vmm.interrupts.ioapic import PINS, IoApic

SELECT, WINDOW = 0x00, 0x10
MASKED, LEVEL, REMOTE_IRR, NMI, EXTINT = 1 << 16, 1 << 15, 1 << 14, 0x400, 0x700
VECTOR = 0x31


class Controller:
    """An IOAPIC and the messages that it sent; ``takes`` says whether the other end took them."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.takes = True
        self.ioapic = IoApic(self._take)

    def _take(self, message: int) -> bool:
        if self.takes:
            self.sent.append(message)
        return self.takes

    def put(self, register: int, value: int) -> None:
        self.ioapic.write(SELECT, 4, register)
        self.ioapic.write(WINDOW, 4, value)

    def get(self, register: int) -> int:
        self.ioapic.write(SELECT, 4, register)
        return self.ioapic.read(WINDOW, 4)

    def program(self, pin: int, entry: int) -> None:
        self.put(0x11 + 2 * pin, entry >> 32)
        self.put(0x10 + 2 * pin, entry & 0xFFFF_FFFF)

    def pulse(self, pin: int) -> None:
        self.ioapic.set_line(pin, True)
        self.ioapic.set_line(pin, False)


@pytest.fixture
def controller() -> Controller:
    return Controller()


def test_identification_is_that_of_an_82093aa(controller: Controller) -> None:
    controller.put(0, 0xFFFF_FFFF)

    assert controller.get(0) == 0x0F00_0000
    assert controller.get(1) == 23 << 16 | 0x11
    assert controller.get(2) == 0x0F00_0000


def test_every_pin_is_masked_at_first(controller: Controller) -> None:
    for pin in range(PINS):
        controller.pulse(pin)

    assert controller.sent == []
    assert [controller.get(0x10 + 2 * pin) for pin in range(PINS)] == [MASKED] * PINS


def test_an_entry_keeps_only_the_bits_that_software_writes(controller: Controller) -> None:
    controller.program(23, (1 << 64) - 1)

    assert controller.get(0x3E) == 0x0001_AFFF
    assert controller.get(0x3F) == 0xFF00_0000


def test_registers_that_are_not_there_read_0_and_drop_writes(controller: Controller) -> None:
    for register in (*range(3, 0x10), *range(0x40, 0x100)):
        controller.put(register, 0xFFFF_FFFF)
        assert controller.get(register) == 0


def test_an_edge_sends_the_entry_once(controller: Controller) -> None:
    controller.program(4, 1 << 56 | VECTOR)

    controller.ioapic.set_line(4, True)
    controller.ioapic.set_line(4, True)

    assert controller.sent == [1 << 56 | VECTOR]


def test_an_edge_on_a_masked_pin_is_lost(controller: Controller) -> None:
    controller.program(4, MASKED | VECTOR)
    controller.ioapic.set_line(4, True)

    controller.program(4, VECTOR)
    assert controller.sent == []
    controller.ioapic.set_line(4, False)
    controller.ioapic.set_line(4, True)

    assert controller.sent == [VECTOR]


def test_a_level_is_sent_once_until_its_end_of_interrupt(controller: Controller) -> None:
    controller.program(9, LEVEL | VECTOR)

    controller.ioapic.set_line(9, True)
    controller.ioapic.set_line(9, True)

    assert controller.sent == [LEVEL | VECTOR]
    assert controller.get(0x10 + 2 * 9) == LEVEL | REMOTE_IRR | VECTOR


def test_a_level_that_lasts_is_sent_again_after_its_end_of_interrupt(
    controller: Controller,
) -> None:
    controller.program(9, LEVEL | VECTOR)
    controller.ioapic.set_line(9, True)

    controller.ioapic.end_of_interrupt(VECTOR)

    assert len(controller.sent) == 2


def test_a_level_that_has_gone_is_not_sent_again(controller: Controller) -> None:
    controller.program(9, LEVEL | VECTOR)
    controller.pulse(9)

    controller.ioapic.end_of_interrupt(VECTOR)

    assert len(controller.sent) == 1
    assert controller.get(0x10 + 2 * 9) == LEVEL | VECTOR


def test_an_end_of_interrupt_of_another_vector_changes_nothing(controller: Controller) -> None:
    controller.program(9, LEVEL | VECTOR)
    controller.ioapic.set_line(9, True)

    controller.ioapic.end_of_interrupt(VECTOR + 1)

    assert controller.get(0x10 + 2 * 9) & REMOTE_IRR


def test_a_masked_level_is_sent_when_it_is_unmasked(controller: Controller) -> None:
    controller.program(9, MASKED | LEVEL | VECTOR)
    controller.ioapic.set_line(9, True)
    assert controller.sent == []

    controller.program(9, LEVEL | VECTOR)

    assert controller.sent == [LEVEL | VECTOR]


def test_a_level_that_nobody_took_is_tried_again(controller: Controller) -> None:
    controller.program(9, LEVEL | VECTOR)
    controller.takes = False
    controller.ioapic.set_line(9, True)
    assert controller.get(0x10 + 2 * 9) & REMOTE_IRR == 0
    controller.takes = True

    controller.ioapic.retry()

    assert controller.sent == [LEVEL | VECTOR]


def test_linux_ends_an_interrupt_by_turning_the_entry_to_edge_and_back(
    controller: Controller,
) -> None:
    """The steps of arch/x86/kernel/apic/io_apic.c, __eoi_ioapic_pin, below version 0x20."""
    controller.program(9, LEVEL | VECTOR)
    controller.pulse(9)

    controller.program(9, MASKED | VECTOR)
    controller.program(9, LEVEL | VECTOR)

    assert controller.get(0x10 + 2 * 9) & REMOTE_IRR == 0


@pytest.mark.parametrize("mode", [NMI, EXTINT])
def test_other_modes_are_edges_even_where_the_entry_says_level(
    controller: Controller, mode: int
) -> None:
    controller.program(8, LEVEL | mode)

    controller.ioapic.set_line(8, True)
    controller.ioapic.retry()

    assert controller.sent == [mode]
    assert controller.get(0x10 + 2 * 8) & REMOTE_IRR == 0


def test_narrow_accesses_to_the_window_change_their_bytes_only(controller: Controller) -> None:
    controller.program(4, MASKED | LEVEL | VECTOR)
    controller.ioapic.write(SELECT, 1, 0x10 + 2 * 4)

    controller.ioapic.write(WINDOW, 1, 0x44)
    controller.ioapic.write(WINDOW + 1, 1, 0x01)

    assert controller.ioapic.read(WINDOW, 2) == 0x0144
    assert controller.ioapic.read(WINDOW, 4) == MASKED | 0x0144
