"""The keyboard controller that is none: absent to a probe, present to a reset."""

from __future__ import annotations

from vmm.platform.i8042 import I8042
from vmm.platform.power import Reason


def test_the_pulse_command_asks_for_a_reset_and_nothing_else_does() -> None:
    asked: list[Reason] = []
    keyboard = I8042(asked.append)

    for command in (0x00, 0x20, 0xAA, 0xFF):
        keyboard.command.write(0, 1, command)
    keyboard.data.write(0, 1, 0xFE)
    assert asked == []
    keyboard.command.write(0, 1, 0xFE)

    assert asked == [Reason.RESET]


def test_linux_finds_no_controller_and_never_waits_to_send_a_command() -> None:
    keyboard = I8042(lambda _reason: None)

    # i8042_flush gives up after 16 bytes without end; kb_wait needs the input buffer empty.
    for _ in range(17):
        assert keyboard.command.read(0, 1) & 0x01
        assert keyboard.data.read(0, 1) == 0xFF
    assert keyboard.command.read(0, 1) & 0x02 == 0
