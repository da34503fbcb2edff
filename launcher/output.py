"""Writing to the user without ever being held up: what does not fit yet waits in memory."""

from __future__ import annotations

import math
import os
import select
import stat
import time
from collections.abc import Callable

from launcher.loop import Loop

# A pipe that poll calls writable takes PIPE_BUF bytes without blocking: Linux reports a pipe
# writable when a whole page is free (pipe(7)).
_CHUNK = 4096
# Bytes waiting for a slow reader from which on no more is accepted gladly, and from which on what
# is only offered is dropped (arbitrary).
_FULL = 64 * 1024
_MOST_OFFERED = 1 << 20


class Output:
    """A descriptor to write to: terminal, pipe or file; the descriptor stays the caller's.

    ``on_gone`` is called once if the reader goes away; from then on everything is dropped.
    ``on_room`` is called whenever the output is no longer :attr:`full`.
    """

    def __init__(self, fd: int, loop: Loop) -> None:
        self._loop = loop
        self._waiting = bytearray()
        self._gone = False
        self._dropped = 0
        self._regular = stat.S_ISREG(os.fstat(fd).st_mode)
        self._own = _reopened_terminal(fd)
        self._fd = fd if self._own is None else self._own
        self.on_gone: Callable[[], None] = lambda: None
        self.on_room: Callable[[], None] = lambda: None

    @property
    def full(self) -> bool:
        """Whether a source that can wait should."""
        return len(self._waiting) >= _FULL

    def write(self, data: bytes) -> None:
        """Write ``data`` now or as soon as the reader takes it."""
        if self._gone:
            return
        idle = not self._waiting
        self._waiting += data
        if idle:
            self._flush()
            if self._waiting:
                self._loop.on_writable(self._fd, self._on_writable)

    def offer(self, data: bytes) -> None:
        """Write ``data``, a message that may be lost: if its reader is far behind, it is counted
        instead, and the reader is told how many there were."""
        if len(self._waiting) >= _MOST_OFFERED:
            self._dropped += 1
            return
        self._tell_dropped()
        self.write(data)

    def close(self, seconds: float = math.inf, is_enough: Callable[[], bool] = bool) -> None:
        """Write what waits, as any program does before it ends: for as long as the reader takes,
        for ``seconds``, or until ``is_enough``, asked once a second; the rest is given up."""
        self._tell_dropped()
        deadline = time.monotonic() + seconds
        while self._waiting and (left := deadline - time.monotonic()) > 0 and not is_enough():
            _writable(self._fd, min(left, 1.0))
            self._flush()
        self._loop.on_writable(self._fd, None)
        self._waiting.clear()
        if self._own is not None:
            os.close(self._own)
            self._own = None
        self._gone = True

    def _tell_dropped(self) -> None:
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            self.write(f"vibevmm: {dropped} messages were lost: nobody read them\n".encode())

    def _on_writable(self) -> None:
        was_full = self.full
        self._flush()
        if not self._waiting:
            self._loop.on_writable(self._fd, None)
        if was_full and not self.full:
            self.on_room()

    def _flush(self) -> None:
        while self._waiting and (self._regular or _writable(self._fd, 0)):
            try:
                with memoryview(self._waiting) as view:
                    done = os.write(self._fd, view[:_CHUNK])
            except BlockingIOError:
                return
            except OSError:
                self._lose()
                return
            del self._waiting[:done]

    def _lose(self) -> None:
        self._gone = True
        self._waiting.clear()
        self._loop.on_writable(self._fd, None)
        self.on_gone()


def _reopened_terminal(fd: int) -> int | None:
    # A terminal can take less than it promised, so it has to be non-blocking; but the flag would
    # be shared with everybody who has the same open file, the user's shell among them. A second
    # opening has flags of its own. Where that is not allowed (su), writes may block.
    if not os.isatty(fd):
        return None
    try:
        return os.open(os.ttyname(fd), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None


def _writable(fd: int, seconds: float) -> bool:
    waiting = select.poll()
    waiting.register(fd, select.POLLOUT)
    return bool(waiting.poll(seconds * 1000))
