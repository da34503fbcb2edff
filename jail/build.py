"""Builds ``jail._jail`` from the C files beside; their declarations are those of jail.h."""

from pathlib import Path

from cffi import FFI

_HERE = Path(__file__).parent


def _declarations() -> str:
    header = (_HERE / "jail.h").read_text()
    return header.partition("/* cdef begin */")[2].partition("/* cdef end */")[0]


ffi = FFI()
ffi.cdef(_declarations())
ffi.set_source(
    "jail._jail",
    '#include "jail.h"',
    sources=["jail/privileges.c", "jail/namespaces.c", "jail/landlock.c", "jail/filter.c"],
    depends=["jail/jail.h"],
    include_dirs=["jail"],
    libraries=["seccomp"],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra"],
)
