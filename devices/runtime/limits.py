"""How much a queue may do in a second: requests, and bytes of them."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

ENDLESS = (1 << 63) - 1
"""More than can be asked for."""


class _Bucket:
    # Fills with `rate` a second, up to a second's worth; 0: is never empty. What is taken may be
    # more than there is: then it has to fill again from below.
    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.level = float(rate)

    def fill(self, seconds: float) -> None:
        self.level = min(self.level + self.rate * seconds, float(self.rate))

    @property
    def left(self) -> int:
        return min(int(self.level), ENDLESS) if self.rate else ENDLESS

    @property
    def seconds(self) -> float:
        # Until one can be taken.
        return (1 - self.level) / self.rate if self.rate and self.level < 1 else 0.0


class Limit:
    """So many ``requests`` and ``size`` bytes a second, 0 for as many as there are; after idle
    time a second's worth of either comes at once. A request is begun as long as one request and
    one byte are left, so that a large one is let through, and paid for after it."""

    def __init__(self, requests: int, size: int, clock: Callable[[], float] = monotonic) -> None:
        self._requests, self._bytes = _Bucket(requests), _Bucket(size)
        self._clock = clock
        self._filled = clock()

    def left(self) -> tuple[int, int]:
        """Requests and bytes that may be begun now."""
        now = self._clock()
        for bucket in (self._requests, self._bytes):
            bucket.fill(now - self._filled)
        self._filled = now
        return self._requests.left, self._bytes.left

    def take(self, requests: int, size: int) -> None:
        """So much was begun."""
        self._requests.level -= requests
        self._bytes.level -= size

    def wait(self) -> float:
        """Seconds until a request may be begun; 0: at once."""
        self.left()
        return max(self._requests.seconds, self._bytes.seconds)
