"""An arm64 machine in software: the vCPU, and what its VM has in place of a PC's.

::

    device, timer ──► GIC ──► HCR_EL2.VI ──► the engine takes it, if PSTATE lets it
    HVC ──► PSCI                      MRS, MSR of CNTP_* ──► the timer
    all other exceptions to EL1 ──► arm64.c
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from protocol.errors import GuestDied
from vmm import arm64_map
from vmm.hypervisor.arm64_state import Arm64State
from vmm.hypervisor.base import Stop
from vmm.hypervisor.software import missing
from vmm.hypervisor.software._engine import ffi, lib
from vmm.hypervisor.software.arm64_engine import (
    GENERAL,
    Arm64Engine,
    Register,
    find_syndrome,
)
from vmm.hypervisor.software.unicorn import Hook
from vmm.hypervisor.software.vcpu import SoftwareVcpu
from vmm.hypervisor.software.vm import SoftwareVm
from vmm.interrupts.arm import ArmInterrupts
from vmm.interrupts.arm_timer import TIMER_REGISTERS, ZERO_REGISTER, Access
from vmm.platform import psci
from vmm.platform.psci import Action

_STOPS = {Action.POWER_OFF: Stop.POWERED_OFF, Action.RESET: Stop.RESET}

_ISS = (1 << 25) - 1
# How much code a dump shows: four instructions.
_DUMPED = 16


class Arm64Vcpu(SoftwareVcpu):
    """The one vCPU of an arm64 machine."""

    _engine: Arm64Engine
    _vm: Arm64Vm

    def _prepare(self) -> None:
        self._engine.teach(find_syndrome())
        self._line = False
        self._waits = False

    def _hook(self) -> None:
        engine, own = self._engine, self._handle
        engine.arm.handle, engine.arm.ask = own, lib.software_arm64_ask
        at = ffi.addressof
        engine.hook(Hook.BLOCK, at(lib, "engine_on_block"), self._state)
        engine.hook(Hook.TRANSLATED, at(lib, "engine_on_translation"), self._state)
        engine.hook(Hook.INTERRUPT, at(lib, "arm64_on_exception"), engine.arm)
        engine.hook(Hook.READ_PROTECTED, at(lib, "engine_on_read"), self._state)
        engine.hook(Hook.WRITE_PROTECTED, at(lib, "engine_on_write"), self._state)
        engine.hook(Hook.UNMAPPED | Hook.FETCH_PROTECTED, lib.software_on_bad_access, own)

    def start_at(self, state: Arm64State) -> None:
        """What boot wants the processor to begin with."""
        engine = self._engine
        engine.write(Register.PC, state.pc)
        engine.write(Register.SP, state.sp)
        engine.write(GENERAL[0], state.x0)

    def read_general(self, index: int) -> int:
        """Register x0 to x30."""
        return self._engine.read(GENERAL[index])

    def write_general(self, index: int, value: int) -> None:
        """Set register x0 to x30."""
        self._engine.write(GENERAL[index], value)

    # ── interrupts ────────────────────────────────────────────────────────────────────

    def _interrupt(self) -> None:
        if self._waits:
            self._waits = False
            self._halt()
        self._set_line()

    def _set_line(self) -> None:
        # The GIC's line, to the processor. On this thread only, in a run or between two; what makes
        # it rise during one stops that as well (wake), or a loop would not see it.
        chips = self._vm.chips
        line = chips is not None and chips.pending()
        if line != self._line:
            self._line = line
            self._engine.set_line(line)

    def _halt(self) -> None:
        chips = self._vm.chips
        while chips is not None and not chips.pending() and not self._kicked:
            self._vm.sleep()
            self._vm.service()

    def read(self, gpa: int, size: int) -> int:
        """The guest reads where there is no memory."""
        value = super().read(gpa, size)
        self._set_line()
        return value

    def write(self, gpa: int, size: int, value: int) -> None:
        """The guest writes where there is no memory."""
        super().write(gpa, size, value)
        self._set_line()

    # ── what the guest asks of the hypervisor ─────────────────────────────────────────

    def ask(self, what: int, syndrome: int) -> bool:
        """HVC, or an access to a system register that traps; False if there is none such."""
        if what == lib.ARM64_CALL:
            self._call()
            return True
        access = Access.decode(syndrome & _ISS)
        register = TIMER_REGISTERS.get(access.register)
        chips = self._vm.chips
        if register is None or chips is None:
            return False
        if access.is_read:
            if access.rt != ZERO_REGISTER:
                self._engine.write(GENERAL[access.rt], chips.timer.read(register))
            return True
        value = 0 if access.rt == ZERO_REGISTER else self._engine.read(GENERAL[access.rt])
        chips.timer.write(register, value)
        chips.tick()
        self._vm.set_timer()
        self._set_line()
        return True

    def _call(self) -> None:
        function, x1, x2 = (self._engine.read(number) for number in GENERAL[:3])
        answer = psci.call(function, x1, x2)
        self._engine.write(GENERAL[0], answer.x0)
        self._stop = _STOPS.get(answer.action)
        self._waits = answer.action is Action.WAIT
        if answer.action is not Action.GO_ON:
            lib.engine_stop(self._state)

    def _name_missing(self, code: bytes) -> str | None:
        return missing.name_arm64(code)

    # ── its end ───────────────────────────────────────────────────────────────────────

    def _fatal(self, exception: int) -> str:
        level, syndrome = self._engine.arm.target[0], self._engine.arm.syndrome[0]
        if level == 1:
            return "it runs 32-bit code, which the software CPU does not know"
        return f"an exception to EL{level}, which is not there (number {exception}, {syndrome:#x})"

    def _died(self, why: str) -> GuestDied:
        read = self._engine.read
        pc = read(Register.PC)
        lines = [f"the guest died on CPU {self.index}: {why}"]
        named = ("PC", "SP", "PSTATE", "ELR_EL1", "ESR_EL1", "FAR_EL1", "VBAR_EL1")
        values = [(name.lower(), read(Register[name])) for name in named]
        values += [(f"x{index}", read(number)) for index, number in enumerate(GENERAL)]
        for at in range(0, len(values), 4):
            row = (f"{name:<8} {value:016x}" for name, value in values[at : at + 4])
            lines.append("  " + "  ".join(row))
        gpa = ffi.new("uint64_t *")
        mapped = lib.engine_translate(self._state, pc, gpa)
        code = self._vm.read(gpa[0], _DUMPED).hex(" ", 4) if mapped else ""
        lines.append(f"  code at pc: {code or 'not in memory'}")
        return GuestDied("\n".join(lines))


class Arm64Vm(SoftwareVm):
    """A VM with an arm64 processor, a GICv2 and the physical timer."""

    _CHIPS = range(
        arm64_map.GIC_DISTRIBUTOR, arm64_map.GIC_CPU_INTERFACE + arm64_map.GIC_CPU_INTERFACE_SIZE
    )

    def _new_engine(self) -> Any:
        return Arm64Engine()

    def _new_chips(self) -> Any:
        return ArmInterrupts(self.chip_bus, counter=self._engine.counter, wake=self.wake)

    def _new_vcpu(self) -> Any:
        return Arm64Vcpu(self, self._engine)


_called: Callable[[Any], Any] = ffi.def_extern()


@_called
def software_arm64_ask(what: int, syndrome: int, handle: Any) -> bool:
    vcpu: Arm64Vcpu = ffi.from_handle(handle)
    try:
        return vcpu.ask(what, syndrome)
    except BaseException as error:
        vcpu.fail(error)
        return True
