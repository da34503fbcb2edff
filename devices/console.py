"""virtio-console: one port, with its size (virtio 1.2, section 5.3).

What the guest writes goes to one stream of bytes, and what comes from there goes to the guest. The
stream is shared with the launcher, which knows where it leads: to its terminal, a pty, or whoever
connects to a Unix socket. A chain of output is completed when all of its bytes are in the stream,
at the places that are its own; input is taken out of the stream when the chains that it filled are
published. So a successor of this process goes on at the byte at which it was killed.

::

    transmitq   chain ──► output, at position + what of it is there already ──► launcher
    receiveq    chain ◄── input, from position on ◄───────────────────────────── launcher
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

from devices.runtime.device import Device, Host, Runtime, virtqueue
from protocol import stream
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

    @classmethod
    def open(cls, config: Config, host: Host) -> dict[str, int]:
        """The stream."""
        return host.stream(config.backend, config.path)

    def __init__(self, config: Config, fds: Mapping[str, int], runtime: Runtime) -> None:
        super().__init__(config, fds, runtime)
        logs = stream.Stream(fds["stream"])
        self._output = stream.Producer(logs.output)
        self._input = stream.Consumer(logs.input)
        self._wake = fds["wake"]

    @property
    def features(self) -> int:
        """Its size."""
        return bit(Feature.SIZE)

    def config_space(self) -> bytes:
        """struct virtio_console_config."""
        return _CONFIG.pack(self.config.cols, self.config.rows, 1, 0)

    def start(self, features: int) -> None:
        """Listen to the launcher, and have it look: who was here before may have died before it
        could."""
        self.watch(self._wake, self._pump)
        stream.wake(self._wake)

    def initial_position(self, index: int) -> int:
        """Behind what was ever printed; before what nobody has taken."""
        # Since we were made, the one before may have gone on for a while.
        (self._output if index == _TRANSMITQ else self._input).take_over()
        return self._output.head if index == _TRANSMITQ else self._input.tail

    def published(self, index: int, position: int) -> None:
        """The guest has what it has read: give its room back."""
        if index == _RECEIVEQ and position != self._input.tail:
            self._input.consume(position)
            stream.wake(self._wake)

    # Neither queue owes anything: who types may be silent, and who reads may be slow.

    @virtqueue(_RECEIVEQ, size=64, owes=False)
    def receiveq(self, chain: Chain) -> None:
        """Room for input; kept until there is some."""
        self.soon(self._pump)

    @virtqueue(_TRANSMITQ, size=64, owes=False)
    def transmitq(self, chain: Chain) -> None:
        """Output; kept until it is in the stream."""
        self.soon(self._pump)

    def _pump(self) -> None:
        # Called for whatever may have changed: chains, or a cursor of the launcher's. It goes on
        # until nothing can be moved, and so misses no edge.
        stream.drain(self._wake)
        before = self._output.head
        while (chain := self.oldest(_TRANSMITQ)) is not None and self._transmit(chain):
            self.complete(_TRANSMITQ, chain, 0)
        if self._output.head != before:
            stream.wake(self._wake)
        while (chain := self.oldest(_RECEIVEQ)) is not None and self._receive(chain):
            self.complete(_RECEIVEQ, chain, chain.writable.written)

    def _transmit(self, chain: Chain) -> bool:
        # True when all of the chain is in the stream. What a predecessor has put there is counted,
        # and not written again.
        data = chain.readable
        at = self.position(_TRANSMITQ) + data.size - data.left
        count = self._output.write(at, data.buffers())
        data.advance(count)
        self.counters["output_bytes"] += count
        if data.left:
            return False
        self.advance(_TRANSMITQ, data.size)
        return True

    def _receive(self, chain: Chain) -> bool:
        # True when the chain has taken something, or has no room for anything.
        if not chain.writable.left:
            return True
        for view in self._input.peek(self.position(_RECEIVEQ)):
            chain.writable.write(view)
        if count := chain.writable.written:
            self.advance(_RECEIVEQ, count)
            self.counters["input_bytes"] += count
        return count > 0
