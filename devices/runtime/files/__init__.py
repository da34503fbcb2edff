"""Calls that Python does not have: holes in files, and a client that is born non-blocking."""

from __future__ import annotations

import os

from devices.runtime.files._files import ffi, lib


def discard(fd: int, offset: int, size: int) -> None:
    """Give the bytes back to the file system: they read as zeros. OSError."""
    _allocate(fd, lib.FALLOC_FL_PUNCH_HOLE, offset, size)


def zero(fd: int, offset: int, size: int) -> None:
    """Make the bytes zeros, and keep them reserved. OSError."""
    _allocate(fd, lib.FALLOC_FL_ZERO_RANGE, offset, size)


def accept(listener: int) -> int:
    """The next client of the socket ``listener``, non-blocking. OSError; BlockingIOError if there
    is none. It needs accept4 and nothing else: Python's own accept is followed by a fcntl or an
    ioctl, and either would let a process choose whom the kernel signals for it."""
    client: int = lib.accept4(listener, ffi.NULL, ffi.NULL, lib.SOCK_CLOEXEC | lib.SOCK_NONBLOCK)
    if client < 0:
        raise OSError(ffi.errno, os.strerror(ffi.errno))
    return client


def _allocate(fd: int, mode: int, offset: int, size: int) -> None:
    if lib.fallocate(fd, mode | lib.FALLOC_FL_KEEP_SIZE, offset, size):
        raise OSError(ffi.errno, os.strerror(ffi.errno))
