"""Guest memory: one sealed memfd, and the map from guest addresses to offsets in it.

A process that was handed the descriptor maps the whole of it once, and reaches guest
addresses only through :class:`GuestMemory`, which refuses everything that is not
wholly inside one region: no access runs over the end of RAM or across a hole. Memory that is
somebody else's may lie in several files (:meth:`GuestMemory.of_files`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from protocol.errors import HostError
from protocol.mapping import Mapping, map_file

if TYPE_CHECKING:
    from types import TracebackType

PAGE_SIZE = 4096

# <linux/fcntl.h>; the fcntl module of Python 3.11 has the calls but not all the names.
_F_ADD_SEALS = 1033
_F_SEAL_SEAL = 0x1
_F_SEAL_SHRINK = 0x2
_F_SEAL_GROW = 0x4


@dataclass(frozen=True, slots=True)
class Region:
    """A contiguous piece of guest RAM: ``size`` bytes at guest address ``gpa``, which lie at
    ``offset`` in the memfd. All three are multiples of 4 KiB."""

    gpa: int
    size: int
    offset: int

    @property
    def end(self) -> int:
        """The first guest address behind the region."""
        return self.gpa + self.size


class OutOfRam(ValueError):
    """A guest address range that is not wholly inside one region of RAM."""


def create_memfd(name: str, size: int) -> int:
    """A memfd of ``size`` bytes, zeroed and lazily populated, sealed against every resizing.

    SEAL itself is sealed too: any holder of an unsealed one could add F_SEAL_FUTURE_WRITE,
    and nobody could map it again; an unsealed one truncated gives the VMM SIGBUS.
    """
    try:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        raise HostError(f"no memory file for {name}: {error.strerror}") from error
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, _F_ADD_SEALS, _F_SEAL_SHRINK | _F_SEAL_GROW | _F_SEAL_SEAL)
    except OSError as error:
        os.close(fd)
        raise HostError(f"cannot reserve {size} bytes for {name}: {error.strerror}") from error
    return fd


class GuestMemory:
    """All of guest RAM, mapped shared and writable; closes nothing but its own mapping.

    ``fd`` stays the caller's. ``regions`` must not overlap, neither in guest addresses nor
    in the file.
    """

    def __init__(self, fd: int, regions: Sequence[Region]) -> None:
        length = max(region.offset + region.size for region in regions)
        with _mapping(length):
            self._become(map_file(fd, length), regions)

    @classmethod
    def of_files(cls, files: Sequence[tuple[int, Region]]) -> GuestMemory:
        """Memory whose regions lie each in a file of its own, at its ``offset`` there; here they
        lie one behind the other. HostError if one cannot be mapped."""
        memory, regions, length = cls.__new__(cls), [], sum(region.size for _, region in files)
        with _mapping(length):
            mapping, at = Mapping(length), 0
            for fd, region in files:
                mapping.place(at, region.size, fd, region.offset)
                regions.append(replace(region, offset=at))
                at += region.size
        memory._become(mapping.view, regions)
        return memory

    def _become(self, view: memoryview, regions: Sequence[Region]) -> None:
        self._view = view
        self.regions = tuple(sorted(regions, key=lambda region: region.gpa))

    def offset(self, gpa: int, size: int) -> int:
        """The offset in the memfd of ``size`` bytes at ``gpa``; OutOfRam if not in one region."""
        for region in self.regions:
            if region.gpa <= gpa and gpa + size <= region.end and size >= 0:
                return region.offset + (gpa - region.gpa)
        raise OutOfRam(f"{size} bytes at {gpa:#x} are not guest RAM")

    def view(self, gpa: int, size: int) -> memoryview:
        """The bytes themselves, not a copy; whoever holds the view keeps the mapping alive."""
        start = self.offset(gpa, size)
        return self._view[start : start + size]

    def read(self, gpa: int, size: int) -> bytes:
        """A copy of ``size`` bytes at ``gpa``."""
        return bytes(self.view(gpa, size))

    def write(self, gpa: int, data: bytes) -> None:
        """Copy ``data`` to ``gpa``."""
        self.view(gpa, len(data))[:] = data

    @property
    def whole(self) -> memoryview:
        """The whole mapping, in which regions have their offsets: for the ring engine and the
        hypervisor."""
        return self._view

    def close(self) -> None:
        """Unmap; if somebody still holds a view, the last of them to go does that."""
        with contextlib.suppress(BufferError):
            self._view.release()

    def __enter__(self) -> GuestMemory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@contextlib.contextmanager
def _mapping(length: int) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise HostError(f"cannot map {length} bytes of guest memory: {why}") from error
