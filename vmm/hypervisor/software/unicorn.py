"""The Unicorn engine's library, by cffi: the functions that are used, and its numbers for things.

The package is an optional extra; its licence is the GPL, version 2. Nothing of it is imported or
linked: the library in its wheel is opened when a machine is made. Names and numbers are those of
``unicorn/unicorn.h`` and ``unicorn/x86.h`` in the wheel.
"""

from __future__ import annotations

import os
from enum import IntEnum, IntFlag
from functools import cache
from importlib.util import find_spec
from typing import Any

from cffi import FFI

from protocol.errors import HostError

INSTALL = "pip install 'vibe-vmm[software]'"

ffi = FFI()
ffi.cdef("""
    int uc_open(int arch, int mode, void **uc);
    int uc_close(void *uc);
    const char *uc_strerror(int code);
    unsigned uc_version(unsigned *major, unsigned *minor);
    int uc_ctl(void *uc, int control, ...);
    int uc_reg_read(void *uc, int reg, void *value);
    int uc_reg_write(void *uc, int reg, const void *value);
    int uc_reg_write_batch(void *uc, const int *regs, void *const *values, int count);
    int uc_emu_start(void *uc, uint64_t begin, uint64_t until, uint64_t timeout, size_t count);
    int uc_emu_stop(void *uc);
    int uc_hook_add(void *uc, size_t *hook, int type, void *callback, void *user,
                    uint64_t begin, uint64_t end, ...);
    int uc_mem_map_ptr(void *uc, uint64_t address, size_t size, uint32_t perms, void *memory);
    int uc_mem_protect(void *uc, uint64_t address, size_t size, uint32_t perms);
    int uc_mmio_map(void *uc, uint64_t address, size_t size,
                    void *read, void *read_user, void *write, void *write_user);
    int uc_context_alloc(void *uc, void **context);
    int uc_context_save(void *uc, void *context);
    int uc_context_restore(void *uc, void *context);
    int uc_context_free(void *context);
    size_t uc_context_size(void *uc);
""")

ARCH_ARM64, MODE_ARM = 2, 0
ARCH_X86, MODE_64 = 4, 8
PROT_NONE, PROT_ALL = 0, 7


class Ctl(IntEnum):
    """What uc_ctl changes."""

    USE_EXITS = 4
    CPU_MODEL = 7
    FLUSH = 10
    TLB_TYPE = 12


TLB_CPU = 0
"""For Ctl.TLB_TYPE: the processor's own paging, and not a flat map."""


class Hook(IntFlag):
    """When a callback is called."""

    INTERRUPT = 1
    INSTRUCTION = 2
    BLOCK = 8
    UNMAPPED = 16 | 32 | 64
    READ_PROTECTED = 128
    WRITE_PROTECTED = 256
    FETCH_PROTECTED = 512
    INVALID = 1 << 14
    TRANSLATED = 1 << 15


class Access(IntEnum):
    """What the guest did at an address that a callback is called for (uc_mem_type)."""

    FETCH_UNMAPPED = 21
    WRITE_PROTECTED = 22
    READ_PROTECTED = 23
    FETCH_PROTECTED = 24


class Instruction(IntEnum):
    """Instructions that can be hooked, for Hook.INSTRUCTION."""

    CPUID = 113
    IN = 218
    OUT = 500
    SYSCALL = 699


class Register(IntEnum):
    """Registers that are read and written one by one."""

    CS = 11
    RAX = 35
    RBX = 37
    RCX = 38
    RDX = 40
    RIP = 41
    CR0 = 50
    CR3 = 53
    CR4 = 54
    MSR = 248
    RFLAGS = 253


@cache
def library() -> Any:
    """The library; HostError, with the command that installs it, if it is not there."""
    spec = find_spec("unicorn")
    if spec is None or not spec.submodule_search_locations:
        raise HostError(f"the software CPU needs the Unicorn engine: {INSTALL}")
    path = os.path.join(spec.submodule_search_locations[0], "lib", "libunicorn.so.2")
    try:
        lib: Any = ffi.dlopen(path)
    except OSError as error:
        raise HostError(f"the software CPU cannot load {path}: {error}; {INSTALL}") from error
    major, minor = ffi.new("unsigned *"), ffi.new("unsigned *")
    lib.uc_version(major, minor)
    if (major[0], minor[0]) != (2, 1):
        raise HostError(
            f"the software CPU knows Unicorn 2.1, and {path} is {major[0]}.{minor[0]}; {INSTALL}"
        )
    return lib


def check(code: int, what: str) -> None:
    """HostError naming ``what``, if ``code`` is an error of the engine."""
    if code:
        raise HostError(f"Unicorn: {what}: {error_text(code)}")


def error_text(code: int) -> str:
    """An error of the engine, in its words."""
    text: Any = ffi.string(library().uc_strerror(code))
    return str(text, "ascii")


def control(uc: Any, what: Ctl, *arguments: Any) -> None:
    """uc_ctl, as a write; the arguments are cdata, for the call is variadic."""
    check(library().uc_ctl(uc, write_code(what, len(arguments)), *arguments), f"uc_ctl {what.name}")


def write_code(what: Ctl, arguments: int) -> int:
    """The number by which uc_ctl is told to write ``what``, with so many arguments."""
    return 1 << 30 | arguments << 26 | what


def address_of(name: str) -> Any:
    """The function called ``name``, for a pointer in C."""
    return ffi.cast("void *", ffi.addressof(library(), name))
