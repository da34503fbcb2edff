"""Undoes what a process that was killed cannot: a raw terminal, a folder of temporary files.

``vibevmm run`` has the VMM for that, which outlives its launcher and removes its files, too
(vmm.guard). Who has no VMM, or none yet, has a child that holds one end of a socket pair, and waits
for the other end to close, as it does whatever its holder dies of.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

from protocol import terminal as modes


@contextlib.contextmanager
def guarded(terminal: int) -> Iterator[None]:
    """Within, the descriptor ``terminal`` may be made raw (protocol.terminal). When this is left
    it is what it was before, and so if this process is killed, or else its guardian."""
    saved = modes.save(terminal)
    with cleaned_up(partial(modes.restore, terminal, saved), terminal):
        yield


@contextlib.contextmanager
def folder(prefix: str, within: str | None = None) -> Iterator[Path]:
    """A new folder, of which nobody else may see anything, in ``within``, or where temporary files
    go. When this is left it is gone with all in it, and so if this process is killed, or else its
    guardian."""
    import secrets
    import tempfile

    path = Path(within or tempfile.gettempdir(), f"{prefix}{secrets.token_hex(8)}")
    with cleaned_up(partial(_remove, path)):
        path.mkdir(mode=0o700)
        yield path


def _remove(path: Path) -> None:
    import shutil  # the start of a machine does not wait for it

    # Again, if somebody who is about to end has made a file meanwhile.
    for _ in range(_MOST_REMOVALS):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return


_MOST_REMOVALS = 100  # arbitrary


@contextlib.contextmanager
def cleaned_up(clean_up: Callable[[], None], *kept: int) -> Iterator[None]:
    """When this is left ``clean_up`` is called, and so if this process is killed, or else its
    guardian: it may be called twice. It needs the descriptors ``kept``."""
    with watched(clean_up, *kept):
        try:
            yield
        finally:
            clean_up()


@contextlib.contextmanager
def watched(clean_up: Callable[[], None], *kept: int) -> Iterator[None]:
    """When this is left, or this process is killed, a guardian calls ``clean_up``, which needs the
    descriptors ``kept``."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            guardian = _fork(clean_up, theirs, kept)
        try:
            ours.recv(1)  # it is there, or dead
            yield
        finally:
            ours.close()
            os.waitpid(guardian, 0)


def _fork(clean_up: Callable[[], None], channel: socket.socket, kept: tuple[int, ...]) -> int:
    # No signal ends it, from its first moment on.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        guardian = os.fork()
        if not guardian:
            _guard(clean_up, channel, kept)
        return guardian
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _guard(clean_up: Callable[[], None], channel: socket.socket, kept: tuple[int, ...]) -> None:
    # In the child, which never returns.
    try:
        # Out of the job, which may be killed as a whole, and away from the terminal's job control,
        # which would hold up a change from the background.
        os.setsid()
        bounds = (-1, *sorted((*kept, channel.fileno())), os.sysconf("SC_OPEN_MAX"))
        for below, above in pairwise(bounds):
            if below + 1 < above:  # (0, 0) is no empty range: CPython 3.11 closes all
                os.closerange(below + 1, above)
        channel.send(b".")
        channel.recv(1)
        clean_up()
    finally:
        os._exit(0)
