"""The user's terminal, shared by the serial port and the virtio consoles.

Everything that any of them prints is shown as it comes. What is typed goes to one of them at
a time; Ctrl-A begins a command::

    Ctrl-A x       stop the machine
    Ctrl-A p       press its power button
    Ctrl-A c       type to the next one
    Ctrl-A h       show this
    Ctrl-A Ctrl-A  send Ctrl-A itself

Where standard input is no terminal there are no commands: all of it goes to the first stream.
"""

from __future__ import annotations

import contextlib
import os
import termios
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from launcher.loop import Loop
from launcher.output import Output
from launcher.relay import Stream
from protocol import terminal as modes

ESCAPE = 0x01
"""Ctrl-A."""

_READ = 16 * 1024
# Input that nobody takes: a pipe waits then, while keys are lost, for Ctrl-A x must still
# arrive (arbitrary).
_MOST_INPUT = 64 * 1024


@dataclass(slots=True)
class _Stream:
    name: str
    socket: Stream
    output: Output | None  # None: what it prints is dropped
    waiting: bytearray = field(default_factory=bytearray)
    open: bool = True


class Terminal:
    """Connects streams with their outputs and the keyboard, descriptor ``keyboard``.

    ``commands`` are what Ctrl-A and a key call; ``message`` shows the user a line of ours.
    """

    def __init__(
        self,
        loop: Loop,
        keyboard: int,
        commands: Mapping[str, Callable[[], object]],
        message: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._keyboard = keyboard
        self._message = message
        self._streams: list[_Stream] = []
        self._inputs: list[_Stream] = []
        self._escaped = False
        self._listening = False
        self._paused = False  # until the guest takes what a pipe gave us
        self._commands: dict[int, Callable[[], object]] = {
            **{ord(key): command for key, command in commands.items()},
            ord("c"): self._next_input,
            ord("h"): self._help,
        }
        self.saved = b""
        """What the terminal was like before :meth:`start` makes it raw; empty if it will not."""

    def add(self, name: str, stream: Stream, output: Output | None, typed: bool) -> None:
        """Show what comes from ``stream``, which stays the caller's and does not block; ``typed``
        is whether it can be typed to."""
        added = _Stream(name, stream, output)
        self._streams.append(added)
        if typed:
            self._inputs.append(added)
        if output is not None:
            output.on_room = self._room
        self._loop.on_readable(stream.fileno(), partial(self._show, added))

    def save(self) -> None:
        """Note what the keyboard is like, if it is a terminal that is ours to use now."""
        # In the background a read would stop us: the terminal is somebody else's.
        if self._inputs and os.isatty(self._keyboard) and _is_ours(self._keyboard):
            self.saved = modes.save(self._keyboard)

    def start(self) -> None:
        """Listen to the keyboard; if it was saved, make it raw."""
        if self.saved:
            modes.raw(self._keyboard)
        elif not self._inputs or os.isatty(self._keyboard):
            return
        self._listen(True)

    def resume(self) -> None:
        """Back from having been stopped: the shell made the terminal its own meanwhile."""
        if self.saved and _is_ours(self._keyboard):
            modes.raw(self._keyboard)

    def finish(self) -> None:
        """Show what is still in the streams, and put the terminal back. May be called twice."""
        self._listen(False)
        for stream in self._streams:
            self._loop.on_readable(stream.socket.fileno(), None)
            self._loop.on_writable(stream.socket.fileno(), None)
            # No more than a socket holds: its other end may still be in a process that lives.
            for _ in range(64):
                if not (data := _receive(stream.socket)):
                    break
                if stream.output is not None:
                    stream.output.write(data)
        self._streams.clear()
        self.put_back()

    def put_back(self) -> None:
        """Make the terminal what it was."""
        if self.saved:
            modes.restore(self._keyboard, self.saved)

    # ── from the guest ────────────────────────────────────────────────────────────────

    def _show(self, stream: _Stream) -> None:
        if stream.output is not None and stream.output.full:
            # The guest waits until the reader of our output has caught up.
            self._loop.on_readable(stream.socket.fileno(), None)
            return
        data = _receive(stream.socket)
        if data == b"":
            stream.open = False
            self._loop.on_readable(stream.socket.fileno(), None)
            self._loop.on_writable(stream.socket.fileno(), None)
        elif data and stream.output is not None:
            stream.output.write(data)

    def _room(self) -> None:
        for stream in self._streams:
            if stream.open:
                self._loop.on_readable(stream.socket.fileno(), partial(self._show, stream))

    # ── from the user ─────────────────────────────────────────────────────────────────

    def _listen(self, listening: bool) -> None:
        if listening != self._listening:
            self._listening = listening
            self._loop.on_readable(self._keyboard, self._typed if listening else None)

    def _typed(self) -> None:
        try:
            data = os.read(self._keyboard, _READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # the terminal hung up
        if not data:
            self._listen(False)
            return
        if not self.saved:
            self._give(data)
            return
        keys = bytearray()
        for key in data:
            if self._escaped:
                self._escaped = False
                if key == ESCAPE:
                    keys.append(key)
                else:
                    self._commands.get(key, self._help)()
            elif key == ESCAPE:
                self._escaped = True
                # What was typed before a command belongs to the stream that it may change.
                self._give(keys)
                keys.clear()
            else:
                keys.append(key)
        self._give(keys)

    def _give(self, data: bytes | bytearray) -> None:
        if data and self._inputs:
            stream = self._inputs[0]
            room = _MOST_INPUT - len(stream.waiting) if self.saved else len(data)
            stream.waiting += data[: max(0, room)]
            self._send(stream)

    def _send(self, stream: _Stream) -> None:
        try:
            while stream.waiting:
                del stream.waiting[: stream.socket.send(stream.waiting)]
        except BlockingIOError:
            self._loop.on_writable(stream.socket.fileno(), lambda: self._send(stream))
            if not self.saved and self._listening and len(stream.waiting) >= _MOST_INPUT:
                self._paused = True
                self._listen(False)
            return
        except OSError:
            stream.waiting.clear()  # its process is gone, which is noticed elsewhere
        self._loop.on_writable(stream.socket.fileno(), None)
        if self._paused and stream.open:
            self._paused = False
            self._listen(True)

    def _next_input(self) -> None:
        self._inputs.append(self._inputs.pop(0))
        self._message(f"input goes to {self._inputs[0].name}")

    def _help(self) -> None:
        self._message(
            "Ctrl-A and: x stop, p power button, c type to the next of "
            f"{', '.join(stream.name for stream in self._inputs)}, Ctrl-A send it, h this"
        )


def _receive(stream: Stream) -> bytes | None:
    # None: nothing now. Empty: the other end is closed.
    try:
        return stream.recv(_READ)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _is_ours(fd: int) -> bool:
    with contextlib.suppress(OSError, termios.error):
        return os.tcgetpgrp(fd) == os.getpgrp()
    # Not our controlling terminal, so nobody's job control decides.
    return True
