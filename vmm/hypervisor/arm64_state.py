"""The first state of an arm64 machine's boot CPU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Arm64State:
    """What CPU 0 starts with: EL1 on its own stack pointer (EL1h), MMU and caches off, debug,
    SError, IRQ and FIQ masked, the registers not named zero.

    ``x0`` is what a kernel is given as its device tree.
    """

    pc: int
    x0: int = 0
    sp: int = 0
