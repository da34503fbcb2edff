"""The board: every platform device at its address, its interrupt line and its request."""

from __future__ import annotations

import pytest

from vmm.bus import Bus
from vmm.platform.board import Arm64Board, Board, board_of
from vmm.platform.ports import ACPI_RESET, ACPI_RESET_VALUE, S5_SLEEP_TYPE
from vmm.platform.power import Reason


class Machine:
    """A bus with a board, and what it did to the outside."""

    def __init__(self, kind: type[Board | Arm64Board] = Board) -> None:
        self.bus = Bus()
        self.lines: list[tuple[int, bool]] = []
        self.printed = bytearray()
        self.asked: list[Reason] = []
        self.board = kind(
            self.bus,
            lambda gsi, level: self.lines.append((gsi, level)),
            self.printed.extend,
            self.asked.append,
        )


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_both_consoles_print(machine: Machine) -> None:
    machine.bus.pio_write(0x3F8, 1, ord("p"))
    machine.bus.mmio_write(0x9000_0000, 4, ord("m"))

    assert machine.printed == b"pm"


@pytest.mark.parametrize(
    ("port", "size", "value", "reason"),
    [
        (0x604, 2, S5_SLEEP_TYPE << 10 | 1 << 13, Reason.POWER_OFF),
        (0x64, 1, 0xFE, Reason.RESET),
        (ACPI_RESET, 1, ACPI_RESET_VALUE, Reason.RESET),
        (0x505, 1, 1, Reason.PANIC),
    ],
)
def test_each_way_to_end_reaches_the_machine(
    machine: Machine, port: int, size: int, value: int, reason: Reason
) -> None:
    machine.bus.pio_write(port, size, value)

    assert machine.asked == [reason]


def test_interrupts_arrive_on_the_lines_of_a_pc(machine: Machine) -> None:
    machine.bus.pio_write(0x3FC, 1, 0x08)
    machine.bus.pio_write(0x3F9, 1, 0x01)
    machine.board.uart.receive(b"x")
    machine.bus.pio_write(0x602, 2, 0x0100)
    machine.board.pm.press_power_button()

    assert machine.lines == [(4, True), (9, True)]


def test_what_is_typed_goes_to_the_console_that_the_guest_spoke_on_last(machine: Machine) -> None:
    board = machine.board
    at_first = board.keyboard
    machine.bus.mmio_write(0x9000_0000, 4, ord("!"))
    then = board.keyboard
    machine.bus.pio_write(0x3F8, 1, ord("!"))

    assert at_first is board.uart
    assert then is board.mmio_console
    assert board.keyboard is board.uart


def test_the_clock_answers_at_its_ports(machine: Machine) -> None:
    machine.bus.pio_write(0x70, 1, 0x0D)

    assert machine.bus.pio_read(0x71, 1) == 0x80


def test_an_arm64_machine_has_one_console_with_an_interrupt_and_no_ports() -> None:
    machine = Machine(board_of("arm64"))
    machine.bus.mmio_write(0x9000_0000, 4, ord("m"))
    machine.bus.mmio_write(0x9000_0004, 1, 0x08)
    machine.bus.mmio_write(0x9000_0001, 1, 0x01)
    machine.board.keyboard.receive(b"x")

    assert machine.printed == b"m"
    assert machine.lines == [(4, True)]
    assert machine.bus.mmio_read(0x9000_0000, 1) == ord("x")
    assert machine.bus.pio_read(0x3F8, 1) == 0xFF
    assert not machine.board.press_power_button()
    assert Machine(board_of("x86_64")).board.press_power_button()
