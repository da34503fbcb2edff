"""``inject``: what a client asks for, checked, and put on a device's board."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from devices.runtime.device import QueueDeclaration
from protocol import control as wire
from protocol import faults
from protocol.errors import BadInput
from protocol.faults import Board, Fault

# Nanoseconds that a fault, or a delay, may last: a day (arbitrary).
_LONGEST = 86_400 * 10**9


def obey(request: wire.Inject, queues: Sequence[QueueDeclaration], board: Board) -> None:
    """Do what ``request`` says, to the ``board`` of a device with ``queues``; BadInput, and then
    nothing is done."""
    if request.fault == faults.NONE:
        board.clear()
    elif request.fault:
        board.arm(_fault(request, queues))


def _fault(request: wire.Inject, queues: Sequence[QueueDeclaration]) -> Fault:
    point = faults.check(request.fault, request.point)
    can_be_short = any(not queue.verdict for queue in queues)
    if request.fault == faults.SHORT_WRITE and not can_be_short:
        raise BadInput(request.fault, f"no answer of {request.device} may be shorter than its room")
    for name, value, most in (
        ("--after", request.after, faults.MOST),
        ("--every", request.every, faults.MOST),
        ("--seed", request.seed or 0, 2**64 - 1),
    ):
        if not 0 <= value <= most:
            raise BadInput(name, f"{value} is not from 0 to {most}")
    for name, time_ in (("--for", request.lasts), ("delay", request.delay)):
        if not 0 <= time_ <= _LONGEST:
            raise BadInput(name, f"from 0 to {_LONGEST // 10**9} seconds")
    seed = int.from_bytes(os.urandom(4)) if request.seed is None else request.seed
    # What has an end strikes until then, unless it is told how often.
    every = request.every or int(request.lasts > 0)
    until = time.monotonic_ns() + request.lasts if request.lasts else 0
    return Fault(request.fault, point, request.after, every, until, seed, request.delay)


def armed(board: Board) -> wire.Armed:
    """What is on it."""
    now = time.monotonic_ns()
    return wire.Armed(
        tuple(
            wire.ArmedFault(
                fault.name,
                fault.point,
                fault.after,
                fault.every,
                max(0, fault.until - now) if fault.until else None,
                fault.seed,
                fault.delay,
                passes,
                fault.strikes(passes),
            )
            for fault, passes in board.armed()
        )
    )
