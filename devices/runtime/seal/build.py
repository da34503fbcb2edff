"""Builds ``devices.runtime.seal._seal`` from seal.c; its declarations are those of seal.h."""

from pathlib import Path

from cffi import FFI

_HERE = Path(__file__).parent


def _declarations() -> str:
    header = (_HERE / "seal.h").read_text()
    return header.partition("/* cdef begin */")[2].partition("/* cdef end */")[0]


ffi = FFI()
ffi.cdef(_declarations())
ffi.set_source(
    "devices.runtime.seal._seal",
    '#include "seal.h"',
    sources=["devices/runtime/seal/seal.c"],
    depends=["devices/runtime/seal/seal.h"],
    include_dirs=["devices/runtime/seal"],
    libraries=["seccomp"],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra"],
)
