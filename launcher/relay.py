"""A guest's stream, joined by others while the machine runs: what ``vibevmm attach`` attaches to.

A relay stands between the end of a stream and whoever in the launcher uses it, and is such an end
itself (launcher.streams.End)::

                   ┌──► the launcher's own user (Terminal), who calls receive and send
    end ──► Relay ─┤
                   └──► everybody who has connected to the Unix socket of the relay

All see what the guest writes, and all may type, as at one terminal with several keyboards. The
guest waits for the launcher's own user alone: who attaches and does not read misses something,
and is told how much.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from functools import partial

from launcher.loop import Loop
from launcher.streams import Callback, End

# Who may be attached at a time, bytes that wait for one of them, and of what was written before
# they came that they are shown (all arbitrary; the last is a screen).
_MOST_ATTACHED, _MOST_WAITING, _RECENT = 8, 64 * 1024, 4 * 1024
_READ = 4 * 1024
# Seconds until a guest that took no input is asked again (arbitrary: a keystroke's time).
_AGAIN = 0.05


class Relay:
    """``end``, and at the Unix socket ``path``, once it is wanted, everybody else's end."""

    def __init__(self, loop: Loop, end: End, path: str) -> None:
        self._loop = loop
        self._end = end
        self._path = path
        self._listener: socket.socket | None = None
        self._attached: list[_Attached] = []
        self._recent = b""

    # ── launcher.streams.End ──────────────────────────────────────────────────────────

    def listen(self, loop: Loop, on_data: Callback, on_room: Callback) -> None:
        """As of the end itself."""
        self._end.listen(loop, on_data, on_room)

    def pause(self, pausing: bool) -> None:
        """As of the end itself."""
        self._end.pause(pausing)

    def receive(self) -> bytes | None:
        """What the guest wrote, which everybody is shown."""
        data = self._end.receive()
        if data is not None:
            self._recent = (self._recent + data)[-_RECENT:]
            for attached in list(self._attached):
                attached.show(data) if data else attached.close()
        return data

    def send(self, data: bytes | bytearray) -> int:
        """Type to the guest."""
        return self._end.send(data)

    def unlisten(self) -> None:
        """As of the end itself."""
        self._end.unlisten()

    # ── the others ────────────────────────────────────────────────────────────────────

    def open(self) -> str:
        """Take those who want to attach; the path of the socket."""
        if self._listener is None:
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.setblocking(False)
            self._listener.bind(self._path)
            self._listener.listen(_MOST_ATTACHED)
            self._loop.on_readable(self._listener.fileno(), self._accept)
        return self._path

    def close(self) -> None:
        """Everybody is sent away."""
        for attached in list(self._attached):
            attached.close()
        if self._listener is not None:
            self._loop.on_readable(self._listener.fileno(), None)
            self._listener.close()
            with contextlib.suppress(OSError):  # removed with all the rest
                os.unlink(self._path)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # it went away, or there is no descriptor for it
        connection.setblocking(False)
        if len(self._attached) >= _MOST_ATTACHED:
            with contextlib.suppress(OSError):
                connection.send(_note(f"{_MOST_ATTACHED} are attached already"))
            connection.close()
            return
        attached = _Attached(self._loop, connection, self._end.send, self._attached.remove)
        self._attached.append(attached)
        if self._recent:
            attached.show(self._recent)


class _Attached:
    """One who has attached, at the other end of ``connection``."""

    def __init__(
        self,
        loop: Loop,
        connection: socket.socket,
        type_: Callable[[bytes], int],
        on_gone: Callable[[_Attached], object],
    ) -> None:
        self._loop = loop
        self._connection = connection
        self._type = type_
        self._on_gone = on_gone
        self._waiting = bytearray()
        self._missed = 0
        self._is_open = True
        loop.on_readable(connection.fileno(), self._read)

    def show(self, data: bytes) -> None:
        if self._missed or len(self._waiting) + len(data) > _MOST_WAITING:
            self._missed += len(data)
            return
        self._waiting += data
        self._flush()

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._loop.on_readable(self._connection.fileno(), None)
            self._loop.on_writable(self._connection.fileno(), None)
            self._connection.close()
            self._on_gone(self)

    def _flush(self) -> None:
        try:
            while self._waiting:
                del self._waiting[: self._connection.send(self._waiting)]
                if not self._waiting and self._missed:
                    self._waiting += _note(f"{self._missed} bytes were not shown here")
                    self._missed = 0
        except BlockingIOError:
            self._loop.on_writable(self._connection.fileno(), self._flush)
        except OSError:
            self.close()
        else:
            self._loop.on_writable(self._connection.fileno(), None)

    def _read(self) -> None:
        try:
            data = self._connection.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._give(data)
        else:
            self.close()

    def _give(self, data: bytes) -> None:
        # Nothing more is read from it until the guest has taken this.
        if not self._is_open:
            return
        data = data[self._type(data) :]
        if data:
            self._loop.on_readable(self._connection.fileno(), None)
            self._loop.after(_AGAIN, partial(self._give, data))
            return
        self._loop.on_readable(self._connection.fileno(), self._read)


def _note(text: str) -> bytes:
    return f"\r\n[vibevmm: {text}]\r\n".encode()
