"""What happens to a machine, as data: told to whoever listens, and the last of it kept."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping

from protocol.control import Event, EventKind

KEPT = 256
"""Events that a follower who comes late still gets (arbitrary: a machine's start and some hundred
deaths)."""

# Characters of a detail: the dump of a guest that died is for the terminal (arbitrary).
_MAX_DETAIL = 500

Listener = Callable[[Event], object]


class Events:
    """The machine's events. Listeners are called in the order in which they came, at once."""

    def __init__(self) -> None:
        self.kept: deque[Event] = deque(maxlen=KEPT)
        self._listeners: list[Listener] = []
        self._number = 0

    def listen(self, listener: Listener) -> None:
        """Call ``listener`` with the events kept so far, and with every one to come."""
        for event in self.kept:
            listener(event)
        self._listeners.append(listener)

    def emit(
        self,
        kind: EventKind,
        device: str = "",
        *,
        generation: int = 0,
        pid: int = 0,
        took: int | None = None,
        steps: Mapping[str, int] | None = None,
        detail: str = "",
    ) -> None:
        """``kind`` happened, now, to process ``device`` or to the machine; fields as in
        protocol.control.Event."""
        self._number += 1
        event = Event(
            number=self._number,
            kind=kind,
            device=device,
            generation=generation,
            pid=pid,
            wall=time.time_ns(),
            monotonic=time.monotonic_ns(),
            took=took,
            steps=dict(steps or {}),
            detail=detail[:_MAX_DETAIL],
        )
        self.kept.append(event)
        for listener in self._listeners:
            listener(event)
