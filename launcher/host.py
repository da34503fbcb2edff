"""What a device's ``open`` gets from the launcher: streams, which lead somewhere."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from launcher.locks import Locks
from launcher.streams import Bridge, LogEnd, listen, open_pty
from protocol import fds
from protocol.errors import BadInput

if TYPE_CHECKING:
    from launcher.networks import Networks


@dataclass(slots=True)
class Streams:
    """What devices asked for while they were opened.

    ``terminal`` has our ends of streams that lead to the terminal, ``bridges`` those of others;
    ``cleanup`` the files to remove in the end, ``announcements`` what the user is told once
    everything is known to be right.
    """

    terminal: list[LogEnd] = field(default_factory=list)
    bridges: list[Bridge] = field(default_factory=list)
    cleanup: list[str] = field(default_factory=list)
    announcements: list[str] = field(default_factory=list)
    led_to: dict[str, tuple[tuple[str, str], dict[str, int]]] = field(default_factory=dict)
    """Of each device that has one: backend and path, and the descriptors that it was given."""
    networks: Networks | None = None
    """What interfaces are connected to, if there are any."""

    def ends(self) -> Iterator[LogEnd]:
        """Our ends of all of them."""
        yield from self.terminal
        yield from (bridge.end for bridge in self.bridges)

    def close(self) -> None:
        """Close our ends and remove the files."""
        for bridge in self.bridges:
            bridge.close()
        for end in self.ends():
            end.close()
        for _, kept in self.led_to.values():
            fds.close_all(kept.values())
        self.led_to.clear()
        if self.networks is not None:
            self.networks.close()
        self.remove_files()

    def remove_files(self) -> None:
        """Remove the files, once."""
        for path in self.cleanup:
            with contextlib.suppress(OSError):
                os.unlink(path)
        self.cleanup.clear()
        if self.networks is not None:
            self.networks.remove_folders()

    def clean_up(self, path: str) -> None:
        """Remove it when the machine ends; BadInput."""
        try:
            found = os.path.abspath(path)
            found.encode()  # the VMM, which is told of it, is not told bytes
        except (OSError, UnicodeEncodeError):
            self.cleanup.append(path)
            raise BadInput("path", f"{path}: the directory that it is in is not UTF-8") from None
        self.cleanup.append(found)


class Host:
    """The launcher, as the device called ``name`` sees it (devices.runtime.device.Host)."""

    def __init__(self, name: str, streams: Streams, locks: Locks) -> None:
        self._name = name
        self._locks = locks
        self._streams = streams

    def stream(self, backend: str, path: str = "") -> dict[str, int]:
        """The descriptors of a stream that leads to the ``terminal``, a new ``pty``, or clients of
        a ``socket`` at ``path``; the caller's to close. BadInput."""
        known = self._streams.led_to.get(self._name)
        if known is not None:
            # Another implementation, or other options, of a device that has one already.
            if known[0] != (backend, path):
                raise BadInput("backend", "a console that runs stays where it is")
            return _duplicates(known[1])
        end = self._open_stream(backend, path)
        self._streams.led_to[self._name] = ((backend, path), _duplicates(end.fds))
        return end.fds

    def _open_stream(self, backend: str, path: str) -> LogEnd:
        if backend == "terminal":
            self._streams.terminal.append(LogEnd(self._name))
            return self._streams.terminal[-1]
        if backend == "pty":
            master, name = open_pty()
            bridge = Bridge(LogEnd(self._name), pty=master)
            self._streams.announcements.append(f"{self._name}: pty {name}")
        else:
            listener = listen(path)
            try:
                self._streams.clean_up(path)
            except BadInput:
                listener.close()
                raise
            bridge = Bridge(LogEnd(self._name), listener=listener)
        self._streams.bridges.append(bridge)
        return bridge.end

    def network(self, kind: str, where: str, mtu: int) -> dict[str, int]:
        """Its descriptors; see devices.runtime.device.Host."""
        if self._streams.networks is None:
            from launcher.networks import Networks  # a machine without has no need of it

            self._streams.networks = Networks(self._streams.clean_up)
        return self._streams.networks.descriptors(self._name, kind, where, mtu)

    def lock(self, fd: int, *, shared: bool, name: str = "") -> bool:
        """Lock ``fd``; see devices.runtime.device.Host."""
        return self._locks.take(self._name, fd, shared=shared, name=name)


def _duplicates(descriptors: dict[str, int]) -> dict[str, int]:
    return {name: os.dup(fd) for name, fd in descriptors.items()}
