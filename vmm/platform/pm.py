"""ACPI's fixed hardware: power button, soft off and reset (ACPI 6.4, tables 4.11 to 4.13).

::

    PM1a event    +0  PM1_STS  ones clear        PM1a control  +0  PM1_CNT
                  +2  PM1_EN                     reset         +0  RESET_REG

The SCI is a level: high while a status bit and its enable bit are both set.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from vmm.platform import ports
from vmm.platform.power import Reason, Request
from vmm.regmap import Register, RegisterMap

log = logging.getLogger(__name__)

# Status and enable, tables 4.11 and 4.12. The power button is the only fixed event that this
# machine has; the enable bits of the global lock and of the clock's alarm, too, must keep what
# Linux writes, or it says that it cannot enable them (drivers/acpi/acpica/evxfevnt.c).
PWRBTN = 1 << 8
GBL = 1 << 5
RTC = 1 << 10

# Control, table 4.13.
SCI_EN = 1 << 0
SLP_TYP_SHIFT = 10
SLP_TYP_MASK = 0b111 << SLP_TYP_SHIFT
SLP_EN = 1 << 13
# SLP_EN and GBL_RLS (bit 2) are write-only; BM_RLD (bit 1) and SLP_TYP keep what is written.
CNT_WRITABLE = 1 << 1 | SLP_TYP_MASK


class PowerManagement:
    """Three devices for the bus, ``event``, ``control`` and ``reset``, and the power button.

    ``set_sci(level)`` is called, with the lock held, when the interrupt line changes.
    """

    def __init__(self, set_sci: Callable[[bool], None], request: Request) -> None:
        self.event = RegisterMap(
            [
                Register(0, 2, "PM1_STS", lambda: self._status, self._clear_status),
                Register(2, 2, "PM1_EN", lambda: self._enable, self._write_enable),
            ]
        )
        # Without an SMI command port the machine is in ACPI mode from the start, for good.
        self.control = RegisterMap(
            [Register(0, 2, "PM1_CNT", lambda: self._control | SCI_EN, self._write_control)]
        )
        self.reset = RegisterMap([Register(0, 1, "RESET_REG", lambda: 0, self._write_reset)])
        self._set_sci, self._request = set_sci, request
        self._lock = threading.Lock()
        self._status = self._enable = self._control = 0
        self._line = False

    def press_power_button(self) -> None:
        """From any thread: asks the guest to shut down, if it listens."""
        with self._lock:
            self._status |= PWRBTN
            self._update()

    def _clear_status(self, value: int, _mask: int) -> None:
        with self._lock:
            self._status &= ~value
            self._update()

    def _write_enable(self, value: int, mask: int) -> None:
        with self._lock:
            self._enable = (self._enable & ~mask | value) & (PWRBTN | GBL | RTC)
            self._update()

    def _write_control(self, value: int, mask: int) -> None:
        with self._lock:
            self._control = (self._control & ~mask | value) & CNT_WRITABLE
            sleep_type = (self._control & SLP_TYP_MASK) >> SLP_TYP_SHIFT
        if not value & SLP_EN:
            return
        if sleep_type == ports.S5_SLEEP_TYPE:
            self._request(Reason.POWER_OFF)
        else:
            log.warning("the guest asked for sleep type %d, which ACPI does not offer", sleep_type)

    def _write_reset(self, value: int, _mask: int) -> None:
        if value == ports.ACPI_RESET_VALUE:
            self._request(Reason.RESET)

    def _update(self) -> None:
        # Called with the lock held, after every change.
        line = bool(self._status & self._enable)
        if line != self._line:
            self._line = line
            self._set_sci(line)
