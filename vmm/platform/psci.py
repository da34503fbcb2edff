"""PSCI 1.0: how an arm64 guest asks for power to be switched, by HVC (Arm DEN 0022;
numbers as in <linux/psci.h>; the calling convention is SMCCC 1.0, Arm DEN 0028).

The function's number is in w0, its arguments from x1 on, the answer in x0. A machine with one CPU:
the CPU that calls is the one there is.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum

_64_BITS = (1 << 64) - 1
_32_BITS = (1 << 32) - 1

VERSION_1_0 = 1 << 16

# SMCCC: set for a call whose arguments are 64 bits wide.
_WIDE = 1 << 30


class Function(IntEnum):
    """The functions that are answered; those below also exist with 64-bit arguments."""

    PSCI_VERSION = 0x8400_0000
    CPU_SUSPEND = 0x8400_0001
    CPU_OFF = 0x8400_0002
    CPU_ON = 0x8400_0003
    AFFINITY_INFO = 0x8400_0004
    MIGRATE_INFO_TYPE = 0x8400_0006
    SYSTEM_OFF = 0x8400_0008
    SYSTEM_RESET = 0x8400_0009
    PSCI_FEATURES = 0x8400_000A


_ALSO_WIDE = (Function.CPU_SUSPEND, Function.CPU_ON, Function.AFFINITY_INFO)
_FUNCTIONS = {int(function): function for function in Function}
_FUNCTIONS |= {function | _WIDE: function for function in _ALSO_WIDE}


class Return(IntEnum):
    """Answers that are errors, or none."""

    SUCCESS = 0
    NOT_SUPPORTED = -1
    INVALID_PARAMETERS = -2
    DENIED = -3
    ALREADY_ON = -4


# AFFINITY_INFO: the CPU runs.
AFFINITY_ON = 0
# MIGRATE_INFO_TYPE: there is no Trusted OS that would have to move.
NOTHING_TO_MIGRATE = 2

# The affinity fields of MPIDR_EL1, in the two widths.
_AFFINITY_32, _AFFINITY_64 = 0x00FF_FFFF, 0xFF_00FF_FFFF


class Action(Enum):
    """What the vCPU has to do, beside giving the answer."""

    GO_ON = "go on"
    WAIT = "wait for an interrupt, as WFI does"
    POWER_OFF = "stop: the guest powered off"
    RESET = "stop: the guest asked for a reset"


@dataclass(frozen=True, slots=True)
class Answer:
    """``x0`` as the caller finds it, and what the vCPU does before."""

    x0: int
    action: Action = Action.GO_ON


def call(function: int, x1: int, x2: int) -> Answer:
    """The answer to the call with these registers, x0 first; any of them may be anything."""
    number = function & _32_BITS
    known = _FUNCTIONS.get(number)
    if known is None:
        return _returns(Return.NOT_SUPPORTED)
    if not number & _WIDE:
        x1, x2 = x1 & _32_BITS, x2 & _32_BITS
    target = x1 & (_AFFINITY_64 if number & _WIDE else _AFFINITY_32)
    match known:
        case Function.PSCI_VERSION:
            return Answer(VERSION_1_0)
        case Function.CPU_SUSPEND:
            # A power-down may be answered by standing by: the call returns at the wake-up.
            return Answer(Return.SUCCESS, Action.WAIT)
        case Function.CPU_OFF:
            # Nobody would be left to switch it on again.
            return _returns(Return.DENIED)
        case Function.CPU_ON:
            return _returns(Return.INVALID_PARAMETERS if target else Return.ALREADY_ON)
        case Function.AFFINITY_INFO:
            # Levels above 0 need not be known from 1.0 on.
            return _returns(Return.INVALID_PARAMETERS) if target or x2 else Answer(AFFINITY_ON)
        case Function.MIGRATE_INFO_TYPE:
            return Answer(NOTHING_TO_MIGRATE)
        case Function.SYSTEM_OFF:
            return Answer(Return.SUCCESS, Action.POWER_OFF)
        case Function.SYSTEM_RESET:
            return Answer(Return.SUCCESS, Action.RESET)
        case Function.PSCI_FEATURES:
            # No function has an optional feature; of the calling convention it is the first one.
            return _returns(Return.SUCCESS if x1 & _32_BITS in _FUNCTIONS else Return.NOT_SUPPORTED)


def _returns(value: Return) -> Answer:
    return Answer(value & _64_BITS)
