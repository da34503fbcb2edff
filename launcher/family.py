"""The launcher's children: listened to while they live, reaped when they do not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial

from launcher.logs import Logs
from launcher.loop import Loop
from launcher.spawn import Child
from protocol.log import Level

_READ = 64 * 1024


class Family:
    """Every child that has not been let go; ``died`` hears of each that is dead, and reaped.

    ``named`` is who had each name last, for the statistics, alive or dead.
    """

    def __init__(self, loop: Loop, logs: Logs, died: Callable[[Child], None]) -> None:
        self._loop = loop
        self._logs = logs
        self._died = died
        self._children: list[Child] = []
        self.named: dict[str, Child] = {}

    def __iter__(self) -> Iterator[Child]:
        return iter(self._children)

    def adopt(self, child: Child) -> None:
        """From now on ``child`` is ours, to close as well."""
        self._children.append(child)
        self.named[child.name] = child

    def listen(self, child: Child) -> None:
        """Hear of its death, and read its log."""
        self._loop.on_readable(child.pidfd, partial(self.look, child))
        self._loop.on_readable(child.log, partial(self.read_log, child))
        self._logs.note(Level.DEBUG, f"{child.name} is process {child.pid}")

    def rename(self, child: Child) -> None:
        """It had another name, and has become what it is called now."""
        for name in [name for name, one in self.named.items() if one is child]:
            del self.named[name]
        self.named[child.name] = child

    def let_go(self, child: Child) -> None:
        """It is dead, and nobody's culprit: what it said last is read, and it is closed later by
        whoever let it go."""
        self.read_log(child)
        self._loop.on_readable(child.log, None)
        self._logs.close(child.name)
        self._children.remove(child)

    def read_log(self, child: Child) -> None:
        """What it has said since we looked last."""
        try:
            data = os.read(child.log, _READ)
        except BlockingIOError:
            return
        if data:
            self._logs.feed(child.name, data)
        else:
            self._loop.on_readable(child.log, None)

    @property
    def is_dead(self) -> bool:
        """Whether nobody is left."""
        return all(child.status is not None for child in self._children)

    def reap(self) -> None:
        """Kill whoever lives, and read what they all said last."""
        for child in self._children:
            self._loop.on_readable(child.pidfd, None)
            self._loop.on_readable(child.log, None)
            child.kill_and_reap()
            self.read_log(child)
            self._logs.close(child.name)

    def close(self) -> None:
        """End and close everybody."""
        for child in self._children:
            child.close()

    def look(self, child: Child) -> None:
        """Reap it, if it is dead by now. Once: whoever hears of its death may come across it."""
        if child.status is None and child.reap():
            self._loop.on_readable(child.pidfd, None)
            self._died(child)
