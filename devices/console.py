"""virtio-console: one port, with its size (virtio 1.2, section 5.3).

What the guest writes goes to one byte stream, and what comes from there goes to the guest: the
launcher's terminal, a pty, or whoever connects to a Unix socket. Nothing is buffered here: a
reader that is slow holds the guest's chains up, a guest that does not read holds the stream up.
Output for which there is no reader at all, because nobody has the pty open or is connected, is
dropped.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import tty
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

from devices.runtime import files
from devices.runtime.device import Device, Host, Jail, Runtime, virtqueue
from protocol.errors import BadInput
from protocol.ring import Chain
from protocol.virtio import DeviceId, bit


class Feature(IntEnum):
    """Feature bits (5.3.3)."""

    SIZE = 0


# struct virtio_console_config (5.3.4): cols, rows, max_nr_ports, emerg_wr.
_CONFIG = struct.Struct("<HHII")

# virtqueues of port 0 (5.3.2).
_RECEIVEQ, _TRANSMITQ = 0, 1

# What a terminal is if nothing says otherwise.
_USUAL_SIZE = os.terminal_size((80, 24))

# Connections that may wait for the one that is served to end (arbitrary).
_BACKLOG = 1


def _terminal_size() -> os.terminal_size:
    # Asked in the launcher, where options become a Config; the device has no terminal.
    for fd in (1, 0, 2):
        try:
            return os.get_terminal_size(fd)
        except OSError:
            continue
    return _USUAL_SIZE


@dataclass(frozen=True, slots=True)
class Config:
    """A console: hvc0 to Linux, for the first one."""

    backend: Literal["terminal", "pty", "socket"] = "terminal"
    """Where its stream leads: the launcher's terminal, a new pty, whose name is printed, or a
    Unix socket that serves one client at a time."""
    path: str = ""
    """The Unix socket to make; for backend=socket."""
    cols: int = field(default_factory=lambda: _terminal_size().columns)
    """Columns that the guest sees; those of the terminal if not given."""
    rows: int = field(default_factory=lambda: _terminal_size().lines)
    """Rows, likewise."""

    def __post_init__(self) -> None:
        if not (0 <= self.cols <= 0xFFFF and 0 <= self.rows <= 0xFFFF):
            raise ValueError(f"{self.cols} by {self.rows} is no size of a console")
        if bool(self.path) != (self.backend == "socket"):
            raise ValueError("path: backend=socket needs one, the others take none")


class Console(Device[Config]):
    """Moves bytes between two queues and one stream, both ways, whenever something changes."""

    device_id = DeviceId.CONSOLE
    jail = Jail(frozenset({"readv", "writev", "accept4"}))

    @classmethod
    def open(cls, config: Config, host: Host) -> dict[str, int]:
        """The ``stream``, or the ``listener`` from which one will come."""
        if config.backend == "terminal":
            stream = host.terminal(host.name)
            os.set_blocking(stream, False)
            return {"stream": stream}
        if config.backend == "pty":
            return {"stream": _open_pty(host)}
        return {"listener": _listen(config.path, host)}

    def __init__(self, config: Config, fds: Mapping[str, int], runtime: Runtime) -> None:
        super().__init__(config, fds, runtime)
        self._stream = fds.get("stream")
        self._listener = fds.get("listener")
        self._hangup = select.poll()
        if config.backend == "pty":
            self._hangup.register(fds["stream"], 0)

    @property
    def features(self) -> int:
        """Its size."""
        return bit(Feature.SIZE)

    def config_space(self) -> bytes:
        """struct virtio_console_config."""
        return _CONFIG.pack(self.config.cols, self.config.rows, 1, 0)

    def start(self, features: int) -> None:
        """Listen to the stream, and to who may become one."""
        if self._listener is not None:
            self.watch(self._listener, self._pump)
        if self._stream is not None:
            self.watch(self._stream, self._pump)

    @virtqueue(_RECEIVEQ, size=64)
    def receiveq(self, chain: Chain) -> None:
        """Room for input; kept until there is some."""
        self.soon(self._pump)

    @virtqueue(_TRANSMITQ, size=64)
    def transmitq(self, chain: Chain) -> None:
        """Output; kept until it is written."""
        self.soon(self._pump)

    def _pump(self) -> None:
        # Called for whatever may have changed: chains, the stream, a client. It goes on until
        # nothing can be moved, and so misses no edge.
        if self._stream is None and self._listener is not None:
            self._accept(self._listener)
        while (chain := self.oldest(_TRANSMITQ)) is not None and self._transmit(chain):
            self.complete(_TRANSMITQ, chain, 0)
        while (chain := self.oldest(_RECEIVEQ)) is not None and self._receive(chain):
            self.complete(_RECEIVEQ, chain, chain.writable.written)

    def _transmit(self, chain: Chain) -> bool:
        # True when there is nothing left to write, or nobody to write it to. A pty that nobody
        # has open takes output until it is full; only its hang-up tells, hence the poll.
        while chain.readable.left and self._stream is not None and not self._hangup.poll(0):
            try:
                count = os.writev(self._stream, chain.readable.buffers())
            except BlockingIOError:
                return False
            except OSError as error:
                self._broken(error)
                break
            self.counters["output_bytes"] += count
            chain.readable.advance(count)
        self.counters["dropped_bytes"] += chain.readable.left
        return True

    def _receive(self, chain: Chain) -> bool:
        # True when the chain has taken something, or has no room for anything.
        if not chain.writable.left:
            return True
        if self._stream is None:
            return False
        try:
            count = os.readv(self._stream, chain.writable.buffers())
        except BlockingIOError:
            return False
        except OSError as error:
            self._broken(error)
            return False
        if count == 0:
            self._disconnect()
            return False
        self.counters["input_bytes"] += count
        chain.writable.advance(count)
        return True

    def _accept(self, listener: int) -> None:
        try:
            self._stream = files.accept(listener)
        except (BlockingIOError, ConnectionAbortedError):
            return
        self.counters["clients"] += 1
        self.watch(self._stream, self._pump)

    def _broken(self, error: OSError) -> None:
        # A pty that nobody has open says EIO to who reads it, until somebody does: it stays.
        if error.errno == errno.EIO and self.config.backend == "pty":
            return
        if error.errno not in (errno.EPIPE, errno.ECONNRESET):
            raise error
        self._disconnect()

    def _disconnect(self) -> None:
        # The next client may be waiting already, and its edge gone: look at once.
        if self._stream is not None:
            self.unwatch(self._stream)
            os.close(self._stream)
            self._stream = None
            self.soon(self._pump)


def _open_pty(host: Host) -> int:
    try:
        master, slave = os.openpty()
    except OSError as error:
        raise BadInput("backend", f"no pty: {error.strerror}") from error
    try:
        # Echo and line editing are the guest's business. The setting stays when we close the
        # slave, which we do so that the kernel tells whether anybody has it open.
        tty.setraw(slave)
        host.announce(f"pty {os.ttyname(slave)}")
    finally:
        os.close(slave)
    os.set_blocking(master, False)
    return master


def _listen(path: str, host: Host) -> int:
    if "\0" in path:  # the kernel would take it for another name, or for one without a file
        raise BadInput("path", f"{path!r} has a null byte in it")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        host.cleanup(path)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise BadInput("path", f"{path}: {_why(error)}") from error
    listener.setblocking(False)
    return listener.detach()


def _why(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "exists already; a socket is made, never replaced"
    return error.strerror or str(error)  # too long a path has no text of the kernel's
