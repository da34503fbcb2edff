"""Builds ``devices.lanes._lanes``: the ring engine once more, with all lanes on it. And
``devices.lanes._lanes_faults``: the same with fault points."""

import runpy
from collections.abc import Sequence
from pathlib import Path

from cffi import FFI

_HERE = Path(__file__).parent

# By path: importing protocol.ring needs its extension, which may not be built yet.
_engine = runpy.run_path(str(_HERE.parents[1] / "protocol" / "ring" / "build.py"))

ENGINE: Sequence[str] = _engine["SOURCES"]
"""The ring engine's C, which lanes are built upon."""

PARTS = ("lane", "thread", "blk", "net")
INNER = ("uring", "blk_requests")
"""Of which Python knows nothing."""

INCLUDE = "\n".join(f'#include "{part}.h"' for part in PARTS)
"""What C needs to know what `declarations` declares."""


def _marked(header: str) -> str:
    text = (_HERE / header).read_text()
    return text.partition("/* cdef begin */")[2].partition("/* cdef end */")[0]


def declarations() -> str:
    """What the headers of the lanes and ring.h declare, as cffi wants it."""
    return str(_engine["declarations"]()) + "".join(_marked(f"{part}.h") for part in PARTS)


def _extension(name: str, include: str, sources: list[str], *options: str) -> FFI:
    made, parts = FFI(), (*PARTS, *INNER)
    made.set_source(
        name,
        include,
        sources=[*(f"devices/lanes/{part}.c" for part in parts), *ENGINE, *sources],
        depends=[*(f"devices/lanes/{part}.h" for part in parts), *_engine["HEADERS"]],
        include_dirs=["devices/lanes", "protocol/ring"],
        extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", *options],
    )
    return made


ffi = _extension("devices.lanes._lanes", INCLUDE, [])
ffi.cdef(declarations())

faults = _extension(
    "devices.lanes._lanes_faults",
    INCLUDE,
    _engine["FAULT_SOURCES"],
    _engine["FAULT_OPTION"],
)
faults.cdef(declarations() + _engine["fault_marks"]() + _engine["HOOK"])
