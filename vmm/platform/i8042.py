"""The keyboard controller, without keyboard or mouse: what is left of it is the reset line.

Reads give what an empty bus gives, ones, except that the input buffer is never full: Linux
then reads 16 bytes, finds no end to them and says that there is no controller
(drivers/input/serio/i8042.c, i8042_flush), and on a reboot it does not wait for the buffer
(arch/x86/kernel/reboot.c, kb_wait).
"""

from __future__ import annotations

from vmm.platform.power import Reason, Request
from vmm.regmap import Register, RegisterMap

INPUT_BUFFER_FULL = 1 << 1
PULSE_RESET_LINE = 0xFE


class I8042:
    """Two ports: ``data``, and ``command``, which takes one command, the pulse on reset."""

    def __init__(self, request: Request) -> None:
        self.data = RegisterMap([Register(0, 1, "DATA", lambda: 0xFF, lambda _value, _mask: None)])
        self.command = RegisterMap(
            [Register(0, 1, "STATUS, COMMAND", lambda: 0xFF & ~INPUT_BUFFER_FULL, self._command)]
        )
        self._request = request

    def _command(self, command: int, _mask: int) -> None:
        if command == PULSE_RESET_LINE:
            self._request(Reason.RESET)
