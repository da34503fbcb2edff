"""The CMOS clock (Motorola MC146818): the host's time in UTC, and 128 bytes to keep.

The guest may set neither the time nor its format: it is the host's, in BCD and 24 hours. There
is no interrupt, hence no alarm.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from vmm.regmap import Register, RegisterMap

SECONDS, MINUTES, HOURS, DAY_OF_WEEK, DAY, MONTH, YEAR = 0, 2, 4, 6, 7, 8, 9
REGISTER_A, REGISTER_B, REGISTER_C, REGISTER_D = 10, 11, 12, 13
# Where the PC keeps the century; ACPI's FADT names it to the guest.
CENTURY = 0x32

# Register A: a 32768 Hz crystal, 1024 Hz periodic rate, as the PC's firmware leaves it. The bit
# "update in progress" (0x80) is never set.
A_32768_HZ_RATE_1024 = 0x26
B_24_HOURS = 0x02
D_VALID_RAM_AND_TIME = 0x80

SIZE = 128
# Bit 7 of the index port masks NMIs on a PC.
INDEX_MASK = 0x7F


class Rtc(RegisterMap):
    """Port 0x70, offset 0: index; port 0x71, offset 1: data. ``clock()`` gives Unix seconds."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        super().__init__(
            [
                Register(0, 1, "INDEX", lambda: self._index, self._write_index),
                Register(1, 1, "DATA", self._read_data, self._write_data),
            ]
        )
        self._clock = clock
        self._lock = threading.Lock()
        self._index = 0
        self._ram = bytearray(SIZE)
        self._snapshot_at = clock()
        self._time = _registers(self._snapshot_at)

    def _write_index(self, value: int, _mask: int) -> None:
        self._index = value & INDEX_MASK

    def _read_data(self) -> int:
        with self._lock:
            index = self._index
            if index == REGISTER_A or index in self._time:
                self._refresh(index)
            fixed = {
                REGISTER_A: A_32768_HZ_RATE_1024,
                REGISTER_B: B_24_HOURS,
                REGISTER_C: 0,
                REGISTER_D: D_VALID_RAM_AND_TIME,
            }
            return fixed.get(index, self._time.get(index, self._ram[index]))

    def _write_data(self, value: int, _mask: int) -> None:
        # What the fixed registers and the time hide is stored all the same, and never seen.
        self._ram[self._index] = value

    def _refresh(self, index: int) -> None:
        # A guest looks at "update in progress", and may then read for 244 us without the time
        # changing. So the time stands still until it looks again, or is a second old.
        now = self._clock()
        if index == REGISTER_A or abs(now - self._snapshot_at) >= 1:
            self._snapshot_at = now
            self._time = _registers(now)


def _registers(unix_time: float) -> dict[int, int]:
    # The clock's registers at that time, in BCD.
    utc = time.gmtime(unix_time)
    values = {
        SECONDS: min(utc.tm_sec, 59),
        MINUTES: utc.tm_min,
        HOURS: utc.tm_hour,
        # 1 is Sunday; in Python 0 is Monday.
        DAY_OF_WEEK: (utc.tm_wday + 1) % 7 + 1,
        DAY: utc.tm_mday,
        MONTH: utc.tm_mon,
        YEAR: utc.tm_year % 100,
        CENTURY: utc.tm_year // 100,
    }
    return {register: value // 10 << 4 | value % 10 for register, value in values.items()}
