"""``vibevmm attach``: a guest's stream in this terminal, until one of the two ends.

Ctrl-A begins a command, as in the terminal of ``vibevmm run``::

    Ctrl-A d       detach; the machine runs on
    Ctrl-A h       show this
    Ctrl-A Ctrl-A  send Ctrl-A itself

Where standard input is no terminal all of it is sent, and its end ends nothing.
"""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack

from launcher.guardian import guarded
from launcher.loop import Loop
from launcher.output import Output
from launcher.signals import ALL, Signals
from launcher.terminal import ESCAPE
from protocol import terminal as modes
from protocol.errors import HostError

_KEYBOARD, _SCREEN = 0, 1
# Bytes read at once, and of input that wait for the guest (arbitrary).
_READ, _MOST_WAITING = 4 * 1024, 64 * 1024
_HELP = b"\r\n[vibevmm: Ctrl-A and: d detach, Ctrl-A send it, h this]\r\n"


def attach(path: str) -> int:
    """Join the stream at the Unix socket ``path``; the exit status."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with ExitStack() as resources:
        resources.enter_context(connection)
        try:
            connection.connect(path)
        except OSError as error:
            raise HostError(f"{path}: {error.strerror}") from error
        connection.setblocking(False)
        loop = Loop()
        # Before the terminal is raw: what asks for the end from here on gets an orderly one.
        signals = resources.enter_context(Signals(loop, ALL))
        screen = Output(_SCREEN, loop)
        resources.callback(screen.close, 1.0)
        is_typed = os.isatty(_KEYBOARD)
        session = _Attachment(loop, connection, screen, is_typed)
        signals.on_signal = session.on_signal
        screen.on_gone = loop.end
        if is_typed:
            resources.enter_context(guarded(_KEYBOARD))
        session.start()
        loop.run()
        return session.status


class _Attachment:
    def __init__(
        self, loop: Loop, connection: socket.socket, screen: Output, is_typed: bool
    ) -> None:
        self.status = 0
        self._loop = loop
        self._connection = connection
        self._screen = screen
        self._is_typed = is_typed  # on a terminal, which is raw
        self._escaped = False
        self._waiting = bytearray()
        self._is_over = False  # the input

    def start(self) -> None:
        self._loop.on_readable(self._connection.fileno(), self._show)
        if self._is_typed:
            modes.raw(_KEYBOARD)
        self._listen(True)

    def on_signal(self, number: signal.Signals) -> None:
        if number is signal.SIGCONT and self._is_typed:
            modes.raw(_KEYBOARD)  # the shell made the terminal its own meanwhile
        elif number not in (signal.SIGCONT, signal.SIGUSR1):
            self.status = 128 + number  # as a shell has it
            self._loop.end()

    def _show(self) -> None:
        if self._screen.full:
            # The launcher drops for us what we do not take.
            self._loop.on_readable(self._connection.fileno(), None)
            self._screen.on_room = self._resume
            return
        try:
            data = self._connection.recv(_READ)
        except OSError:
            data = b""
        if data:
            self._screen.write(data)
        else:
            self._loop.end()

    def _resume(self) -> None:
        self._loop.on_readable(self._connection.fileno(), self._show)

    def _typed(self) -> None:
        try:
            data = os.read(_KEYBOARD, _READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # the terminal hung up
        if not data:
            self._is_over = True
            self._listen(False)
            if self._is_typed:
                self._loop.end()
            return
        self._send(self._commands(data) if self._is_typed else data)

    def _commands(self, data: bytes) -> bytes:
        # What is left of ``data`` for the guest.
        keys = bytearray()
        for key in data:
            if not self._escaped:
                self._escaped = key == ESCAPE
                if not self._escaped:
                    keys.append(key)
                continue
            self._escaped = False
            if key == ESCAPE:
                keys.append(key)
            elif key == ord("d"):
                self._loop.end()
                break
            else:
                self._screen.write(_HELP)
        return bytes(keys)

    def _send(self, data: bytes) -> None:
        # Of what a guest does not take: a pipe waits, and keys are lost, for Ctrl-A d must arrive.
        self._waiting += data[: _MOST_WAITING - len(self._waiting)] if self._is_typed else data
        self._flush()

    def _flush(self) -> None:
        try:
            while self._waiting:
                del self._waiting[: self._connection.send(self._waiting)]
        except BlockingIOError:
            self._loop.on_writable(self._connection.fileno(), self._flush)
            if not self._is_typed:
                self._listen(False)
            return
        except OSError:
            self._waiting.clear()  # its end is read, too
        self._loop.on_writable(self._connection.fileno(), None)
        self._listen(not self._is_over)

    def _listen(self, listening: bool) -> None:
        self._loop.on_readable(_KEYBOARD, self._typed if listening else None)
