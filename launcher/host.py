"""What a device's ``open`` gets from the launcher: streams to the terminal, tidying, a voice."""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass, field

from launcher.locks import Locks
from protocol.errors import BadInput


@dataclass(slots=True)
class Streams:
    """What devices asked for while they were opened.

    ``terminal`` has our ends of their streams by name, ``cleanup`` the files to remove in the
    end, ``announcements`` what the user is told once everything is known to be right.
    """

    terminal: dict[str, socket.socket] = field(default_factory=dict)
    cleanup: list[str] = field(default_factory=list)
    announcements: list[str] = field(default_factory=list)

    def close(self) -> None:
        """Close our ends and remove the files."""
        for stream in self.terminal.values():
            stream.close()
        self.remove_files()

    def remove_files(self) -> None:
        """Remove the files, once."""
        for path in self.cleanup:
            with contextlib.suppress(OSError):
                os.unlink(path)
        self.cleanup.clear()


class Host:
    """The launcher, as the device called ``name`` sees it (devices.runtime.device.Host)."""

    def __init__(self, name: str, streams: Streams, locks: Locks) -> None:
        self._name = name
        self._locks = locks
        self._streams = streams

    @property
    def name(self) -> str:
        """The device's name."""
        return self._name

    def terminal(self, name: str) -> int:
        """A stream socket to the terminal, shown there as ``name``; the caller's to close."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._streams.terminal[name] = ours
        return theirs.detach()

    def cleanup(self, path: str) -> None:
        """Remove ``path`` when the machine ends; BadInput if it has no name in UTF-8."""
        try:
            found = os.path.abspath(path)
            found.encode()  # the VMM, which is told of it, is not told bytes
        except (OSError, UnicodeEncodeError):
            self._streams.cleanup.append(path)
            raise BadInput("path", f"{path}: the directory that it is in is not UTF-8") from None
        self._streams.cleanup.append(found)

    def lock(self, fd: int, *, shared: bool) -> bool:
        """Lock ``fd``; see devices.runtime.device.Host."""
        return self._locks.take(self._name, fd, shared=shared)

    def announce(self, text: str) -> None:
        """Tell the user."""
        self._streams.announcements.append(f"{self._name}: {text}")
