"""What the VMM does for a launcher that is killed: put its terminal back, and remove its files and
cgroups."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping

from protocol import terminal
from protocol.jail import cgroup
from protocol.specs import Guard as GuardSpec


class Guard:
    """Of the launcher that sent ``spec`` and ``descriptors``, which stay open."""

    def __init__(self, spec: GuardSpec, descriptors: Mapping[str, int]) -> None:
        self._termios = spec.termios
        self._terminal = descriptors.get("terminal")
        self._files = {path: _identity(path) for path in spec.cleanup}
        self._groups = spec.groups

    def clean_up(self) -> None:
        """The launcher is dead, and cannot do it."""
        if self._termios and self._terminal is not None:
            terminal.restore(self._terminal, self._termios)
        for path, identity in self._files.items():
            # If we were late, it may be another machine's by now.
            if identity is None or _identity(path) != identity:
                continue
            if os.path.isdir(path):
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(path)
        # Last, for it waits until the devices are dead, as they are about to be: their parent is.
        if self._groups is not None:
            cgroup.remove(cgroup.Files(), self._groups)


def _identity(path: str) -> tuple[int, int] | None:
    # Which file it is, whatever its name may stand for later; None if there is none.
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
