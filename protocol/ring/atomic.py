"""Atomic accesses to words of shared memory, which Python itself cannot promise.

A store is a release and a load an acquire: whoever loads a value sees everything that was
written before it was stored. On the hosts we run on this is x86 TSO or arm64 ldar/stlr.
"""

from __future__ import annotations

import mmap
from typing import Any

from protocol.ring._ring import ffi, lib


def store32(view: memoryview | mmap.mmap, offset: int, value: int) -> None:
    """Store ``value``, an unsigned 32-bit number, at ``offset`` bytes into a writable buffer.

    ValueError if the word is not aligned to 4 bytes or not inside the buffer; OverflowError if
    the value does not fit.
    """
    with ffi.from_buffer(view, require_writable=True) as start:
        lib.ring_store32(_word(start, view, offset, 32), value)


def load32(view: memoryview | mmap.mmap, offset: int) -> int:
    """The unsigned 32-bit number at ``offset``; ValueError as in :func:`store32`."""
    with ffi.from_buffer(view) as start:
        return int(lib.ring_load32(_word(start, view, offset, 32)))


def store64(view: memoryview | mmap.mmap, offset: int, value: int) -> None:
    """The same as :func:`store32` with 64 bits, aligned to 8 bytes."""
    with ffi.from_buffer(view, require_writable=True) as start:
        lib.ring_store64(_word(start, view, offset, 64), value)


def load64(view: memoryview | mmap.mmap, offset: int) -> int:
    """The unsigned 64-bit number at ``offset``; ValueError as in :func:`store64`."""
    with ffi.from_buffer(view) as start:
        return int(lib.ring_load64(_word(start, view, offset, 64)))


def _word(start: Any, view: memoryview | mmap.mmap, offset: int, bits: int) -> Any:
    address = int(ffi.cast("uintptr_t", start)) + offset
    size = bits // 8
    if address % size or not 0 <= offset <= len(view) - size:
        raise ValueError(f"no aligned {bits}-bit word at {offset} of {len(view)} bytes")
    return ffi.cast(f"uint{bits}_t *", start + offset)
