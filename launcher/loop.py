"""The launcher's event loop: descriptors that become ready, and times that come.

Poll rather than epoll, because standard input may be a regular file, which epoll refuses and
poll calls always ready.
"""

from __future__ import annotations

import heapq
import itertools
import select
import time
from collections.abc import Callable
from typing import NamedTuple

Callback = Callable[[], object]


class _Timer(NamedTuple):
    when: float
    order: int
    callback: Callback


class Loop:
    """Calls back, one at a time, what is ready; owns no descriptor."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._readers: dict[int, Callback] = {}
        self._writers: dict[int, Callback] = {}
        self._timers: list[_Timer] = []
        self._fresh: set[int] = set()
        self._order = itertools.count()
        self._ended = False

    def on_readable(self, fd: int, callback: Callback | None) -> None:
        """Call back whenever ``fd`` can be read or its other side is gone; None: no more."""
        self._set(self._readers, fd, callback)

    def on_writable(self, fd: int, callback: Callback | None) -> None:
        """Call back whenever ``fd`` takes something; None: no more."""
        self._set(self._writers, fd, callback)

    def after(self, seconds: float, callback: Callback) -> None:
        """Call back once, ``seconds`` from now."""
        heapq.heappush(
            self._timers, _Timer(time.monotonic() + seconds, next(self._order), callback)
        )

    def end(self) -> None:
        """Make :meth:`run` return when the callback that is running has returned."""
        self._ended = True

    def run(self) -> None:
        """Call back until :meth:`end`."""
        self._ended = False
        while not self._ended:
            self._fire_timers()
            if self._ended:
                return
            self._fresh.clear()
            for fd, events in self._poll.poll(self._wait()):
                # An earlier callback of this round may have forgotten a later descriptor, and
                # closed it, so that its number is another's now, of which poll knew nothing.
                if fd in self._fresh:
                    continue
                if events & ~select.POLLOUT and fd in self._readers:
                    self._readers[fd]()
                if events & ~select.POLLIN and fd in self._writers and not self._ended:
                    self._writers[fd]()
                if self._ended:
                    return

    def _fire_timers(self) -> None:
        # Those due by now: one that sets itself again must not keep descriptors waiting.
        now = time.monotonic()
        while self._timers and self._timers[0].when <= now and not self._ended:
            heapq.heappop(self._timers).callback()

    def _wait(self) -> float | None:
        if not self._timers:
            return None
        # Rounded up: a poll that ends just before the time would be one round for nothing.
        return max(0.0, self._timers[0].when - time.monotonic()) * 1000 + 1

    def _set(self, table: dict[int, Callback], fd: int, callback: Callback | None) -> None:
        if callback is None:
            table.pop(fd, None)
        else:
            if fd not in self._readers and fd not in self._writers:
                self._fresh.add(fd)
            table[fd] = callback
        events = (select.POLLIN if fd in self._readers else 0) | (
            select.POLLOUT if fd in self._writers else 0
        )
        if events:
            self._poll.register(fd, events)
        elif fd not in self._readers and fd not in self._writers:
            try:
                self._poll.unregister(fd)
            except KeyError:
                return  # it never was
