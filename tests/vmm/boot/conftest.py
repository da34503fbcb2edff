"""Fixtures of the boot tests: bytes as open files, and guest memory to load into."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import pytest

from protocol.memory import GuestMemory, create_memfd
from vmm import memory_map

FileOf = Callable[[bytes], int]
MemoryOf = Callable[[int], GuestMemory]


@pytest.fixture
def file_of() -> Iterator[FileOf]:
    """A function that gives an open, regular file with the bytes given."""
    with contextlib.ExitStack() as stack:

        def make(data: bytes) -> int:
            fd = os.memfd_create("boot-file", os.MFD_CLOEXEC)
            stack.callback(os.close, fd)
            os.pwrite(fd, data, 0)
            return fd

        yield make


@pytest.fixture
def memory_of() -> Iterator[MemoryOf]:
    """A function that gives guest memory of the size given."""
    with contextlib.ExitStack() as stack:

        def make(size: int) -> GuestMemory:
            fd = create_memfd("guest", size)
            stack.callback(os.close, fd)
            return stack.enter_context(GuestMemory(fd, memory_map.regions(size)))

        yield make
