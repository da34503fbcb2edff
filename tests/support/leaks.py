"""What a process has open and what children it has, so that a test can see what it left."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


def descriptors() -> dict[int, str]:
    """Open descriptors of this process with what they lead to."""
    found: dict[int, str] = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that listed them
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def children(pid: int | None = None) -> list[int]:
    """Living and dead children of ``pid``, by default of this process, that were not reaped."""
    owner = os.getpid() if pid is None else pid
    found: list[int] = []
    for task in os.listdir(f"/proc/{owner}/task"):
        # A thread may have ended since it was listed.
        with (
            contextlib.suppress(FileNotFoundError, ProcessLookupError),
            open(f"/proc/{owner}/task/{task}/children", encoding="ascii") as file,
        ):
            found += map(int, file.read().split())
    return found


@contextlib.contextmanager
def none_left() -> Iterator[None]:
    """Fail if what runs inside leaves a descriptor open or a child behind."""
    fds_before, children_before = descriptors(), children()
    yield
    new = {fd: what for fd, what in descriptors().items() if fds_before.get(fd) != what}
    assert new == {}, f"descriptors left open: {new}"
    assert [pid for pid in children() if pid not in children_before] == [], "children were left"
