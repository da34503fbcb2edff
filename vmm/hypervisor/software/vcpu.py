"""A vCPU in software: the loop between the engine's runs, and what the guest asks during them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from protocol.errors import GuestDied
from vmm.hypervisor import death
from vmm.hypervisor.base import ExitHandler, Stop
from vmm.hypervisor.software import cpuid, missing, registers, unicorn
from vmm.hypervisor.software._engine import ffi, lib
from vmm.hypervisor.software.engine import Engine, facts
from vmm.hypervisor.software.unicorn import Access, Hook, Instruction, Register
from vmm.hypervisor.state import Regs, Sregs

if TYPE_CHECKING:
    from vmm.hypervisor.software.vm import SoftwareVm

log = logging.getLogger(__name__)

Bells = dict[tuple[int, int | None], Callable[[], object]]
"""The doorbells at one address, by size (0: any) and value (None: any): what a write calls."""

_Function = TypeVar("_Function", bound=Callable[..., Any])

_CPUID_ANSWER = (Register.RAX, Register.RBX, Register.RCX, Register.RDX)

_ALL_ONES = (1 << 64) - 1

_NMI: int = lib.VECTOR_NMI


class SoftwareVcpu:
    """The one vCPU (hypervisor.base.Vcpu); made by SoftwareVm.create_vcpu."""

    def __init__(self, vm: SoftwareVm, engine: Engine) -> None:
        self.index = 0
        self.run_returns = 0
        self._vm = vm
        self._engine = engine
        self._state = engine.state
        self._kicked = False
        self._thread = 0
        self._error: BaseException | None = None
        self._why = ""
        self._handler: ExitHandler | None = None
        self._stop: Stop | None = None  # what the guest asked of the hypervisor itself
        self._noted = 0  # of the places in the engine's state
        self._prepare()
        self._handle = ffi.new_handle(self)
        self._state.vcpu = self._handle
        self._state.read, self._state.write = lib.software_on_read, lib.software_on_write
        self._hook()

    def _prepare(self) -> None:
        self._cpuid = cpuid.answers(facts().cpuid, Tsc().hz)
        self._engine.teach(facts().error_code)

    def _hook(self) -> None:
        engine, state, own = self._engine, self._state, self._handle
        at = ffi.addressof
        engine.hook(Hook.BLOCK, at(lib, "engine_on_block"), state)
        engine.hook(Hook.TRANSLATED, at(lib, "engine_on_translation"), state)
        engine.hook(Hook.INTERRUPT, at(lib, "engine_on_exception"), state)
        engine.hook(Hook.INVALID, at(lib, "engine_on_invalid"), state)
        engine.hook(Hook.INSTRUCTION, at(lib, "engine_on_syscall"), state, Instruction.SYSCALL)
        engine.hook(Hook.INSTRUCTION, lib.software_on_cpuid, own, Instruction.CPUID)
        engine.hook(Hook.INSTRUCTION, lib.software_on_port_read, own, Instruction.IN)
        engine.hook(Hook.INSTRUCTION, lib.software_on_port_write, own, Instruction.OUT)
        engine.hook(Hook.READ_PROTECTED, at(lib, "engine_on_read"), state)
        engine.hook(Hook.WRITE_PROTECTED, at(lib, "engine_on_write"), state)
        engine.hook(Hook.UNMAPPED | Hook.FETCH_PROTECTED, lib.software_on_bad_access, own)

    # ── running ───────────────────────────────────────────────────────────────────────

    def run(self, handler: ExitHandler) -> Stop:
        """Run the guest on this thread until it stops (hypervisor.base.Vcpu.run)."""
        self._handler = handler
        self._thread = threading.get_ident()
        try:
            while True:
                # 1. What came from outside, between two blocks of the guest's code. Whoever comes
                # after this first line stops the run before it begins.
                lib.engine_arm(self._state)
                if self._take_kick():
                    return Stop.KICKED
                self._vm.service()
                self._interrupt()
                # 2. Run the guest. Its exits are answered from inside, below.
                error = self._engine.run()
                self.run_returns += 1
                self._note_invalid()
                self._check(error)
                if self._stop is not None:
                    stop, self._stop = self._stop, None
                    return stop
                # 3. Why did it come back: a stop, or HLT.
                if not lib.engine_was_stopped(self._state):
                    if self._vm.chips is None:
                        return Stop.HALTED
                    self._halt()
        finally:
            self._thread = 0
            self._handler = None

    def kick(self) -> None:
        """Make :meth:`run` return (hypervisor.base.Vcpu.kick)."""
        self._kicked = True
        lib.engine_stop(self._state)
        self._vm.wake()

    def _take_kick(self) -> bool:
        kicked, self._kicked = self._kicked, False
        return kicked

    def _interrupt(self) -> None:
        # Deliver what can be. What the guest keeps waiting ends the run where it lets it in.
        if (chips := self._vm.chips) is None:
            return
        while (nmi := chips.pending_nmi()) or chips.pending() is not None:
            if not lib.engine_takes(self._state, nmi):
                return
            if nmi:
                chips.take_nmi()
            lib.engine_interrupt(self._state, _NMI if nmi else chips.acknowledge())
            if self._state.died_of >= 0:
                self._check(0)

    def _halt(self) -> None:
        # HLT is behind rip already: sleep until there is something to go on for.
        chips = self._vm.chips
        assert chips is not None
        while chips.pending() is None and not chips.pending_nmi() and not self._kicked:
            self._vm.sleep()
            self._vm.service()

    def _note_invalid(self) -> None:
        # The first few places; what more there are is not noted.
        while self._noted < self._state.invalid_count:
            at = int(self._state.invalid[self._noted])
            self._noted += 1
            code = self._code_at(at)
            if (words := self._name_missing(code)) is not None:
                log.warning(
                    "the guest met %s at %#x that the software CPU lacks (%s), and was told so",
                    words,
                    at,
                    code.hex(" "),
                )

    def _name_missing(self, code: bytes) -> str | None:
        return missing.name(code)

    def _check(self, error: int) -> None:
        if self._error is not None:
            error_of_ours, self._error = self._error, None
            raise error_of_ours
        if self._state.died_of >= 0:
            raise self._died(self._fatal(self._state.died_of))
        if error:
            raise self._died(self._why or f"the software CPU gave up: {unicorn.error_text(error)}")

    def _fatal(self, exception: int) -> str:
        return f"triple fault, after exception {exception} could not be delivered"

    def _died(self, why: str) -> GuestDied:
        regs, sregs = self.get_regs(), self.get_sregs()
        return death.guest_died(self.index, why, regs, sregs, self._code_at(regs.rip))

    def _code_at(self, linear: int) -> bytes:
        code = b""
        gpa = ffi.new("uint64_t *")
        while len(code) < death.MAX_INSTRUCTION:
            here = min(death.MAX_INSTRUCTION - len(code), 4096 - (linear + len(code)) % 4096)
            if not lib.engine_translate(self._state, linear + len(code), gpa):
                break
            found = self._vm.read(gpa[0], here)
            code += found
            if len(found) < here:
                break
        return code

    # ── what the guest asks, in the middle of a run ───────────────────────────────────

    def fail(self, error: BaseException) -> None:
        """An answer raised ``error``: the run ends with it, at the next block, and until then
        nobody answers."""
        if self._error is None:
            self._error = error
        self._handler = None
        lib.engine_stop(self._state)

    def port_read(self, port: int, size: int) -> int:
        """The guest reads a port."""
        if not self._may_use_ports():
            return (1 << 8 * size) - 1
        if port in self._vm.chip_ports:
            return self._vm.chip_bus.pio_read(port, size) & (1 << 8 * size) - 1
        if (handler := self._handler) is None:
            return 0
        self.run_returns += 1
        return handler.pio_read(port, size) & (1 << 8 * size) - 1

    def port_write(self, port: int, size: int, value: int) -> None:
        """The guest writes a port."""
        if not self._may_use_ports():
            return
        value &= (1 << 8 * size) - 1
        vm = self._vm
        if port in vm.chip_ports:
            vm.chip_bus.pio_write(port, size, value)
            vm.after_chip_write()
        elif port in vm.port_bells and _ring(vm.port_bells[port], size, value):
            pass  # and no exit
        elif (handler := self._handler) is not None:
            self.run_returns += 1
            handler.pio_write(port, size, value)

    def _may_use_ports(self) -> bool:
        # The engine asks nobody whether the guest's programs may. A fault, which it would be, can
        # not be raised from here; so nothing happens. (Permission by bitmap is not looked at.)
        level = self._engine.read(Register.CS) & 3
        return not level or self._engine.read(Register.RFLAGS) >> 12 & 3 >= level

    def read(self, gpa: int, size: int) -> int:
        """The guest reads where there is no memory: ``size`` bytes, all on one page."""
        vm = self._vm
        if gpa in vm.chip_addresses:
            return vm.chip_bus.mmio_read(gpa, size)
        if (handler := self._handler) is None:
            return 0
        self.run_returns += 1
        return handler.mmio_read(gpa, size)

    def write(self, gpa: int, size: int, value: int) -> None:
        """The guest writes where there is no memory: ``size`` bytes, all on one page."""
        vm = self._vm
        if gpa in vm.chip_addresses:
            vm.chip_bus.mmio_write(gpa, size, value)
            vm.after_chip_write()
        elif gpa in vm.mmio_bells and _ring(vm.mmio_bells[gpa], size, value):
            pass  # and no exit
        elif (handler := self._handler) is not None:
            self.run_returns += 1
            handler.mmio_write(gpa, size, value)

    def bad_access(self, access: int, gpa: int) -> bool:
        """The guest runs into what is no memory, or beyond all addresses."""
        what = (
            "executes code"
            if access in (Access.FETCH_PROTECTED, Access.FETCH_UNMAPPED)
            else ("accesses memory")
        )
        self._why = f"it {what} at {gpa:#x}, where there is none"
        return False

    def answer_cpuid(self) -> None:
        """The guest executes CPUID."""
        engine = self._engine
        eax, ecx = engine.read(Register.RAX), engine.read(Register.RCX)
        answer = self._cpuid(eax & 0xFFFF_FFFF, ecx & 0xFFFF_FFFF)
        for register, value in zip(_CPUID_ANSWER, answer, strict=True):
            engine.write(register, value & 0xFFFF_FFFF)

    # ── registers ─────────────────────────────────────────────────────────────────────

    def get_regs(self) -> Regs:
        """General registers, instruction pointer and flags."""
        return registers.get_regs(self._engine)

    def set_regs(self, regs: Regs) -> None:
        """Set all general registers."""
        registers.set_regs(self._engine, regs)

    def get_sregs(self) -> Sregs:
        """Segment, table and control registers."""
        return registers.get_sregs(self._engine)

    def set_sregs(self, sregs: Sregs) -> None:
        """Set all segment, table and control registers."""
        registers.set_sregs(self._engine, sregs)

    def close(self) -> None:
        """RuntimeError while run() has not returned."""
        if self._thread:
            raise RuntimeError("vCPU 0 is running")


def _ring(bells: Bells, size: int, value: int) -> bool:
    # Whether one of the doorbells at an address is for that write; if so it has been rung.
    for key in ((size, value), (size, None), (0, None)):
        if (bell := bells.get(key)) is not None:
            bell()
            return True
    return False


class Tsc:
    """How many ticks the guest's TSC, which is the host's, makes in a second: measured from when
    this is made until it is asked for the first time."""

    # Seconds that a measurement takes at least: a look at the clock is off by a microsecond.
    _LEAST = 0.02
    # At both clocks; on a busy host some are held up between the two, by milliseconds (arbitrary).
    _LOOKS = 8

    def __init__(self) -> None:
        self._ticks, self._time = self._look()
        self._hz = 0

    def hz(self) -> int:
        """Ticks a second, to some ten millionths."""
        if not self._hz:
            elapsed = time.monotonic_ns() - self._time
            time.sleep(max(0.0, self._LEAST - elapsed / 1e9))
            ticks, now = self._look()
            self._hz = (ticks - self._ticks) * 1_000_000_000 // (now - self._time)
        return self._hz

    def _look(self) -> tuple[int, int]:
        # Ticks, and nanoseconds, of one moment: by the look that took the least time.
        looks = []
        for _ in range(self._LOOKS):
            before = time.monotonic_ns()
            ticks, after = lib.engine_ticks(), time.monotonic_ns()
            looks.append((after - before, ticks, (before + after) // 2))
        _, ticks, now = min(looks)
        return ticks, now


# ── called by the engine; an exception may not go back through it ─────────────────────────

_called: Callable[[_Function], _Function] = ffi.def_extern()


@_called
def software_on_port_read(_uc: Any, port: int, size: int, handle: Any) -> int:
    vcpu: SoftwareVcpu = ffi.from_handle(handle)
    try:
        return vcpu.port_read(port, size)
    except BaseException as error:
        vcpu.fail(error)
        return 0


@_called
def software_on_port_write(_uc: Any, port: int, size: int, value: int, handle: Any) -> None:
    vcpu: SoftwareVcpu = ffi.from_handle(handle)
    try:
        vcpu.port_write(port, size, value)
    except BaseException as error:
        vcpu.fail(error)


@_called
def software_on_read(handle: Any, gpa: int, size: int) -> int:
    vcpu: SoftwareVcpu = ffi.from_handle(handle)
    try:
        return vcpu.read(gpa, size) & _ALL_ONES
    except BaseException as error:
        vcpu.fail(error)
        return 0


@_called
def software_on_write(handle: Any, gpa: int, size: int, value: int) -> None:
    vcpu: SoftwareVcpu = ffi.from_handle(handle)
    try:
        vcpu.write(gpa, size, value)
    except BaseException as error:
        vcpu.fail(error)


@_called
def software_on_bad_access(
    _uc: Any, access: int, gpa: int, _size: int, _value: int, handle: Any
) -> bool:
    vcpu: SoftwareVcpu = ffi.from_handle(handle)
    return vcpu.bad_access(access, gpa)


@_called
def software_on_cpuid(_uc: Any, handle: Any) -> int:
    vcpu: SoftwareVcpu = ffi.from_handle(handle)
    try:
        vcpu.answer_cpuid()
    except BaseException as error:
        vcpu.fail(error)
    return 1  # the engine's own answer is left out
