"""Builds ``vmm.mediation._mediator`` from mediator.c and the ring engine."""

import runpy
from pathlib import Path

from cffi import FFI

_HERE = Path(__file__).parent

# By path: importing protocol.ring needs its extension, which may not be built yet.
_engine = runpy.run_path(str(_HERE.parents[1] / "protocol" / "ring" / "build.py"))

_HEADER = (_HERE / "mediator.h").read_text()


def declarations() -> str:
    """What ring.h and mediator.h declare, as cffi wants it."""
    body = _HEADER.partition("/* cdef begin */")[2].partition("/* cdef end */")[0]
    return str(_engine["declarations"]()) + body


ffi = FFI()
ffi.cdef(declarations())
ffi.cdef('extern "Python" void mediator_call_python(void *, uint64_t, uint64_t);')
ffi.set_source(
    "vmm.mediation._mediator",
    '#include "mediator.h"',
    sources=["vmm/mediation/mediator.c", *_engine["SOURCES"]],
    depends=["vmm/mediation/mediator.h", *_engine["HEADERS"]],
    include_dirs=["vmm/mediation", "protocol/ring"],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra"],
)
