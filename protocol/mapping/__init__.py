"""Files mapped side by side in one range of addresses, so that there is one buffer over them all.

Python's own mmap maps one file, at a place of the kernel's choice, and keeps a duplicate of its
descriptor, which it makes with a system call that is forbidden behind a device's seal.
"""

from __future__ import annotations

import os

from protocol.mapping._mapping import ffi, lib

_NOWHERE = ffi.cast("void *", -1)  # MAP_FAILED


class Mapping:
    """``size`` bytes of addresses, of which nothing can be touched until :meth:`place` has put a
    file there. OSError if there are not so many.

    ``view`` is all of it. Whoever holds a part of that keeps the whole mapped; the last of them
    to go unmaps it. Descriptors stay the caller's, and may be closed at once.
    """

    def __init__(self, size: int) -> None:
        start = _map(ffi.NULL, size, lib.PROT_NONE, lib.MAP_PRIVATE | lib.MAP_ANONYMOUS, -1, 0)
        self._start = ffi.gc(ffi.cast("char *", start), lambda start: lib.munmap(start, size))
        self._size = size
        self.view = memoryview(ffi.buffer(self._start, size))

    def place(self, at: int, size: int, fd: int, offset: int = 0) -> None:
        """Put ``size`` bytes of file ``fd``, from its ``offset`` on, to ``at`` bytes from the
        start, shared and writable. ValueError if they would not lie in the mapping, or the file
        has not so many: who touched those would die. OSError if the kernel refuses: all numbers
        are multiples of a page."""
        # MAP_FIXED takes whatever was mapped there: it may be ours only.
        if not 0 <= at <= at + size <= self._size:
            raise ValueError(f"{size} bytes at {at} of a mapping of {self._size}")
        if (there := os.fstat(fd).st_size) < offset + size:
            raise ValueError(f"{size} bytes at {offset} of a file of {there}")
        access = lib.PROT_READ | lib.PROT_WRITE
        _map(self._start + at, size, access, lib.MAP_SHARED | lib.MAP_FIXED, fd, offset)


def map_file(fd: int, size: int) -> memoryview:
    """The first ``size`` bytes of file ``fd``, shared and writable, for as long as somebody holds
    a part of them. OSError."""
    mapping = Mapping(size)
    mapping.place(0, size, fd)
    return mapping.view


def _map(*arguments: object) -> object:
    found = lib.mmap(*arguments)
    if found == _NOWHERE:
        raise OSError(ffi.errno, os.strerror(ffi.errno))
    return found
