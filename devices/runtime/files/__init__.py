"""A call that Python does not have: holes in files."""

from __future__ import annotations

import os

from devices.runtime.files._files import ffi, lib


def discard(fd: int, offset: int, size: int) -> None:
    """Give the bytes back to the file system: they read as zeros. OSError."""
    _allocate(fd, lib.FALLOC_FL_PUNCH_HOLE, offset, size)


def zero(fd: int, offset: int, size: int) -> None:
    """Make the bytes zeros, and keep them reserved. OSError."""
    _allocate(fd, lib.FALLOC_FL_ZERO_RANGE, offset, size)


def _allocate(fd: int, mode: int, offset: int, size: int) -> None:
    if lib.fallocate(fd, mode | lib.FALLOC_FL_KEEP_SIZE, offset, size):
        raise OSError(ffi.errno, os.strerror(ffi.errno))
