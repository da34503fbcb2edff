"""The life of a device process, as both of its ends see it: one table.

::

    SPAWNED ──hello──► GREETED ──sealed──► READY ──start──► RUNNING
                          │                  ▲                 │
                       refused               └──────stop───────┤
                          ▼                                    │ the ring is broken
                        GONE ◄──quit or death, from anywhere   ▼
                                             ▲            NEEDS_RESET ──stop──► READY
"""

from __future__ import annotations

from enum import Enum

from protocol.errors import ProtocolError


class State(Enum):
    """Where a device stands."""

    SPAWNED = "spawned"
    GREETED = "greeted"
    READY = "ready"
    RUNNING = "running"
    NEEDS_RESET = "needs-reset"
    GONE = "gone"


class Event(Enum):
    """What moves it."""

    HELLO = "hello"
    SEALED = "sealed"
    START = "start"
    STOP = "stop"
    BROKEN = "broken"
    GONE = "gone"


_TABLE: dict[tuple[State, Event], State] = {
    (State.SPAWNED, Event.HELLO): State.GREETED,
    (State.GREETED, Event.SEALED): State.READY,
    (State.READY, Event.START): State.RUNNING,
    (State.RUNNING, Event.STOP): State.READY,
    (State.RUNNING, Event.BROKEN): State.NEEDS_RESET,
    (State.NEEDS_RESET, Event.STOP): State.READY,
    # A driver may reset a device that it never started.
    (State.READY, Event.STOP): State.READY,
    # It broke while the reset was on its way, or broke a second queue: nothing new.
    (State.READY, Event.BROKEN): State.READY,
    (State.NEEDS_RESET, Event.BROKEN): State.NEEDS_RESET,
}


class Lifecycle:
    """A state, and the only way to change it."""

    def __init__(self) -> None:
        self.state = State.SPAWNED

    def advance(self, event: Event) -> State:
        """Follow the table; ProtocolError where it has no row."""
        if event is Event.GONE:
            self.state = State.GONE
            return self.state
        try:
            self.state = _TABLE[self.state, event]
        except KeyError:
            raise ProtocolError(f"{event.value} makes no sense while {self.state.value}") from None
        return self.state
