"""A terminal's mode: saved, made raw, and put back by whoever is left to do it.

The launcher makes the user's terminal raw. It puts it back when it ends, however it ends;
should it be killed, the VMM does, which was handed the terminal and what it was like; and for
``vibevmm attach``, which has no VMM, a child of its own (launcher.guardian).
"""

from __future__ import annotations

import contextlib
import termios
from typing import Any

from protocol import codec
from protocol.errors import ProtocolError

# Indices into the list of termios.tcgetattr.
_IFLAG, _LFLAG, _CC = 0, 3, 6


def save(fd: int) -> bytes:
    """The attributes of terminal ``fd``, for :func:`restore` in this process or another."""
    return codec.pack(termios.tcgetattr(fd))


def raw(fd: int) -> None:
    """Every key goes to the guest, and none is shown, edited or made a signal.

    Output processing stays: a line feed of ours still begins a line.
    """
    attributes: list[Any] = termios.tcgetattr(fd)
    attributes[_IFLAG] &= ~(
        termios.ICRNL | termios.INLCR | termios.IGNCR | termios.IXON | termios.ISTRIP
    )
    attributes[_LFLAG] &= ~(termios.ICANON | termios.ECHO | termios.ISIG | termios.IEXTEN)
    attributes[_CC][termios.VMIN] = 1
    attributes[_CC][termios.VTIME] = 0
    termios.tcsetattr(fd, termios.TCSANOW, attributes)


def restore(fd: int, saved: bytes) -> None:
    """Put back what :func:`save` gave, if the terminal is still in our raw mode.

    A shell that has the terminal back already may have made modes of its own; those keep ISIG,
    which raw mode has not. A terminal that is gone needs nothing.
    """
    with contextlib.suppress(termios.error, OSError):
        if not termios.tcgetattr(fd)[_LFLAG] & termios.ISIG:
            attributes = codec.unpack(saved)
            if not isinstance(attributes, list):
                raise ProtocolError("what was saved is not a terminal's attributes")
            termios.tcsetattr(fd, termios.TCSANOW, attributes)
