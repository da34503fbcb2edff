"""What a device's ``open`` gets from the launcher: streams, which lead somewhere."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from launcher.streams import Bridge, LogEnd, listen, open_pty
from protocol.errors import BadInput


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
        self.remove_files()

    def remove_files(self) -> None:
        """Remove the files, once."""
        for path in self.cleanup:
            with contextlib.suppress(OSError):
                os.unlink(path)
        self.cleanup.clear()


class Host:
    """The launcher, as the device called ``name`` sees it (devices.runtime.device.Host)."""

    def __init__(self, name: str, streams: Streams) -> None:
        self._name = name
        self._streams = streams

    def stream(self, backend: str, path: str = "") -> dict[str, int]:
        """The descriptors of a stream that leads to the ``terminal``, a new ``pty``, or clients of
        a ``socket`` at ``path``; the caller's to close. BadInput."""
        if backend == "terminal":
            self._streams.terminal.append(LogEnd(self._name))
            return self._streams.terminal[-1].fds
        if backend == "pty":
            master, name = open_pty()
            bridge = Bridge(LogEnd(self._name), pty=master)
            self._streams.announcements.append(f"{self._name}: pty {name}")
        else:
            listener = listen(path)
            try:
                self._clean_up(path)
            except BadInput:
                listener.close()
                raise
            bridge = Bridge(LogEnd(self._name), listener=listener)
        self._streams.bridges.append(bridge)
        return bridge.end.fds

    def _clean_up(self, path: str) -> None:
        # Removes it when the machine ends.
        try:
            found = os.path.abspath(path)
            found.encode()  # the VMM, which is told of it, is not told bytes
        except (OSError, UnicodeEncodeError):
            self._streams.cleanup.append(path)
            raise BadInput("path", f"{path}: the directory that it is in is not UTF-8") from None
        self._streams.cleanup.append(found)
