"""A Unicorn engine that is an arm64 processor at EL1, with arm64.c for its exceptions."""

from __future__ import annotations

import mmap
from enum import IntEnum
from functools import cache
from typing import Any

from protocol.errors import HostError
from vmm.hypervisor.software import unicorn
from vmm.hypervisor.software._engine import ffi, lib
from vmm.hypervisor.software.engine import Engine, ours, theirs
from vmm.hypervisor.software.unicorn import Hook
from vmm.interrupts.arm_timer import SystemRegister

# UC_CPU_ARM64_A72. One with SVE would trap the first such instruction to an EL3 that is not there.
_MODEL_A72 = 2

# Behind the syndrome: the address at 8, the exception level at 16 (measured, 2.1.4).
_ADDRESS, _TARGET = 8, 16

# svc #0x1234, and its syndrome: class 0x15, IL, the number.
_PROBE = bytes.fromhex("814602d4")
_SYNDROME = 0x5600_1234
_PROBE_AT = 0x1000


class Register(IntEnum):
    """Registers by their numbers in ``unicorn/arm64.h``."""

    NONE = 0
    X29 = 1
    X30 = 2
    SP = 4
    X0 = 199
    PC = 260
    PSTATE = 265
    ELR_EL1 = 267
    SP_EL0 = 270
    SP_EL1 = 271
    ESR_EL1 = 277
    FAR_EL1 = 281
    VBAR_EL1 = 287
    SYSTEM = 290


GENERAL = (*range(Register.X0, Register.X0 + 29), int(Register.X29), int(Register.X30))
"""x0 to x30."""

SCR_EL3 = SystemRegister(3, 6, 1, 1, 0)
HCR_EL2 = SystemRegister(3, 4, 1, 1, 0)
CNTHCTL_EL2 = SystemRegister(3, 4, 14, 1, 0)
CNTPCT_EL0 = SystemRegister(3, 3, 14, 0, 1)
CPACR_EL1 = SystemRegister(3, 0, 1, 0, 2)

# Non-secure, HVC, all levels AArch64, and the two bits that are always one (Arm ARM, SCR_EL3).
# Without these the engine takes EL1 for AArch32, and HVC for undefined.
_SCR_NS_HCE_RW = 0x531
_HCR_RW, _HCR_IMO, _HCR_VI = 1 << 31, 1 << 4, 1 << 7
# The counter does not trap (EL1PCTEN), the timer does (EL1PCEN).
_CNTHCTL_EL1PCTEN = 1 << 0
# EL1 and EL0 may use floating point: a C compiler does, and there is nobody to ask before.
_CPACR_FPEN = 3 << 20


class Arm64Engine(Engine):
    """The processor, as a boot loader leaves it. ``arm`` is struct arm64 of arm64.h, in which
    ``state`` lies."""

    _ARCHITECTURE = (unicorn.ARCH_ARM64, unicorn.MODE_ARM)
    _MODEL = _MODEL_A72
    _PROGRAM_COUNTER = Register.PC
    _TRANSLATE = "arm64_translate"

    def _new_state(self) -> Any:
        self.arm = ffi.new("struct arm64 *")
        return ffi.addressof(self.arm[0], "engine")

    def _set_up(self) -> None:
        super()._set_up()
        function = ffi.typeof(self.arm.reg_write_batch)
        address = ours(unicorn.address_of("uc_reg_write_batch"))
        self.arm.reg_write_batch = ffi.cast(function, address)
        numbers = self.arm.reg
        numbers.pc, numbers.sp, numbers.pstate = Register.PC, Register.SP, Register.PSTATE
        numbers.sp_el0, numbers.sp_el1 = Register.SP_EL0, Register.SP_EL1
        numbers.elr, numbers.esr = Register.ELR_EL1, Register.ESR_EL1
        numbers.far, numbers.vbar = Register.FAR_EL1, Register.VBAR_EL1
        numbers.system = Register.SYSTEM
        self.write_system(SCR_EL3, _SCR_NS_HCE_RW)
        self.write_system(CNTHCTL_EL2, _CNTHCTL_EL1PCTEN)
        self.write_system(CPACR_EL1, _CPACR_FPEN)
        self.set_line(False)

    def run(self) -> int:
        """Run the guest from where it stands; the engine's error, or 0. Releases the GIL."""
        return int(self._library.uc_emu_start(self.uc, self.read(Register.PC), 0, 0, 0))

    def teach(self, syndrome: int) -> None:
        """Where the context has the syndrome of an exception, and what lies around it."""
        self.arm.syndrome = ffi.cast("uint32_t *", self._at(syndrome))
        self.arm.address = ffi.cast("uint64_t *", self._at(syndrome + _ADDRESS))
        self.arm.target = ffi.cast("uint32_t *", self._at(syndrome + _TARGET))

    def set_line(self, level: bool) -> None:
        """The level of the IRQ line; the processor takes it when it lets itself."""
        self.write_system(HCR_EL2, _HCR_RW | _HCR_IMO | (_HCR_VI if level else 0))

    def read_system(self, register: SystemRegister) -> int:
        """A system register."""
        name = ffi.new("struct arm64_system_register *", register._asdict())
        self._library.uc_reg_read(self.uc, int(Register.SYSTEM), theirs(name))
        return int(name.value)

    def write_system(self, register: SystemRegister, value: int) -> None:
        """Set a system register."""
        name = ffi.new("struct arm64_system_register *", {**register._asdict(), "value": value})
        self._library.uc_reg_write(self.uc, int(Register.SYSTEM), theirs(name))

    def counter(self) -> int:
        """CNTPCT_EL0, as the guest reads it."""
        return self.read_system(CNTPCT_EL0)


@cache
def find_syndrome() -> int:
    """Where a context has the syndrome: found by an instruction of which it is known.

    HostError if it is nowhere: it is another version of Unicorn.
    """
    memory = mmap.mmap(-1, 4096)
    memory[: len(_PROBE)] = _PROBE
    engine = Arm64Engine()
    try:
        with ffi.from_buffer(memory) as view:
            engine.map_ram(_PROBE_AT, 4096, view)
            engine.hook(Hook.INTERRUPT, ffi.addressof(lib, "engine_on_probe"), engine.state)
            engine.write(Register.PC, _PROBE_AT)
            engine.run()
            found = bytes(engine.context()).find(_SYNDROME.to_bytes(4, "little"))
    finally:
        engine.close()
        memory.close()
    if found < 0:
        raise HostError(
            "the software CPU does not know the layout of this Unicorn; "
            f"install the one that it knows: {unicorn.INSTALL}"
        )
    return found
