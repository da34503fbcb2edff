"""Locks on the files of devices. They are the launcher's, so that they outlive any process.

A file that was made for a device has no name at first: so a run that is refused, or only planned,
leaves nothing behind. It gets its name when it is to serve, and goes with its lock unless it does::

    take(…, name) ──► name ──► settle: it stays
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

from protocol.errors import BadInput

# Seconds for a run before this one to let go of a file, and between two looks: its direct I/O by an
# io_uring holds that, measured up to 36 ms after the end of the last process (else arbitrary).
_PATIENCE, _LOOK = 0.5, 0.01

_File = tuple[int, int]


@dataclass(slots=True)
class _Lock:
    fd: int
    owner: str
    is_shared: bool
    name: str = ""  # of a new file, until it serves

    def let_go(self) -> None:
        # Where the file system has only files with names, it may have one that was never wanted.
        with contextlib.suppress(OSError):
            if self.name and os.path.samestat(os.lstat(self.name), os.fstat(self.fd)):
                os.unlink(self.name)
        os.close(self.fd)


class Locks:
    """What the devices of one machine have locked."""

    def __init__(self) -> None:
        self._held: dict[_File, list[_Lock]] = {}

    def take(self, owner: str, fd: int, *, shared: bool, name: str = "") -> bool:
        """Lock the file ``fd`` for device ``owner``; whether that could be done. One that was made
        for it is to have ``name``, an absolute path.

        What ``owner`` has locked already is its own: an earlier process of it serves on until
        another takes its place.
        """
        if name and any(lock.name == name for lock in self._all()):
            return False
        held = self._held.setdefault(_file(fd), [])
        own = next((lock for lock in held if lock.owner == owner), None)
        if own is not None and own.is_shared <= shared:
            return True
        # A lock belongs to an open file, and so to all duplicates of its descriptor.
        lock = own or _Lock(os.dup(fd), owner, shared, name)
        if not _lock(lock.fd, shared=shared, patience=0 if held else _PATIENCE):
            if own is None:
                os.close(lock.fd)
            else:  # the kernel lets go of what it could not convert
                fcntl.flock(lock.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        lock.is_shared = shared
        if own is None:
            held.append(lock)
        return True

    def name(self, owner: str, option: str) -> None:
        """Give the files that were made for ``owner`` their names. BadInput, of ``option``, if one
        cannot have it: somebody else may have come first."""
        for lock in self._all():
            if lock.owner == owner and lock.name and not os.fstat(lock.fd).st_nlink:
                try:
                    _link(lock.fd, lock.name)
                except OSError as error:
                    where, why = f"{option} ({owner})", f"{lock.name}: {error.strerror}"
                    raise BadInput(where, why) from error

    def settle(self, owner: str) -> None:
        """``owner`` serves: what was made for it, and has its name, stays."""
        for lock in self._all():
            if lock.owner == owner and os.fstat(lock.fd).st_nlink:
                lock.name = ""

    def keep_only(self, owner: str, fds: list[int]) -> None:
        """Of what ``owner`` has locked, let go of all files but those of ``fds``."""
        wanted = {_file(fd) for fd in fds}
        for file, held in list(self._held.items()):
            for lock in [lock for lock in held if lock.owner == owner and file not in wanted]:
                held.remove(lock)
                # Whoever served from that file is quiet, and may take its time to die.
                fcntl.flock(lock.fd, fcntl.LOCK_UN)
                lock.let_go()
            if not held:
                del self._held[file]

    def close(self) -> None:
        """Let go of everything."""
        for lock in self._all():
            lock.let_go()
        self._held.clear()

    def _all(self) -> Iterator[_Lock]:
        for held in self._held.values():
            yield from held


def _lock(fd: int, *, shared: bool, patience: float) -> bool:
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(_LOOK)
        else:
            return True


def _link(fd: int, name: str) -> None:
    # Of the two calls that link(2) is, the one with descriptors follows what /proc has.
    descriptors = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.link(str(fd), name, src_dir_fd=descriptors)
    finally:
        os.close(descriptors)
    os.fsync(fd)


def _file(fd: int) -> _File:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino
