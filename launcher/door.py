"""Where processes that somebody has started by hand come in, to be devices of a machine that runs.

They are not our children, and so all that is known of one is what the kernel says: whose it is,
and a pidfd. Which process that is must be certain, for the VMM kills by it::

    connects ──► SO_PEERCRED: a pid, which may be another's by now
                 pidfd_open of that pid, and a greeting
    answers  ──► SCM_CREDENTIALS: the sender's pid at this moment; it is the same, and the pidfd's
                 process lives still: so they are one
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
from collections.abc import Callable
from functools import partial

from launcher import wishes
from launcher.host import Host, Streams
from launcher.locks import Locks
from launcher.loop import Loop
from launcher.spawn import Child
from protocol import codec, fds
from protocol.errors import BadInput, HostError, ProtocolError
from protocol.specs import Notice, Volunteer

HAND = "hand"
"""The name of a process that came by hand, and is no device yet."""

_CREDENTIALS = struct.Struct("3i")  # unix(7): pid, uid, gid
_MAX_PACKET = 64 * 1024
# Seconds that a greeting may go without an answer (arbitrary: nobody thinks there).
_PATIENCE = 5.0


class Hand(Child):
    """A process that came by itself over ``connection``: as our children, but that it is reaped,
    and its status known, elsewhere. ``pidfd`` and ``connection`` are its own from now on."""

    is_free = True  # it stays in what it was started in

    def __init__(self, connection: socket.socket, pid: int, pidfd: int) -> None:
        self.name = HAND
        self.pid = pid
        self.pidfd = pidfd
        self.handover = connection
        # What it prints goes to its own terminal: a log that has ended.
        self.log, writer = os.pipe2(os.O_CLOEXEC)
        os.close(writer)
        self.status = None
        self.usage = None
        self.locked: list[int] = []
        """Duplicates of the files that it has had locked, its own."""
        self.on_close: Callable[[], None] = lambda: None

    def kill(self) -> None:
        """SIGKILL, if it still lives."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):  # it was reaped
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def dismiss(self, why: str, status: int = HostError.exit_status) -> None:
        """Tell it why it is not wanted; upon that it ends, with ``status``."""
        self.tell(Notice(False, why, status))

    def tell(self, notice: Notice) -> None:
        """Say it, if it listens: whoever debugs it may not."""
        with contextlib.suppress(OSError):
            fds.send(self.handover, codec.pack(codec.to_plain(notice)), {})

    def reap(self) -> bool:
        """Whether it is dead."""
        if self.status is None and fds.has_ended(self.pidfd):
            self.status = 0
        return self.status is not None

    def how_it_ended(self) -> str:
        """In words; nobody but its parent can say more."""
        return "is alive" if self.status is None else "has ended; it was run by hand"

    def close(self) -> None:
        """End it if it lives, and close what we have of it, once."""
        if self.pidfd >= 0:
            self.on_close()
            fds.close_all(self.locked)
        super().close()


class Door:
    """Listens at ``path`` once it is :meth:`open`. Who comes, and is this user's, is given to
    ``came`` with what it wants to be; a VibeError of that is what it is told."""

    def __init__(
        self,
        loop: Loop,
        path: str,
        came: Callable[[Hand, Volunteer], None],
        note: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._path = path
        self._came = came
        self._note = note
        self._listener: socket.socket | None = None
        self._greeted: dict[socket.socket, tuple[int, int]] = {}

    def open(self) -> str:
        """Listen, from now on; the path."""
        if self._listener is None:
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
            try:
                listener.bind(self._path)
                listener.listen()
            except OSError as error:
                listener.close()
                raise HostError(f"{self._path}: {error.strerror}") from error
            self._listener = listener
            self._loop.on_readable(listener.fileno(), self._accept)
        return self._path

    def close(self) -> None:
        """Let nobody in any more, and hang up on those who did not say yet what they want."""
        for connection in list(self._greeted):
            self._turn_away(connection)
        if self._listener is not None:
            self._loop.on_readable(self._listener.fileno(), None)
            self._listener.close()
            self._listener = None

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # it left again
        connection.setblocking(False)
        pid, uid, _ = _CREDENTIALS.unpack(
            connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        if uid != os.geteuid():
            self._note(f"process {pid} of user {uid} wanted to be a device, and was turned away")
            connection.close()
            return
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            connection.close()
            return
        self._greeted[connection] = pid, pidfd
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._loop.on_readable(connection.fileno(), partial(self._answered, connection))
        self._loop.after(_PATIENCE, partial(self._turn_away, connection))
        with contextlib.suppress(OSError):  # it hung up, which is read
            connection.send(b"who are you?")

    def _turn_away(self, connection: socket.socket) -> None:
        if (process := self._greeted.pop(connection, None)) is not None:
            self._loop.on_readable(connection.fileno(), None)
            connection.close()
            os.close(process[1])

    def _answered(self, connection: socket.socket) -> None:
        pid, pidfd = self._greeted[connection]
        try:
            data, sender = _receive(connection)
            wanted = codec.from_plain(Volunteer, codec.unpack(data))
            if sender != pid or fds.has_ended(pidfd):
                raise ProtocolError("it is not who it was")
        except (OSError, ProtocolError) as error:
            self._note(f"process {pid} wanted to be a device, and was turned away: {error}")
            self._turn_away(connection)
            return
        del self._greeted[connection]
        self._loop.on_readable(connection.fileno(), None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
        self._came(Hand(connection, pid, pidfd), wanted)


class Wishes:
    """What ``hand``, to be ``device``, asks for while it opens what its options name: its host
    (devices.runtime.device.Host)."""

    def __init__(self, loop: Loop, hand: Hand, device: str, streams: Streams, locks: Locks) -> None:
        self._loop = loop
        self._hand = hand
        self._device = device
        self._streams = streams
        self._locks = locks
        self._host = Host(device, streams, locks)
        loop.on_readable(hand.handover.fileno(), self._wished)

    def end(self) -> None:
        """Listen no more."""
        self._loop.on_readable(self._hand.handover.fileno(), None)

    def stream(self, backend: str, path: str = "") -> dict[str, int]:
        """The one that the device has; BadInput."""
        if self._device not in self._streams.led_to:
            raise BadInput("backend", "a machine that runs makes no new stream")
        return self._host.stream(backend, path)

    def network(self, kind: str, where: str, mtu: int) -> dict[str, int]:
        """The one that the device has; BadInput."""
        networks = self._streams.networks
        if networks is None or self._device not in networks.by_device:
            raise BadInput(kind, "a machine that runs is connected to nothing new")
        return self._host.network(kind, where, mtu)

    def lock(self, fd: int, *, shared: bool, name: str = "") -> bool:
        """Lock it, and remember it. A new one has its name from now on."""
        if not self._host.lock(fd, shared=shared, name=name):
            return False
        try:
            self._locks.name(self._device, "device run")
        except BadInput:
            return False  # somebody was faster; it goes with the hand
        self._hand.locked.append(os.dup(fd))
        return True

    def _wished(self) -> None:
        try:
            handover = fds.receive(self._hand.handover)
            if handover is None:
                raise ProtocolError("it hung up")
            wishes.answer(self._hand.handover, self, handover)
        except (OSError, ProtocolError):
            self.end()  # it asks no more; its own end is seen at its pidfd


def _receive(connection: socket.socket) -> tuple[bytes, int]:
    # A packet, and the pid of who sent it, which the kernel vouches for. No descriptors: there is
    # no room for any.
    space = socket.CMSG_SPACE(_CREDENTIALS.size)
    data, ancillary, _, _ = connection.recvmsg(_MAX_PACKET, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, value in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            return data, int(_CREDENTIALS.unpack(value)[0])
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.close_all(struct.unpack(f"{len(value) // 4}i", value[: len(value) // 4 * 4]))
    raise ProtocolError("it does not say who it is")
