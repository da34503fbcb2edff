"""Builds ``protocol.ring._ring`` from ring.c; its declarations are those of ring.h."""

from pathlib import Path

from cffi import FFI

_HERE = Path(__file__).parent


def _declarations() -> str:
    header = (_HERE / "ring.h").read_text()
    return header.partition("/* cdef begin */")[2].partition("/* cdef end */")[0]


ffi = FFI()
ffi.cdef("struct iovec { void *iov_base; size_t iov_len; };" + _declarations())
ffi.set_source(
    "protocol.ring._ring",
    '#include "ring.h"',
    sources=["protocol/ring/ring.c"],
    depends=["protocol/ring/ring.h"],
    include_dirs=["protocol/ring"],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra"],
)
