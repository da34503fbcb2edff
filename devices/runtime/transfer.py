"""A device's state on its way to or from another program, as vhost-user has it: through a pipe, or
another descriptor whose end is the state's end.

Whoever is at the other end is hostile: it has so long, and so many bytes.
"""

from __future__ import annotations

import os
import select
import stat
import time

from protocol.errors import ProtocolError
from protocol.messages import MAX_STATE

PATIENCE = 2.0
"""Seconds for all of it (arbitrary, and much: it is 56 KiB at most)."""

# Of a pipe that has room for anything there is room for so much: to write it waits for nobody.
_PIECE = select.PIPE_BUF


def check(fd: int) -> None:
    """ProtocolError if no state comes or goes through ``fd``."""
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISREG(mode)):
        raise ProtocolError("the descriptor is no pipe, no socket and no file")


def receive(fd: int, begun: bytes = b"") -> bytes:
    """The state, of which ``begun`` is here. ProtocolError if it is too large, or does not end."""
    state, until = bytearray(begun), time.monotonic() + PATIENCE
    while piece := _read(fd, until):
        state += piece
        if len(state) > MAX_STATE:
            raise ProtocolError(f"the state is more than {MAX_STATE} bytes")
    return bytes(state)


def send(fd: int, state: bytes) -> None:
    """Write it; that it ends, who closes ``fd`` says. ProtocolError if nobody reads."""
    left, until = memoryview(state), time.monotonic() + PATIENCE
    while left:
        _wait(fd, select.POLLOUT, until)
        try:
            left = left[os.write(fd, left[:_PIECE]) :]
        except BlockingIOError:
            continue
        except OSError as error:
            raise ProtocolError(f"the state is not taken: {error.strerror}") from error


def _read(fd: int, until: float) -> bytes:
    while True:
        _wait(fd, select.POLLIN, until)
        try:
            return os.read(fd, MAX_STATE)
        except BlockingIOError:
            continue
        except OSError as error:
            raise ProtocolError(f"the state does not come: {error.strerror}") from error


def _wait(fd: int, event: int, until: float) -> None:
    waiting = select.poll()
    waiting.register(fd, event)
    left = until - time.monotonic()
    if left <= 0 or not waiting.poll(left * 1000):
        raise ProtocolError(f"the state does not end within {PATIENCE:g} seconds")
