"""Finds devices that hang: alive, and of no use.

Two signs. A queue that owes progress holds work, and no chain of it has been used for too long. Or
the process does not answer a Ping, though nothing else is asked of it. Queues on which a chain may
rightly wait for ever, such as a console's for input, owe nothing (specs.DeviceSlot.owing). Neither
does a process that was started by hand: it may sit at a breakpoint.

Time is counted in looks, not by a clock: a VMM that was stopped for a minute, and its devices
with it, has looked at none of them in that minute.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from protocol.lifecycle import State
from protocol.memory import GuestMemory
from protocol.messages import Ping
from vmm.remote import RemoteDevice
from vmm.seat import Seat

LOOKS = 4
"""Looks without progress that make a hang. Of few, one that comes late counts too much."""


@dataclass(slots=True)
class _Patience:
    # With one process of a device: looks since its last answer, and since each queue's progress.
    remote: RemoteDevice
    ping: Future[Any] | None = None
    unanswered: int = 0
    used: dict[int, int] = field(default_factory=dict)
    idle: dict[int, int] = field(default_factory=dict)


class Watchdog:
    """Looks at each of ``seats``, whose rings lie in the memory beside it."""

    def __init__(self, seats: list[tuple[Seat, GuestMemory]]) -> None:
        self._seats = seats
        self._patience: dict[str, _Patience] = {}

    def look(self) -> None:
        """Once every so often: what has hung for :data:`LOOKS` looks is killed."""
        for seat, memory in self._seats:
            # Of one that is dead it is the kernel that is waited for.
            if (remote := seat.remote) is None or remote.by_hand or remote.died_at is not None:
                continue
            patience = self._patience.get(seat.name)
            if patience is None or patience.remote is not remote:
                patience = self._patience[seat.name] = _Patience(remote)
            if (why := self._verdict(seat, patience, memory)) is not None:
                remote.fence(why, hung=True)

    def _verdict(self, seat: Seat, patience: _Patience, memory: GuestMemory) -> str | None:
        if patience.ping is None or patience.ping.done():
            patience.ping, patience.unanswered = patience.remote.ask(Ping()), 0
        else:
            patience.unanswered += 1
        patience.remote.is_silent = patience.unanswered > 0
        if patience.unanswered >= LOOKS:
            return "it does not answer"
        # In this order: what was asked to run, and does, lies in guest memory.
        running = seat.running
        if patience.remote.life.state is not State.RUNNING:
            return None
        for setup in running:
            if setup.index not in seat.slot.owing:
                continue
            used = _index(memory, setup.used)
            has_work = _index(memory, setup.avail) != used
            if has_work and patience.used.get(setup.index) == used:
                patience.idle[setup.index] = patience.idle.get(setup.index, 0) + 1
            else:
                patience.idle[setup.index] = 0
            patience.used[setup.index] = used
            if patience.idle[setup.index] >= LOOKS:
                return f"queue {setup.index} has work, and makes no progress"
        return None


def _index(memory: GuestMemory, ring: int) -> int:
    # Of either ring, behind its flags (virtio 1.2, sections 2.7.6 and 2.7.8).
    return int.from_bytes(memory.view(ring + 2, 2), "little")
