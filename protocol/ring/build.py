"""Builds ``protocol.ring._ring`` from ring.c; its declarations are those of ring.h. And
``protocol.ring._ring_faults``: the same sources with fault points, and the hook of points.h."""

from pathlib import Path

from cffi import FFI

_HERE = Path(__file__).parent


SOURCES = ["protocol/ring/ring.c", "protocol/ring/journal.c"]
HEADERS = ["protocol/ring/ring.h", "protocol/ring/journal.h", "protocol/ring/points.h"]


def _marked(header: str) -> str:
    text = (_HERE / header).read_text()
    return text.partition("/* cdef begin */")[2].partition("/* cdef end */")[0]


def declarations() -> str:
    """What ring.h declares, as cffi wants it; other extensions on the engine start from it."""
    return "struct iovec { void *iov_base; size_t iov_len; };" + _marked("ring.h")


def fault_marks() -> str:
    """What points.h declares besides, of an engine with fault points."""
    return _marked("points.h")


def fault_declarations() -> str:
    """Both."""
    return declarations() + fault_marks()


HOOK = 'extern "Python" void ring_fault_call_python(void *, uint32_t);'
"""What the hook of a build with fault points calls: protocol.ring.faults.Engine."""
FAULT_SOURCES = ["protocol/ring/faults.c"]
FAULT_OPTION = "-DRING_FAULT_POINTS"


def _extension(name: str, include: str, sources: list[str], *options: str) -> FFI:
    made = FFI()
    made.set_source(
        name,
        include,
        sources=sources,
        depends=HEADERS,
        include_dirs=["protocol/ring"],
        extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", *options],
    )
    return made


ffi = _extension("protocol.ring._ring", '#include "ring.h"', SOURCES)
ffi.cdef(declarations())

faults = _extension(
    "protocol.ring._ring_faults",
    '#include "ring.h"\n#include "points.h"',
    [*SOURCES, *FAULT_SOURCES],
    FAULT_OPTION,
)
faults.cdef(fault_declarations())
faults.cdef(HOOK)
