"""A device that has what a console has, and tries to reach a stranger with it."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from devices.console import Console
from devices.runtime.device import Device, Host, Runtime, virtqueue
from protocol.ring import Chain
from protocol.virtio import DeviceId

# <asm-generic/fcntl.h>; the fcntl module of Python 3.11 lacks the name.
_F_SETSIG = 10


@dataclass(frozen=True, slots=True)
class Config:
    """How, and at whom."""

    deed: str = ""
    target: str = ""


class Marksman(Device[Config]):
    """Has a stream and the jail of a console, and tries to reach with it someone else: the
    process ``target`` (``signal``), or the socket of that name (``address``)."""

    device_id = DeviceId.NULL
    jail = Console.jail

    @classmethod
    def open(cls, config: Config, host: Host) -> dict[str, int]:
        """The stream."""
        return host.stream("terminal")

    def __init__(self, config: Config, fds: Mapping[str, int], runtime: Runtime) -> None:
        super().__init__(config, fds, runtime)
        self._wake = socket.socket(fileno=fds["wake"])

    @virtqueue(0, size=16)
    def requestq(self, chain: Chain) -> int:
        """Aim."""
        if self.config.deed == "address":
            return self._wake.sendto(b"hit", self.config.target)
        fcntl.fcntl(self._wake, _F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(self._wake, fcntl.F_SETOWN, int(self.config.target))
        fcntl.fcntl(self._wake, fcntl.F_SETFL, os.O_ASYNC)
        return 0
