"""The EL1 physical timer of an arm64 CPU, as state, and accesses to it that trap.

Source: the Arm Architecture Reference Manual (DDI 0487), the chapter on the Generic Timer, and
"ISS encoding for an exception from MSR, MRS" of ESR_ELx. A guest's access traps because
CNTHCTL_EL2.EL1PCEN is clear; one to the counter itself does not.

Time is the counter's, and whoever runs the CPU asks: the timer has no thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

EC_SYSTEM_REGISTER = 0x18
"""The exception class of a trapped MSR, MRS or system instruction in AArch64."""

CTL_ENABLE, CTL_IMASK, CTL_ISTATUS = 1 << 0, 1 << 1, 1 << 2

_64_BITS = (1 << 64) - 1
_32_BITS = (1 << 32) - 1

# The number of XZR: reads as zero, and takes no result.
ZERO_REGISTER = 31


class SystemRegister(NamedTuple):
    """A system register's name in an instruction."""

    op0: int
    op1: int
    crn: int
    crm: int
    op2: int


class TimerRegister(Enum):
    """The timer's registers by their names in instructions."""

    TVAL = SystemRegister(3, 3, 14, 2, 0)
    CTL = SystemRegister(3, 3, 14, 2, 1)
    CVAL = SystemRegister(3, 3, 14, 2, 2)


TIMER_REGISTERS = {register.value: register for register in TimerRegister}


@dataclass(frozen=True, slots=True)
class Access:
    """A trapped MSR (a write, from general register ``rt``) or MRS (a read, into it)."""

    register: SystemRegister
    rt: int
    is_read: bool

    @classmethod
    def decode(cls, iss: int) -> Access:
        """From the instruction-specific syndrome: bits 24 to 0 of ESR_ELx."""
        register = SystemRegister(
            op0=iss >> 20 & 3,
            op1=iss >> 14 & 7,
            crn=iss >> 10 & 0xF,
            crm=iss >> 1 & 0xF,
            op2=iss >> 17 & 7,
        )
        return cls(register, iss >> 5 & 0x1F, bool(iss & 1))


class PhysicalTimer:
    """CNTP_CTL_EL0, CNTP_CVAL_EL0 and its other view, CNTP_TVAL_EL0.

    ``counter()`` is CNTPCT_EL0, a number of 64 bits that only grows. Belongs to its CPU's thread.
    """

    def __init__(self, counter: Callable[[], int]) -> None:
        self._counter = counter
        self._control = 0
        self._compare = 0

    def read(self, register: TimerRegister) -> int:
        """What MRS gives."""
        if register is TimerRegister.CVAL:
            return self._compare
        if register is TimerRegister.TVAL:
            return self._compare - self._counter() & _32_BITS
        return self._control | (CTL_ISTATUS if self._fires() else 0)

    def write(self, register: TimerRegister, value: int) -> None:
        """What MSR does with a value of 64 bits."""
        if register is TimerRegister.CVAL:
            self._compare = value & _64_BITS
        elif register is TimerRegister.TVAL:
            # A signed number of 32 bits, counted from now.
            distance = (value & _32_BITS ^ 1 << 31) - (1 << 31)
            self._compare = self._counter() + distance & _64_BITS
        else:
            self._control = value & (CTL_ENABLE | CTL_IMASK)

    def level(self) -> bool:
        """The level of its interrupt, PPI 14, now."""
        return self._fires() and not self._control & CTL_IMASK

    def deadline(self) -> int | None:
        """The value of the counter from which on the level is high; None if it will not be."""
        if self._control & (CTL_ENABLE | CTL_IMASK) != CTL_ENABLE:
            return None
        return self._compare

    def _fires(self) -> bool:
        return bool(self._control & CTL_ENABLE) and self._counter() >= self._compare
