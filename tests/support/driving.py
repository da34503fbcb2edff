"""Who drives the queues of a device process, whatever else is said to that: requests, and answers.

Both that are there, a VMM's half (device_host.py) and another front-end (front_end.py), ring the
device and hear of it by doorbells of their own.
"""

from __future__ import annotations

import select
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

from protocol import doorbell
from tests.support.driver import Driver, Used

DEADLINE = 20.0
"""Seconds that anything here may take on a busy machine before it counts as a hang."""


class Driving(ABC):
    """``drivers`` are those of its queues, by their index."""

    drivers: dict[int, Driver]

    @abstractmethod
    def _kick(self, index: int) -> int:
        """The doorbell that rings the device."""

    @abstractmethod
    def _call(self, index: int) -> int:
        """The one that the device rings."""

    def log(self) -> str:
        """What the process has said, as far as that is known."""
        return ""

    def kick(self, index: int = 0) -> None:
        """Ring the device, whether it wants it or not."""
        doorbell.ring(self._kick(index))

    def publish(self, index: int = 0) -> None:
        """Make available what the driver of queue ``index`` has added, and kick if it should."""
        if self.drivers[index].publish():
            self.kick(index)

    def send(
        self, readable: Sequence[bytes] = (), writable: Sequence[int] = (), index: int = 0
    ) -> Used:
        """One request and its answer."""
        head = self.drivers[index].add(readable, writable)
        self.publish(index)
        (used,) = self.collect(1, index)
        assert used.head == head
        return used

    def collect(self, count: int, index: int = 0) -> list[Used]:
        """The next ``count`` used buffers, waiting for interrupts in between."""
        driver, found = self.drivers[index], list[Used]()
        deadline = time.monotonic() + DEADLINE
        while True:
            found += driver.collect()
            if len(found) >= count:
                assert len(found) == count
                return found
            left = deadline - time.monotonic()
            if not driver.want_interrupts() and not self.interrupted(left, index):
                raise AssertionError(f"{len(found)} of {count} used; the device says {self.log()}")

    def interrupted(self, seconds: float = DEADLINE, index: int = 0) -> bool:
        """Whether the device interrupts within ``seconds``."""
        call = self._call(index)
        if select.select([call], [], [], max(seconds, 0))[0]:
            return doorbell.drain(call) > 0
        return False
