"""The io_uring of another process, had besides: the kernel keeps it when that process is dead, as
it does while direct I/O that was asked of it is not done."""

from __future__ import annotations

import ctypes
import os

_PIDFD_GETFD = 438  # on every architecture


def duplicate(pid: int) -> int:
    """Of the one that process ``pid`` has open; OSError if that may not be, which root may."""
    (found,) = (
        int(fd)
        for fd in os.listdir(f"/proc/{pid}/fd")
        if os.readlink(f"/proc/{pid}/fd/{fd}") == "anon_inode:[io_uring]"
    )
    pidfd, libc = os.pidfd_open(pid), ctypes.CDLL(None, use_errno=True)
    made = int(libc.syscall(_PIDFD_GETFD, pidfd, found, 0))
    os.close(pidfd)
    if made < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return made
