"""The first state of an arm64 machine's boot CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from vmm.hypervisor.base import Vcpu


class _Arm64Vcpu(Protocol):
    def start_at(self, state: Arm64State) -> None: ...


@dataclass(frozen=True, slots=True)
class Arm64State:
    """What CPU 0 starts with: EL1 on its own stack pointer (EL1h), MMU and caches off, debug,
    SError, IRQ and FIQ masked, the registers not named zero.

    ``x0`` is what a kernel is given as its device tree.
    """

    pc: int
    x0: int = 0
    sp: int = 0

    def enter(self, vcpu: Vcpu) -> None:
        """Make it the state of ``vcpu``, which is an arm64 one."""
        cast(_Arm64Vcpu, vcpu).start_at(self)
