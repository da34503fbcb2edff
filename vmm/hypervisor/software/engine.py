"""One Unicorn engine with what engine.c adds to it: made, taught its layout, and run."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from protocol.errors import HostError
from vmm.hypervisor.software import unicorn
from vmm.hypervisor.software._engine import ffi, lib
from vmm.hypervisor.software.unicorn import Ctl, Hook, Instruction, Register

# struct uc_context begins with numbers about itself; what it is a copy of follows.
_HEADER = 40
# Behind error_code: exception_is_int next to it, and old_exception (measured, 2.1.4).
_IS_SOFTWARE, _OLD_EXCEPTION = 4, 112
# Where the search for error_code begins: behind what struct engine_x86 describes.
_SEARCH_FROM = 0x400

# The processor's model in the engine; what it says of itself is vmm.hypervisor.software.cpuid's.
_MODEL_QEMU64 = 0

# mov $0x1238, %ax; mov %ax, %ds: a segment that is not there, so a fault with this error code.
_SELECTOR = 0x1238
_PROBE = bytes.fromhex("66b83812 8ed8")
# cpuid; hlt
_CPUID = bytes.fromhex("0fa2 f4")
_PROBE_AT, _CPUID_AT = 0x1000, 0x1800

NATIVE_LEAVES = (1, 7, 0x8000_0001, 0x8000_0008)
"""Leaves of CPUID in which features of the engine are told."""


# Functions of Unicorn that struct engine has, without their prefix.
_CALLED_FROM_C = (
    "emu_start",
    "emu_stop",
    "reg_read",
    "reg_write",
    "context_save",
    "context_restore",
    "ctl",
)


class Engine:
    """A processor without memory: x86-64, or what a subclass says. ``state`` is struct engine of
    engine.h."""

    _ARCHITECTURE = (unicorn.ARCH_X86, unicorn.MODE_64)
    _MODEL = _MODEL_QEMU64
    _PROGRAM_COUNTER: int = Register.RIP
    _TRANSLATE = "x86_translate"

    def __init__(self) -> None:
        library = unicorn.library()
        self._library = library
        self.uc: Any = None
        made = unicorn.ffi.new("void **")
        unicorn.check(library.uc_open(*self._ARCHITECTURE, made), "uc_open")
        self.uc = made[0]
        self._context: Any = None
        self._mmio: list[Any] = []
        try:
            self._set_up()
        except BaseException:
            self.close()
            raise

    def _set_up(self) -> None:
        as_int = unicorn.ffi.cast
        unicorn.control(self.uc, Ctl.CPU_MODEL, as_int("int", self._MODEL))
        unicorn.control(self.uc, Ctl.TLB_TYPE, as_int("int", unicorn.TLB_CPU))
        # Without exits of its own the engine would look up where to end after each run, through
        # the guest's page tables, and change CR2.
        unicorn.control(self.uc, Ctl.USE_EXITS, as_int("int", 1))
        context = unicorn.ffi.new("void **")
        unicorn.check(self._library.uc_context_alloc(self.uc, context), "uc_context_alloc")
        self._context = context[0]
        self.state = self._new_state()
        self.state.uc = ours(self.uc)
        self.state.context = ours(self._context)
        for name in _CALLED_FROM_C:
            kind = ffi.typeof(self.state[0]).fields
            pointer = ffi.cast(dict(kind)[name].type, ours(unicorn.address_of(f"uc_{name}")))
            setattr(self.state, name, pointer)
        self.state.reg_rflags, self.state.reg_msr = Register.RFLAGS, Register.MSR
        self.state.reg_pc = self._PROGRAM_COUNTER
        self.state.ctl_flush = unicorn.write_code(Ctl.FLUSH, 0)
        self.state.translate = ffi.addressof(lib, self._TRANSLATE)
        self.state.died_of = -1
        self.state.cpu = ffi.cast("struct engine_x86 *", self._at(_HEADER))

    def _new_state(self) -> Any:
        return ffi.new("struct engine *")

    def teach(self, error_code: int) -> None:
        """Where the context has the error code of an exception, and what lies around it."""
        self.state.error_code = ffi.cast("uint32_t *", self._at(error_code))
        self.state.is_software = ffi.cast("int32_t *", self._at(error_code + _IS_SOFTWARE))
        self.state.old_exception = ffi.cast("int32_t *", self._at(error_code + _OLD_EXCEPTION))

    def _at(self, offset: int) -> Any:
        return ffi.cast("char *", self.state.context) + offset

    def context(self) -> Any:
        """A fresh copy of the processor, whole, as a buffer."""
        lib_save = self._library.uc_context_save
        unicorn.check(lib_save(self.uc, self._context), "uc_context_save")
        size = self._library.uc_context_size(self.uc)
        return ffi.buffer(ffi.cast("char *", self.state.context), size)

    def restore(self) -> None:
        """Make the processor what the copy was changed to."""
        restored = self._library.uc_context_restore(self.uc, self._context)
        unicorn.check(restored, "uc_context_restore")

    def hook(
        self, kind: Hook, callback: Any, user: Any, instruction: Instruction | None = None
    ) -> None:
        """Call ``callback`` (a function of _engine) at each event of ``kind``, anywhere."""
        more = [] if instruction is None else [unicorn.ffi.cast("int", instruction)]
        number = unicorn.ffi.new("size_t *")
        added = self._library.uc_hook_add(
            self.uc, number, int(kind), theirs(callback), theirs(user), 1, 0, *more
        )
        unicorn.check(added, f"uc_hook_add {kind!r}")

    def map_ram(self, gpa: int, size: int, host: Any) -> None:
        """Show ``size`` bytes at ``host`` to the guest."""
        mapped = self._library.uc_mem_map_ptr(self.uc, gpa, size, unicorn.PROT_ALL, theirs(host))
        unicorn.check(mapped, f"uc_mem_map_ptr {gpa:#x}")

    def map_mmio(self, gpa: int, size: int) -> None:
        """Make accesses there exits: the hooks for protected memory see them whole, and before
        the callbacks that take the value (and which alone would see them in parts)."""
        mmio = ffi.new("struct engine_mmio *", {"engine": self.state, "base": gpa})
        self._mmio.append(mmio)  # the engine knows it by its address
        read = ffi.addressof(lib, "engine_on_mmio_read")
        write = ffi.addressof(lib, "engine_on_mmio_write")
        user = theirs(mmio)
        mapped = self._library.uc_mmio_map(
            self.uc, gpa, size, theirs(read), user, theirs(write), user
        )
        unicorn.check(mapped, f"uc_mmio_map {gpa:#x}")
        closed = self._library.uc_mem_protect(self.uc, gpa, size, unicorn.PROT_NONE)
        unicorn.check(closed, f"uc_mem_protect {gpa:#x}")

    def read(self, register: int) -> int:
        """The value of ``register``."""
        value = unicorn.ffi.new("uint64_t *")
        self._library.uc_reg_read(self.uc, int(register), value)
        return int(value[0])

    def write(self, register: int, value: int) -> None:
        """Set ``register``."""
        self._library.uc_reg_write(self.uc, int(register), unicorn.ffi.new("uint64_t *", value))

    def read_msr(self, index: int) -> int:
        """A model-specific register; 0 where the engine has none."""
        msr = ffi.new("struct engine_msr *", {"index": index})
        self._library.uc_reg_read(self.uc, int(Register.MSR), theirs(msr))
        return int(msr.value)

    def write_msr(self, index: int, value: int) -> None:
        """Set a model-specific register, where the engine has it."""
        msr = ffi.new("struct engine_msr *", {"index": index, "value": value})
        self._library.uc_reg_write(self.uc, int(Register.MSR), theirs(msr))

    def run(self) -> int:
        """Run the guest from where it stands; the engine's error, or 0. Releases the GIL."""
        return int(lib.engine_run(self.state))

    def close(self) -> None:
        """Free the engine; what it was shown stays its owner's."""
        if self.uc is not None:
            if self._context is not None:
                self._library.uc_context_free(self._context)
            self._library.uc_close(self.uc)
            self.uc = None


def ours(pointer: Any) -> Any:
    # The two modules of cffi know nothing of each other's pointers.
    return ffi.cast("void *", int(unicorn.ffi.cast("uintptr_t", pointer)))


def theirs(pointer: Any) -> Any:
    return unicorn.ffi.cast("void *", int(ffi.cast("uintptr_t", pointer)))


@dataclass(frozen=True, slots=True)
class Facts:
    """What an engine was asked once: where its contexts have the error code of an exception, and
    what its own CPUID says, by leaf."""

    error_code: int
    cpuid: Mapping[int, tuple[int, int, int, int]]


@cache
def facts() -> Facts:
    """The facts, found by running code of which they are known to follow.

    HostError if the engine is not laid out as engine.h says: it is another version of Unicorn.
    """
    with _probe() as (engine, memory):
        memory[: len(_PROBE)] = _PROBE
        memory[0x800 : 0x800 + len(_CPUID)] = _CPUID
        leaves = {leaf: _ask(engine, leaf) for leaf in NATIVE_LEAVES}
        engine.hook(Hook.INTERRUPT, ffi.addressof(lib, "engine_on_probe"), engine.state)
        engine.write(Register.RIP, _PROBE_AT)
        engine.run()
        copy = bytes(engine.context())
        found = copy.find(_SELECTOR.to_bytes(4, "little"), _HEADER + _SEARCH_FROM)
        cpu = engine.state.cpu
        if found < 0 or cpu.regs[0] & 0xFFFF != _SELECTOR or cpu.rip != _PROBE_AT + 4:
            raise HostError(
                "the software CPU does not know the layout of this Unicorn; "
                f"install the one that it knows: {unicorn.INSTALL}"
            )
        return Facts(found, leaves)


def _ask(engine: Engine, leaf: int) -> tuple[int, int, int, int]:
    engine.write(Register.RIP, _CPUID_AT)
    engine.write(Register.RAX, leaf)
    engine.write(Register.RCX, 0)
    engine.run()
    eax, ebx, ecx, edx = (
        engine.read(register)
        for register in (Register.RAX, Register.RBX, Register.RCX, Register.RDX)
    )
    return eax, ebx, ecx, edx


@contextlib.contextmanager
def _probe() -> Iterator[tuple[Engine, mmap.mmap]]:
    memory = mmap.mmap(-1, 4096)
    engine = Engine()
    try:
        with ffi.from_buffer(memory) as view:
            engine.map_ram(_PROBE_AT, 4096, view)
            yield engine, memory
    finally:
        engine.close()
        memory.close()
