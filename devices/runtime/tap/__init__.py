"""Taps: Ethernet interfaces of the host whose other end is a descriptor."""

from __future__ import annotations

import fcntl
import os
from typing import Final

from devices.runtime.tap._tap import lib

SET_OFFLOADS: Final[int] = lib.TUNSETOFFLOAD
"""The number of the ioctl(2) that :func:`set_offloads` makes."""

CHECKSUM: Final[int] = lib.TUN_F_CSUM
TSO4: Final[int] = lib.TUN_F_TSO4
TSO6: Final[int] = lib.TUN_F_TSO6
ECN: Final[int] = lib.TUN_F_TSO_ECN
"""What a packet from the host may come without, or with (ECN)."""


def open_tap(name: str) -> int:
    """A descriptor of tap ``name``, which does not block; the caller's to close. It is made if it
    is not there, and gone again with the descriptor. OSError."""
    return _checked(lib.tap_open(name.encode()))


def up(name: str, mtu: int) -> None:
    """Have an interface that was made here run, with packets of up to ``mtu`` bytes if that is not
    0. OSError."""
    _checked(lib.tap_up(name.encode(), mtu))


def set_offloads(tap: int, offloads: int) -> None:
    """From now on packets from the host may be as ``offloads`` say, a sum of the above. OSError."""
    fcntl.ioctl(tap, SET_OFFLOADS, offloads)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result
