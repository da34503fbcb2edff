"""What is done when a device's process dies, and how soon it is tried again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from enum import Enum


class OnDeath(Enum):
    """The choices of ``on-death``."""

    RESTART = "restart"
    """A successor takes over, as often as it takes."""
    FAIL_IO = "fail-io"
    """A successor answers every request with an error."""
    PAUSE_VM = "pause-vm"
    """The guest stands still until somebody restarts the device."""
    STOP_VM = "stop-vm"
    """The machine ends, with exit status 3."""


# Seconds, all arbitrary. A process that served so long was healthy: the next one starts at once.
# One that a guest's request kills dies sooner.
_HEALTHY = 0.1
_FIRST, _LONGEST = 0.02, 5.0


class BackOff:
    """Delays before each attempt, from nothing to a few seconds, for as long as attempts fail."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock
        self._jitter = jitter
        self._failures = 0
        self._serving_since: float | None = clock()

    def served(self) -> None:
        """An attempt has succeeded: a process serves."""
        self._serving_since = self._clock()

    def patience(self, first: float, longest: float) -> float:
        """The seconds that the attempt which is under way has: ``first``, and after each that
        failed twice as long, up to ``longest``, for what was slow is not to fail for ever."""
        return min(longest, first * 2.0 ** min(max(0, self._failures - 1), 30))

    def delay(self) -> float:
        """One has failed, or died: the seconds to wait before the next."""
        since, self._serving_since = self._serving_since, None
        if since is not None and self._clock() - since >= _HEALTHY:
            self._failures = 0
        self._failures += 1
        if self._failures == 1:
            return 0.0
        longest = min(_LONGEST, _FIRST * 2.0 ** min(self._failures - 2, 30))
        # Half of it by chance: devices that died together do not come back together.
        return longest * (0.5 + 0.5 * self._jitter())
