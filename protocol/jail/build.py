"""Builds ``protocol.jail._jail`` from the C files beside, whose declarations are jail.h."""

from pathlib import Path

from cffi import FFI

_HERE = Path(__file__).parent


def _declarations() -> str:
    header = (_HERE / "jail.h").read_text()
    return header.partition("/* cdef begin */")[2].partition("/* cdef end */")[0]


ffi = FFI()
ffi.cdef(_declarations())
ffi.set_source(
    "protocol.jail._jail",
    '#include "jail.h"',
    sources=[
        "protocol/jail/privileges.c",
        "protocol/jail/namespaces.c",
        "protocol/jail/landlock.c",
        "protocol/jail/filter.c",
    ],
    depends=["protocol/jail/jail.h"],
    include_dirs=["protocol/jail"],
    libraries=["seccomp"],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra"],
)
