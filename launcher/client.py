"""The other end of the control interface: a machine of this user's, found by name and asked.

::

    target       what it means
    ──────       ─────────────
    VM           a machine; may be left out where exactly one runs
    VM/DEV       one of its devices, or streams
    DEV          the same, where exactly one machine runs
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from launcher import rundir
from launcher.options import suggestion
from protocol import control as wire
from protocol.errors import BadInput, HostError, VibeError
from protocol.service import Client as Connection

DEADLINE = 30.0
"""Seconds that a machine has to answer, unless it is asked for what takes longer. The VMM itself
has 15 to take its vCPUs out of the guest, and 5 for a device's counters."""

# Seconds between two looks at whether the machine is still there, and for the socket of one that
# is being started.
_LOOK, _SOON = 0.2, 0.01


class Refused(VibeError):
    """The machine's own error, with the exit status that it said."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.exit_status = status


class Gone(HostError):
    """The machine ended before it answered."""


class Silent(HostError):
    """The machine did not answer in time."""


class Client:
    """Asks machine ``name``, which serves this as soon as its guest runs: for that ``deadline``
    seconds are waited. Gone, Silent."""

    def __init__(self, name: str, deadline: float = DEADLINE) -> None:
        self.name = name
        self._sequence = 0
        path = os.path.join(rundir.path_of(name), rundir.CONTROL)
        until = time.monotonic() + deadline
        while not os.path.exists(path):
            self._check(until)
            time.sleep(_SOON)
        self._connection = Connection(path)

    def ask(self, request: object, deadline: float | None = DEADLINE) -> Any:
        """The reply to ``request``, waited for ``deadline`` seconds, or for as long as the machine
        lives; Refused, Gone, Silent."""
        self._sequence += 1
        try:
            frame = wire.encode(request, self._sequence)
        except (UnicodeEncodeError, OverflowError) as error:
            raise BadInput(type(request).__name__.lower(), f"cannot be sent: {error}") from error
        self._connection.send(frame)
        until = None if deadline is None else time.monotonic() + deadline
        while True:
            envelope = self._next(until)
            if envelope.sequence == self._sequence:
                if isinstance(envelope.message, wire.Failed):
                    raise Refused(envelope.message.status, envelope.message.reason)
                return envelope.message

    def events(self, follow: bool) -> Iterator[wire.Event | wire.Lost]:
        """What happened so far; with ``follow``, what happens from now until the machine is gone.
        From then on this client is for that only."""
        self._sequence += 1
        self._connection.send(wire.encode(wire.Follow(follow), self._sequence))
        return self._events(follow)

    def _events(self, follow: bool) -> Iterator[wire.Event | wire.Lost]:
        until: float | None = time.monotonic() + DEADLINE
        while True:
            try:
                envelope = self._next(until)
            except Gone:
                if until is not None:
                    raise
                return
            match envelope.message:
                case wire.Event() | wire.Lost():
                    yield envelope.message
                case wire.Failed():
                    raise Refused(envelope.message.status, envelope.message.reason)
                case wire.Done() if not follow:
                    return
                case wire.Done():
                    until = None

    def wait_gone(self, seconds: float) -> bool:
        """Whether the machine has let go of its name, for which ``seconds`` are waited."""
        until = time.monotonic() + seconds
        while rundir.lives(self.name):
            if time.monotonic() >= until:
                return False
            time.sleep(_SOON)
        return True

    def _next(self, until: float | None) -> Any:
        while (frame := self._connection.receive(_LOOK)) is None:
            self._check(until)
        return wire.decode(frame, wire.FROM_LAUNCHER)

    def _check(self, until: float | None) -> None:
        if not rundir.lives(self.name):
            raise Gone(f"machine {self.name!r} is gone")
        if until is not None and time.monotonic() >= until:
            raise Silent(f"machine {self.name!r} does not answer")

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def find(verb: str, target: str | None) -> str:
    """The machine that ``target`` names; BadInput, with those that there are, if it is none."""
    names = rundir.running()
    if target is None:
        return _only(verb, names)
    name, slash, device = target.partition("/")
    if slash:
        raise BadInput(repr(target), f"{verb} is for a machine, and {device!r} is a part of one")
    return _named(name, names)


def find_part(verb: str, target: str | None, what: str) -> tuple[str, str]:
    """The machine and the name of its ``what`` in ``target``; whether it has one is not looked at.

    BadInput if the target names no machine, or only that.
    """
    names = rundir.running()
    if target is None:
        raise BadInput(verb, f"which {what}? VM/{what.upper()}; {_running(names)}")
    name, slash, part = target.partition("/")
    if not slash and name in names:
        raise BadInput(repr(target), f"a machine; which {what} of it? {name}/{what.upper()}")
    if slash and part:
        return _named(name, names), part
    if slash:
        raise BadInput(repr(target), f"which {what}? {name}/{what.upper()}")
    return _only(verb, names), name


def _only(verb: str, names: list[str]) -> str:
    if len(names) != 1:
        raise BadInput(verb, f"{'which machine? ' if names else ''}{_running(names)}")
    return names[0]


def _named(name: str, names: list[str]) -> str:
    if name not in names:
        hint = suggestion(name, names) if names else "; none runs"
        raise BadInput(repr(name), f"no such machine{hint}")
    return name


def _running(names: list[str]) -> str:
    return f"running: {', '.join(names)}" if names else "no machine runs"
