"""The event loop of a device process: one thread, descriptors, and nothing else to wait for."""

from __future__ import annotations

import math
import select
from collections.abc import Callable
from time import monotonic

Callback = Callable[[], None]

Sleeper = Callable[[int, int], None]
"""Sleeps until a descriptor is readable, for so many milliseconds at most; -1: for ever."""


class Loop:
    """Calls back when descriptors are ready, then what was put off, until it is stopped."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        # A dict for its order: a callback that was put off twice is called once.
        self._soon: dict[Callback, None] = {}
        self._later: dict[Callback, float] = {}
        self._stopped = False
        self.sleeper: Sleeper | None = None
        """Sleeps in this loop's place, and serves meanwhile what it itself waits for."""

    def fileno(self) -> int:
        """Its own descriptor."""
        return self._epoll.fileno()

    def add(self, fd: int, callback: Callback, events: int = select.EPOLLIN) -> None:
        """Call ``callback`` when ``fd`` has ``events``, level-triggered unless they say EPOLLET."""
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def remove(self, fd: int) -> None:
        """Look at ``fd`` no more, if it was looked at."""
        if self._callbacks.pop(fd, None):
            self._epoll.unregister(fd)

    def soon(self, callback: Callback) -> None:
        """Call ``callback`` once, before the loop sleeps again."""
        self._soon[callback] = None

    def later(self, callback: Callback, seconds: float) -> None:
        """Call ``callback`` once, when ``seconds`` have passed; if it was to be called already,
        then instead."""
        self._later[callback] = monotonic() + seconds

    def stop(self) -> None:
        """Make :meth:`run` return after this turn."""
        self._stopped = True

    def run(self) -> None:
        """Serve until stopped. What is put off during a turn's end belongs to the next turn, so
        a callback that always puts itself off starves no descriptor."""
        while not self._stopped:
            for fd, _ in self._ready():
                # An earlier callback of this turn may have removed it.
                callback = self._callbacks.get(fd)
                if callback is not None:
                    callback()
            if self._later:
                self._wake()
            put_off, self._soon = self._soon, {}
            for callback in put_off:
                callback()

    def _ready(self) -> list[tuple[int, int]]:
        milliseconds = 0 if self._soon else self._patience()
        if self.sleeper is None:
            return self._epoll.poll(milliseconds / 1000 if milliseconds > 0 else milliseconds)
        self.sleeper(self._epoll.fileno(), milliseconds)
        return self._epoll.poll(0)

    def _patience(self) -> int:
        # Milliseconds that may be slept; -1: for ever. Rounded up, or the end of them would spin.
        if not self._later:
            return -1
        return max(0, math.ceil((min(self._later.values()) - monotonic()) * 1000))

    def _wake(self) -> None:
        now = monotonic()
        for callback in [one for one, when in self._later.items() if when <= now]:
            del self._later[callback]
            self._soon[callback] = None

    def close(self) -> None:
        """Wait for nothing any more."""
        self._epoll.close()
