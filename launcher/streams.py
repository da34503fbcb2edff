"""The launcher's ends of streams: what a device prints and reads, and where it leads.

A device shares a :mod:`protocol.stream` with us, and may be killed and replaced while it does; we
are not, so we do the write(2) and the read(2) for it. A :class:`LogEnd` is our end of such a
stream, a :class:`SocketEnd` one of a plain socket. The user's terminal takes either
(:mod:`launcher.terminal`). A :class:`Bridge` moves a log's bytes to a pty or to who connects to a
Unix socket, and back.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
import tty
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Protocol

from launcher.loop import Loop
from protocol import stream
from protocol.errors import BadInput, ProtocolError

_READ = 16 * 1024

# Connections that may wait for the one that is served to end (arbitrary).
_BACKLOG = 1

# How long, at the end, who is connected may take for what the guest printed last (arbitrary).
_FAREWELL_SECONDS = 5.0

Callback = Callable[[], object]


class End(Protocol):
    """An end of a stream, as a terminal needs it."""

    def listen(self, loop: Loop, on_data: Callback, on_room: Callback) -> None:
        """From now on call ``on_data`` when there may be something to receive, ``on_room`` when
        there may be room for what :meth:`send` did not take. Either may be called in vain."""

    def pause(self, pausing: bool) -> None:
        """Whether ``on_data`` had better not be called; look once yourself when it may again."""

    def receive(self) -> bytes | None:
        """What has come, a part of it at least; None if nothing has. Empty: there will be none."""

    def send(self, data: bytes | bytearray) -> int:
        """How much of ``data`` the other end's buffer took; all of it if there is no other end."""

    def unlisten(self) -> None:
        """Call nothing any more."""


class SocketEnd:
    """A socket, which does not block and stays the caller's."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def listen(self, loop: Loop, on_data: Callback, on_room: Callback) -> None:
        """See :class:`End`."""
        self._loop, self._on_data, self._on_room = loop, on_data, on_room
        self.pause(False)

    def pause(self, pausing: bool) -> None:
        """See :class:`End`."""
        self._loop.on_readable(self._socket.fileno(), None if pausing else self._on_data)

    def receive(self) -> bytes | None:
        """See :class:`End`."""
        try:
            return self._socket.recv(_READ)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def send(self, data: bytes | bytearray) -> int:
        """See :class:`End`."""
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            sent = len(data)
        waits = sent < len(data)
        self._loop.on_writable(self._socket.fileno(), self._on_room if waits else None)
        return sent

    def unlisten(self) -> None:
        """See :class:`End`."""
        self._loop.on_readable(self._socket.fileno(), None)
        self._loop.on_writable(self._socket.fileno(), None)


class LogEnd:
    """Our end of a new stream that device ``name`` will share.

    ``fds`` are the device's, by name: any number of processes may be handed them, one after
    the other. They are the caller's to close, the rest goes with :meth:`close`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        file = stream.create(f"vibevmm-{name}-stream")
        self._wake, theirs = stream.wake_pair()
        self.fds = {"stream": file, "wake": theirs}
        self._stream = stream.Stream(file)
        self._output = stream.Consumer(self._stream.output)
        self._input = stream.Producer(self._stream.input)
        self._loop: Loop | None = None
        self._is_broken = False
        self.on_broken: Callable[[str], object] = lambda why: None
        """Told why, once, if a cursor of the device's makes no sense. For as long as it does not,
        there is nothing to read, or what is sent is dropped."""

    def fileno(self) -> int:
        """Readable when the device has moved a cursor: :meth:`drain` it, then look."""
        return self._wake

    def drain(self) -> None:
        """Forget what made the descriptor readable."""
        stream.drain(self._wake)

    def peek(self) -> list[memoryview]:
        """All that the device has printed and nobody took: memory that it may change meanwhile."""
        with self._believing():
            return self._output.peek()
        return []

    def take(self, size: int) -> None:
        """``size`` bytes of that are done with."""
        with self._believing():
            self._output.consume(self._output.tail + size)
        stream.wake(self._wake)

    @property
    def room(self) -> int:
        """How much :meth:`send` would take."""
        with self._believing():
            return self._input.room
        return 0

    def send(self, data: bytes | bytearray) -> int:
        """See :class:`End`."""
        sent = len(data)
        with self._believing():
            sent = self._input.write(self._input.head, [data])
        stream.wake(self._wake)
        return sent

    def listen(self, loop: Loop, on_data: Callback, on_room: Callback) -> None:
        """See :class:`End`."""
        self._loop = loop

        def woken() -> None:
            self.drain()
            on_data()
            on_room()

        loop.on_readable(self._wake, woken)

    def pause(self, pausing: bool) -> None:
        """See :class:`End`. We call when something changes, not while something is there: there is
        nothing to be spared."""

    def receive(self) -> bytes | None:
        """See :class:`End`."""
        data = b"".join(self.peek())
        if data:
            self.take(len(data))
        return data or (b"" if self._is_broken else None)

    def unlisten(self) -> None:
        """See :class:`End`."""
        if self._loop is not None:
            self._loop.on_readable(self._wake, None)

    def close(self) -> None:
        """Let go of the stream."""
        self._stream.close()
        os.close(self._wake)

    @contextlib.contextmanager
    def _believing(self) -> Iterator[None]:
        try:
            yield
        except ProtocolError as error:
            if not self._is_broken:
                self._is_broken = True
                self.on_broken(str(error))


class Bridge:
    """Moves bytes between ``end`` and a pty, or who is connected to a socket: one at a time.

    Nothing is buffered but what the stream itself holds: who reads slowly holds the guest up, a
    guest that does not read holds the input up. Output for which there is no reader at all, because
    nobody has the pty open or is connected, is dropped.

    ``pty`` is its master's side, ``listener`` the socket; one of them, which is ours to close, as
    ``end`` is not.
    """

    def __init__(
        self, end: LogEnd, *, pty: int | None = None, listener: socket.socket | None = None
    ) -> None:
        self.end = end
        self.counters: Counter[str] = Counter()
        self._peer = pty
        self._listener = listener
        self._hangup = select.poll()
        self._loop: Loop | None = None
        # A pty that nobody has open is hung up for as long as that lasts: only edges tell news.
        self._epoll = select.epoll()
        self._epoll.register(end.fileno(), select.EPOLLIN | select.EPOLLET)
        if pty is not None:
            self._hangup.register(pty, 0)
            self._watch(pty)
        if listener is not None:
            self._watch(listener.fileno())

    def connect(self, loop: Loop) -> None:
        """Move what there is to move whenever something changes."""
        self._loop = loop
        loop.on_readable(self._epoll.fileno(), self._pump)

    def finish(self) -> None:
        """The device is gone: give a reader what is left, and some seconds for it."""
        if self._loop is not None:
            self._loop.on_readable(self._epoll.fileno(), None)
        deadline = time.monotonic() + _FAREWELL_SECONDS
        self._write()
        while self.end.peek() and (left := deadline - time.monotonic()) > 0:
            self._epoll.poll(left)
            self._write()

    def close(self) -> None:
        """Hang up."""
        self._epoll.close()
        if self._peer is not None:
            os.close(self._peer)
        if self._listener is not None:
            self._listener.close()

    def _watch(self, fd: int) -> None:
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)

    def _pump(self) -> None:
        # Until nothing can be moved, so that no edge is missed; but of what a device adds
        # meanwhile, for which it wakes us again, nothing: it could keep us here for ever.
        self._epoll.poll(0)
        self.end.drain()
        if self._peer is None:
            self._accept()
        self._write()
        self._read()

    def _write(self) -> None:
        left = sum(map(len, self.end.peek()))
        while left > 0 and (views := self.end.peek()):
            try:
                count = self._give(views)
            except BlockingIOError:
                return
            if count is None:
                self.counters["dropped_bytes"] += left
                count = left
            self.end.take(count)
            left -= count

    def _give(self, views: list[memoryview]) -> int | None:
        # How much of them the reader took; None if there is nobody. A pty that nobody has open
        # takes output until it is full; only its hang-up tells.
        if self._peer is None or self._hangup.poll(0):
            return None
        try:
            return os.writev(self._peer, views)
        except BlockingIOError:
            raise
        except OSError:
            self._disconnect()
            return None

    def _read(self) -> None:
        room = self.end.room
        while room > 0 and self._peer is not None:
            try:
                data = os.read(self._peer, min(room, _READ))
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._disconnect()
                return
            self.end.send(data)
            room -= len(data)

    def _accept(self) -> None:
        if self._listener is None:
            return
        try:
            client, _ = self._listener.accept()
        except OSError:  # nobody is there, or is any more
            return
        client.setblocking(False)
        self._peer = client.detach()
        self._watch(self._peer)
        self.counters["clients"] += 1

    def _disconnect(self) -> None:
        # A pty that nobody has open says EIO to who reads it, until somebody does: it stays.
        if self._listener is not None and self._peer is not None:
            os.close(self._peer)
            self._peer = None
            # The next client may be waiting already, and its edge gone: look at once.
            self._accept()


def open_pty() -> tuple[int, str]:
    """A new pty that passes bytes as they are: its master's side, which does not block, and the
    name of the other."""
    try:
        master, slave = os.openpty()
    except OSError as error:
        raise BadInput("backend", f"no pty: {error.strerror}") from error
    try:
        # Echo and line editing are the guest's business. The setting stays when we close the
        # slave, which we do so that the kernel tells whether anybody has it open.
        tty.setraw(slave)
        name = os.ttyname(slave)
    finally:
        os.close(slave)
    os.set_blocking(master, False)
    return master, name


def listen(path: str) -> socket.socket:
    """A new socket at ``path`` that takes clients and does not block; BadInput."""
    if "\0" in path:  # the kernel would take it for another name, or for one without a file
        raise BadInput("path", f"{path!r} has a null byte in it")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise BadInput("path", f"{path}: {_why(error)}") from error
    listener.setblocking(False)
    return listener


def _why(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "exists already; a socket is made, never replaced"
    return error.strerror or str(error)  # too long a path has no text of the kernel's
