"""ACPI fixed hardware: soft off, reset, and the power button's SCI."""

from __future__ import annotations

import pytest

from vmm.platform.pm import PowerManagement
from vmm.platform.ports import ACPI_RESET_VALUE, S5_SLEEP_TYPE
from vmm.platform.power import Reason

STATUS, ENABLE = 0, 2
BUTTON = 0x0100
SLEEP_NOW = 1 << 13


class Machine:
    """Power management with what it asked for and how its SCI moved."""

    def __init__(self) -> None:
        self.asked: list[Reason] = []
        self.sci: list[bool] = []
        self.pm = PowerManagement(self.sci.append, self.asked.append)


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_entering_s5_asks_for_power_off(machine: Machine) -> None:
    machine.pm.control.write(0, 2, S5_SLEEP_TYPE << 10)
    assert machine.asked == []

    machine.pm.control.write(0, 2, S5_SLEEP_TYPE << 10 | SLEEP_NOW)

    assert machine.asked == [Reason.POWER_OFF]


def test_s5_may_be_entered_by_a_store_to_the_high_byte_alone(machine: Machine) -> None:
    machine.pm.control.write(1, 1, (S5_SLEEP_TYPE << 10 | SLEEP_NOW) >> 8)

    assert machine.asked == [Reason.POWER_OFF]


def test_another_sleep_type_is_not_power_off(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.pm.control.write(0, 2, 1 << 10 | SLEEP_NOW)

    assert machine.asked == []
    assert "sleep type 1" in caplog.text


def test_sci_en_is_always_set_and_slp_en_never_reads_back(machine: Machine) -> None:
    machine.pm.control.write(0, 2, 1 << 10 | SLEEP_NOW)

    assert machine.pm.control.read(0, 2) == 1 << 10 | 1


def test_the_reset_register_takes_its_value_only(machine: Machine) -> None:
    machine.pm.reset.write(0, 1, ACPI_RESET_VALUE ^ 0xFF)
    assert machine.asked == []

    machine.pm.reset.write(0, 1, ACPI_RESET_VALUE)

    assert machine.asked == [Reason.RESET]


def test_the_power_button_raises_the_sci_until_its_status_is_cleared(machine: Machine) -> None:
    machine.pm.event.write(ENABLE, 2, BUTTON)

    machine.pm.press_power_button()
    machine.pm.press_power_button()
    assert machine.sci == [True]
    assert machine.pm.event.read(STATUS, 4) == BUTTON << 16 | BUTTON
    machine.pm.event.write(STATUS, 2, 0)
    assert machine.sci == [True]
    machine.pm.event.write(STATUS, 2, BUTTON)

    assert machine.sci == [True, False]
    assert machine.pm.event.read(STATUS, 2) == 0


def test_a_button_pressed_while_disabled_waits_for_the_guest_to_enable_it(
    machine: Machine,
) -> None:
    machine.pm.press_power_button()
    assert (machine.sci, machine.pm.event.read(STATUS, 2)) == ([], BUTTON)

    machine.pm.event.write(ENABLE, 2, BUTTON)

    assert machine.sci == [True]


def test_a_byte_written_to_the_status_clears_only_bits_of_that_byte(machine: Machine) -> None:
    machine.pm.press_power_button()

    machine.pm.event.write(STATUS, 1, 0xFF)
    assert machine.pm.event.read(STATUS, 2) == BUTTON
    machine.pm.event.write(STATUS + 1, 1, 0xFF)

    assert machine.pm.event.read(STATUS, 2) == 0


def test_the_clocks_enable_bit_keeps_what_linux_writes(machine: Machine) -> None:
    machine.pm.event.write(ENABLE, 2, BUTTON | 1 << 10)

    assert machine.pm.event.read(ENABLE, 2) == BUTTON | 1 << 10


def test_a_byte_written_to_the_enables_keeps_the_other_byte(machine: Machine) -> None:
    machine.pm.event.write(ENABLE, 2, BUTTON)

    machine.pm.event.write(ENABLE, 1, 0x20)

    assert machine.pm.event.read(ENABLE, 2) == BUTTON | 0x20
