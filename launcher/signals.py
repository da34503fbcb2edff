"""Signals as something the event loop can wait for."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any

from launcher.loop import Loop

_HARMLESS = (signal.SIGUSR1, signal.SIGCONT)

ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, *_HARMLESS)
"""What a launcher hears: those that ask for the end, for statistics, and that it was stopped."""


OWNER = "VIBEVMM_OWNER"
"""In the environment of ``vibevmm run``: the pid of the program whose machine it is, and with which
it ends."""


class Interrupted(Exception):
    """A signal that ends a program came before there was anything to stop."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.exit_status = 128 + number  # as a shell has it


@contextlib.contextmanager
def all_interrupt() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP are KeyboardInterrupt, as SIGINT is: a machine of ours is not in
    our session, and whoever ends us means it, too."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    wanted = [each for each in numbers if signal.getsignal(each) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Signals:
    """While it is entered, each of ``wanted`` makes the loop call ``on_signal`` with its number;
    one that comes before the loop runs waits for it."""

    def __init__(self, loop: Loop, wanted: Iterable[signal.Signals]) -> None:
        self._loop = loop
        self._wanted = tuple(wanted)
        self.on_signal: Callable[[signal.Signals], None] = lambda number: None
        # The interpreter writes the number of each signal to one end, at once.
        self._reading, self._writing = socket.socketpair()
        self._reading.setblocking(False)
        self._writing.setblocking(False)
        self._before: dict[signal.Signals, Any] = {}
        self._came: list[int] = []
        self._wakeup = -1
        self._parent = -1

    def __enter__(self) -> Signals:
        self._wakeup = signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        for number in self._wanted:
            # What whoever started us had ignored (nohup, a shell without job control) stays so.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        # Ignored, it would have the kernel reap our children.
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._loop.on_readable(self._reading.fileno(), self._arrived)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.on_readable(self._reading.fileno(), None)
        if self._parent >= 0:
            self._loop.on_readable(self._parent, None)
            os.close(self._parent)
        for number, before in self._before.items():
            signal.signal(number, before)
        signal.set_wakeup_fd(self._wakeup)
        self._reading.close()
        self._writing.close()

    def end_with(self, parent: int) -> None:
        """The end of the process ``parent``, which started us, is a SIGTERM."""
        with contextlib.suppress(ProcessLookupError):
            self._parent = os.pidfd_open(parent)
            self._loop.on_readable(self._parent, self._orphaned)
        if os.getppid() != parent:  # its number may be somebody else's by now
            os.kill(os.getpid(), signal.SIGTERM)

    def _orphaned(self) -> None:
        self._loop.on_readable(self._parent, None)
        os.kill(os.getpid(), signal.SIGTERM)

    @property
    def ending(self) -> signal.Signals | None:
        """A signal that asks for the end and that the loop has not seen yet."""
        return next((signal.Signals(came) for came in self._came if came not in _HARMLESS), None)

    def check(self) -> None:
        """Raise Interrupted if a signal that asks for the end is already waiting."""
        if (number := self.ending) is not None:
            raise Interrupted(number)

    def _note(self, came: int, _: object) -> None:
        self._came.append(came)

    def _arrived(self) -> None:
        self._came.clear()
        for number in self._reading.recv(64):
            if number in self._wanted:
                self.on_signal(signal.Signals(number))
