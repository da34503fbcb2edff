"""Builds ``protocol.ring._ring`` from ring.c; its declarations are those of ring.h."""

from pathlib import Path

from cffi import FFI

_HERE = Path(__file__).parent


def declarations() -> str:
    """What ring.h declares, as cffi wants it; other extensions on the engine start from it."""
    header = (_HERE / "ring.h").read_text()
    body = header.partition("/* cdef begin */")[2].partition("/* cdef end */")[0]
    return "struct iovec { void *iov_base; size_t iov_len; };" + body


ffi = FFI()
ffi.cdef(declarations())
ffi.set_source(
    "protocol.ring._ring",
    '#include "ring.h"',
    sources=["protocol/ring/ring.c"],
    depends=["protocol/ring/ring.h"],
    include_dirs=["protocol/ring"],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra"],
)
