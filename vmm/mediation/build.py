"""Builds ``vmm.mediation._mediator`` from mediator.c and the ring engine."""

import runpy
from pathlib import Path

from cffi import FFI

_HERE = Path(__file__).parent

# By path: importing protocol.ring needs its extension, which may not be built yet.
_engine = runpy.run_path(str(_HERE.parents[1] / "protocol" / "ring" / "build.py"))

_PARTS = ("mediator", "arena", "pump")
_HEADERS = [(_HERE / name).read_text() for name in ("mediator.h", "pump.h")]


def declarations() -> str:
    """What ring.h, mediator.h and pump.h declare, as cffi wants it."""
    bodies = [
        header.partition("/* cdef begin */")[2].partition("/* cdef end */")[0]
        for header in _HEADERS
    ]
    return str(_engine["declarations"]()) + "".join(bodies)


ffi = FFI()
ffi.cdef(declarations())
ffi.cdef('extern "Python" void mediator_call_python(void *, uint64_t, uint64_t);')
ffi.set_source(
    "vmm.mediation._mediator",
    '#include "pump.h"',
    sources=[*(f"vmm/mediation/{name}.c" for name in _PARTS), *_engine["SOURCES"]],
    depends=[*(f"vmm/mediation/{name}.h" for name in _PARTS), *_engine["HEADERS"]],
    include_dirs=["vmm/mediation", "protocol/ring"],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra"],
)
