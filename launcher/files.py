"""The files that a run writes: opened and compared first, emptied once it is sure to start.

A run that is refused leaves them as they were. Nothing is ever waited for, and nothing that the
run reads is written over.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable

from protocol.errors import BadInput

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_NO_FILE = "neither a regular file nor a character device, such as /dev/null"


class OutputFiles:
    """The files of one run; ``inputs`` are the descriptors that it reads from, with their names
    for the user."""

    def __init__(self, inputs: Iterable[tuple[str, int]]) -> None:
        self._owners: dict[tuple[int, int], str] = {}
        for owner, fd in inputs:
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode):
                self._owners[status.st_dev, status.st_ino] = owner
        self._files: list[tuple[str, str, int]] = []
        self._made: list[str] = []

    def open(self, option: str, path: str) -> int:
        """A descriptor for writing at the end of ``path``, which stays this object's; nothing in
        the file changes yet. BadInput names ``option``."""
        try:
            fd = self._opened(path)
        except OSError as error:
            # What a FIFO says that nobody reads, and a socket.
            why = _NO_FILE if error.errno == errno.ENXIO else error.strerror
            raise BadInput(option, f"{path}: {why}") from error
        self._files.append((option, path, fd))
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode):
            owner = self._owners.setdefault((status.st_dev, status.st_ino), option)
            if owner is not option:
                raise BadInput(option, f"{path}: this is the file of {owner}, too")
        elif not stat.S_ISCHR(status.st_mode):
            raise BadInput(option, f"{path}: {_NO_FILE}")
        os.set_blocking(fd, True)
        return fd

    def begin(self) -> None:
        """Empty the files: the run can no longer be refused."""
        for option, path, fd in self._files:
            try:
                if stat.S_ISREG(os.fstat(fd).st_mode):
                    os.ftruncate(fd, 0)
            except OSError as error:
                raise BadInput(option, f"{path}: {error.strerror}") from error
        self._made.clear()

    def close(self) -> None:
        """Close the files; what was made for a run that did not begin is removed."""
        for path in self._made:
            os.unlink(path)
        for _, _, fd in self._files:
            os.close(fd)
        self._made.clear()
        self._files.clear()

    def _opened(self, path: str) -> int:
        try:
            return os.open(path, _FLAGS)
        except FileNotFoundError:
            # Made where a symbolic link leads, and known to be made by us.
            real = os.path.realpath(path)
        try:
            fd = os.open(real, _FLAGS | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return os.open(path, _FLAGS)  # somebody was faster
        self._made.append(real)
        return fd
