"""What ``Device.open`` asks of its host, from a process that is not the launcher: both ends."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from devices.runtime.device import Host
from protocol import codec, fds
from protocol.errors import BadInput, HostError, ProtocolError
from protocol.fds import Handover
from protocol.specs import Granted, Wish


class AskingHost:
    """devices.runtime.device.Host over ``channel``, at whose other end is :func:`answer`."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def stream(self, backend: str, path: str = "") -> dict[str, int]:
        """See devices.runtime.device.Host."""
        answer, found = self._ask(Wish("stream", backend=backend, path=path), {})
        if not answer.granted:
            raise BadInput(answer.where, answer.why)
        return found

    def network(self, kind: str, where: str, mtu: int) -> dict[str, int]:
        """See devices.runtime.device.Host."""
        answer, found = self._ask(Wish("network", backend=kind, path=where, mtu=mtu), {})
        if not answer.granted:
            raise BadInput(answer.where, answer.why)
        return found

    def lock(self, fd: int, *, shared: bool, name: str = "") -> bool:
        """See devices.runtime.device.Host."""
        return self._ask(Wish("lock", shared=shared, path=name), {"file": fd})[0].granted

    def _ask(self, wish: Wish, handed: Mapping[str, int]) -> tuple[Granted, dict[str, int]]:
        fds.send(self._channel, codec.pack(codec.to_plain(wish)), handed)
        answer = fds.receive(self._channel)
        if answer is None:
            raise HostError("the machine is gone")
        return codec.from_plain(Granted, codec.unpack(answer.payload)), answer.fds


def answer(channel: socket.socket, host: Host, handover: Handover) -> None:
    """Do what came over ``channel`` as a Wish, by ``host``, and answer. OSError; ProtocolError if
    it is none."""
    found: dict[str, int] = {}
    granted = Granted(True)
    try:
        wish = codec.from_plain(Wish, codec.unpack(handover.payload))
        if wish.what == "stream":
            found = host.stream(wish.backend, wish.path)
        elif wish.what == "network":
            found = host.network(wish.backend, wish.path, wish.mtu)
        elif set(handover.fds) == {"file"}:
            file = handover.fds["file"]
            granted = Granted(host.lock(file, shared=wish.shared, name=wish.path))
        else:
            raise ProtocolError("a lock is of a file")
    except BadInput as error:
        granted = Granted(False, error.where, error.why)
    finally:
        fds.close_all(handover.fds.values())
    try:
        fds.send(channel, codec.pack(codec.to_plain(granted)), found)
    finally:
        fds.close_all(found.values())
