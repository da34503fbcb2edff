"""Doorbells: eventfds that one side rings and the other waits for.

A kick goes from the guest to a device, a call from a device to the guest; KVM wires both
(ioeventfd, irqfd), so no process of ours stands between.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable


def create() -> int:
    """A fresh doorbell, close-on-exec and non-blocking; the caller owns the descriptor."""
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


def ring(fd: int) -> None:
    """Ring once. A full counter is a doorbell that is ringing already; of a socket, which may
    stand for an eventfd where its owner reads it, nobody may be there any more, or ever was.

    Where a hostile process holds the other end, only after :func:`steady`.
    """
    try:
        os.eventfd_write(fd, 1)
    except OSError as error:
        if error.errno == errno.EBADF:  # which would be our own mistake
            raise


def steady(fds: Iterable[int]) -> None:
    """Make ringing these never block, again: who holds the other end, and is behind its seal by
    now, could have filled the counter and cleared O_NONBLOCK, which both ends share, before."""
    for fd in fds:
        os.set_blocking(fd, False)


def drain(fd: int) -> int:
    """How often it was rung since the last drain; 0 if not at all."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def is_one(fd: int) -> bool:
    """Whether ``fd``, which somebody has sent, is an eventfd: what can be rung and drained."""
    if stat.S_IFMT(os.fstat(fd).st_mode):  # it has a type, as files, pipes and sockets do
        return False
    try:
        os.eventfd_write(fd, 0)  # which changes nothing, and nothing else of that kind takes
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True
