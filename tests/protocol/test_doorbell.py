"""Doorbells: rings are counted, and neither side ever waits for the other."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Iterator

import pytest

from protocol import doorbell

# eventfd(2): the highest count; one more would block.
FULL = (1 << 64) - 2


@pytest.fixture
def bell() -> Iterator[int]:
    fd = doorbell.create()
    yield fd
    os.close(fd)


def rings(bell: int) -> bool:
    return bool(select.select([bell], [], [], 0)[0])


def test_a_fresh_doorbell_is_silent_and_its_drain_does_not_wait(bell: int) -> None:
    assert not rings(bell)
    assert doorbell.drain(bell) == 0


def test_a_drain_takes_every_ring_since_the_last(bell: int) -> None:
    doorbell.ring(bell)
    doorbell.ring(bell)

    assert rings(bell)
    assert doorbell.drain(bell) == 2
    assert not rings(bell)
    assert doorbell.drain(bell) == 0


def test_a_full_doorbell_goes_on_ringing(bell: int) -> None:
    os.eventfd_write(bell, FULL)

    doorbell.ring(bell)

    assert doorbell.drain(bell) == FULL


def test_a_socket_at_which_nobody_is_may_be_rung_and_what_is_closed_may_not() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.socket(socket.AF_UNIX) as alone:
        theirs.close()
        for one in (ours, alone):
            doorbell.ring(one.fileno())
        closed = ours.fileno()
        ours.close()
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            doorbell.ring(closed)


def test_a_doorbell_does_not_outlive_an_exec(bell: int) -> None:
    assert not os.get_inheritable(bell)
