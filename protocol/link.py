"""Whether a network interface has a link: a page that its device shares with the launcher.

The page outlives the process of the device, so a successor finds the link as it is. Only the
launcher writes there; a device that does deceives itself. Who has changed it wakes the other over
a socket pair (:func:`protocol.stream.wake_pair`).
"""

from __future__ import annotations

import mmap

from protocol.memory import PAGE_SIZE, create_memfd

# The first byte: 0 while the link is up, which it is at first.
_DOWN = 0


def create(name: str) -> int:
    """The page of a link that is up, sealed; the caller's to close."""
    return create_memfd(name, PAGE_SIZE)


class Link:
    """The page in the file ``fd``, which stays the caller's."""

    def __init__(self, fd: int) -> None:
        self._page = mmap.mmap(fd, PAGE_SIZE)

    @property
    def is_up(self) -> bool:
        """Whether there is one."""
        return not self._page[_DOWN]

    @is_up.setter
    def is_up(self, up: bool) -> None:
        self._page[_DOWN] = not up

    def close(self) -> None:
        """Unmap."""
        self._page.close()
