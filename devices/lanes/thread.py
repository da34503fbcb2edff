"""A queue that a lane serves on a thread of its own."""

from __future__ import annotations

import os
from typing import Any

from devices.lanes.lane import End
from devices.lanes.queue import LaneQueue
from protocol import doorbell
from protocol.errors import HostError
from protocol.ring import RingBroken


class ThreadedQueue(LaneQueue):
    """The thread is C's (thread.h) and there before the seal. It parks for whatever is Python's to
    do: a chain that its lane declines, a broken ring, a change of what it works with.

    ::

        start, _serve ──► the lane is the thread's ──► its bell: the lane is ours ──► _serve …
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        build = self.lane.build
        made = build.lib.lane_thread_new(self.lane.native)
        if not made:
            raise HostError(f"no thread for a queue: {os.strerror(build.ffi.errno)}")
        self._lib = build.lib
        self._thread = build.ffi.gc(made, build.lib.lane_thread_free)
        self._bell: int = build.lib.lane_thread_bell(made)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """See Queue."""
        return (self._bell, self._lib.lane_thread_wake(self._thread))

    @property
    def call(self) -> int:
        """See Queue: whoever changes it may close the one before afterwards."""
        return self._call

    @call.setter
    def call(self, call: int) -> None:
        self._call = call
        if self._ring is not None:
            self._halt()
            self._loop.soon(self._serve)

    def _listen(self) -> None:
        self._loop.add(self._bell, self._returned)

    def stop(self) -> None:
        """See Queue."""
        self._loop.remove(self._bell)
        self._lib.lane_thread_park(self._thread)
        super().stop()

    def settle(self) -> None:
        """See Queue."""
        self._halt()
        super().settle()

    def drain(self) -> int:
        """See Queue."""
        self._halt()
        return super().drain()

    def _serve(self) -> None:
        if self._ring is not None and self._lib.lane_thread_is_parked(self._thread):
            self._prepare()
            self._lib.lane_thread_go(self._thread)

    def _returned(self) -> None:
        doorbell.drain(self._bell)
        if self._lib.lane_thread_is_parked(self._thread):
            self._halt()
            self._loop.soon(self._serve)

    def _halt(self) -> None:
        # The lane is ours, and what its thread has left us is done.
        try:
            end = self.lane.end(self._lib.lane_thread_park(self._thread))
        except RingBroken as error:
            self._is_broken(error)
            return
        if end is End.DECLINED:
            self._take_declined()
