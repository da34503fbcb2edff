"""Locks on the files of devices. They are the launcher's, so that they outlive any process."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass

_File = tuple[int, int]


@dataclass(slots=True)
class _Lock:
    fd: int
    owner: str
    is_shared: bool


class Locks:
    """What the devices of one machine have locked."""

    def __init__(self) -> None:
        self._held: dict[_File, list[_Lock]] = {}

    def take(self, owner: str, fd: int, *, shared: bool) -> bool:
        """Lock the file ``fd`` for device ``owner``; whether that could be done.

        What ``owner`` has locked already is its own: an earlier process of it serves on until
        another takes its place.
        """
        held = self._held.setdefault(_file(fd), [])
        own = next((lock for lock in held if lock.owner == owner), None)
        if own is not None and own.is_shared <= shared:
            return True
        # A lock belongs to an open file, and so to all duplicates of its descriptor.
        lock = own or _Lock(os.dup(fd), owner, shared)
        try:
            fcntl.flock(lock.fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            if own is None:
                os.close(lock.fd)
            else:  # the kernel lets go of what it could not convert
                fcntl.flock(lock.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        lock.is_shared = shared
        if own is None:
            held.append(lock)
        return True

    def keep_only(self, owner: str, fds: list[int]) -> None:
        """Of what ``owner`` has locked, let go of all files but those of ``fds``."""
        wanted = {_file(fd) for fd in fds}
        for file, held in list(self._held.items()):
            for lock in [lock for lock in held if lock.owner == owner and file not in wanted]:
                held.remove(lock)
                # Whoever served from that file is quiet, and may take its time to die.
                fcntl.flock(lock.fd, fcntl.LOCK_UN)
                os.close(lock.fd)
            if not held:
                del self._held[file]

    def close(self) -> None:
        """Let go of everything."""
        for held in self._held.values():
            for lock in held:
                os.close(lock.fd)
        self._held.clear()


def _file(fd: int) -> _File:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino
