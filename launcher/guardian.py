"""Puts a terminal back for a process that cannot: one that was killed.

``vibevmm run`` has the VMM for that, which outlives its launcher and removes its files, too
(vmm.guard). A command without a VMM has a child that holds the terminal and one end of a socket
pair, and waits for the other end to close, as it does whatever its holder dies of.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator

from protocol import terminal as modes


@contextlib.contextmanager
def guarded(terminal: int) -> Iterator[None]:
    """Within, the descriptor ``terminal`` may be made raw (protocol.terminal). When this is left
    it is what it was before, and so if this process is killed, or else its guardian."""
    saved = modes.save(terminal)
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            guardian = _fork(terminal, saved, theirs)
        try:
            ours.recv(1)  # it is there, or dead
            yield
        finally:
            modes.restore(terminal, saved)
            ours.close()
            os.waitpid(guardian, 0)


def _fork(terminal: int, saved: bytes, channel: socket.socket) -> int:
    # No signal ends it, from its first moment on.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        guardian = os.fork()
        if not guardian:
            _guard(terminal, saved, channel)
        return guardian
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _guard(terminal: int, saved: bytes, channel: socket.socket) -> None:
    # In the child, which never returns.
    try:
        # Out of the job, which may be killed as a whole, and away from the terminal's job control,
        # which would hold up a change from the background.
        os.setsid()
        fd = os.dup2(terminal, 0)
        end = os.dup2(channel.fileno(), 1)
        os.closerange(2, os.sysconf("SC_OPEN_MAX"))
        os.write(end, b".")
        os.read(end, 1)
        modes.restore(fd, saved)
    finally:
        os._exit(0)
