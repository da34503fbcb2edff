"""What a process has open and what children it has, so that a test can see what it left."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def descriptors() -> dict[int, str]:
    """Open descriptors of this process with what they lead to."""
    found: dict[int, str] = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that listed them
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def children(pid: int | None = None) -> list[int]:
    """Living and dead children of ``pid``, by default of this process, that were not reaped."""
    threads = Path(f"/proc/{os.getpid() if pid is None else pid}/task")
    while True:
        listed = os.listdir(threads)
        try:
            found = [(threads / thread / "children").read_text() for thread in listed]
        except (FileNotFoundError, ProcessLookupError):
            continue  # that thread has ended, and its children are another's
        return [int(child) for text in found for child in text.split()]


def started_as(module: str, pid: int) -> list[int]:
    """The children of ``pid`` that were started as ``module``."""
    return [child for child in children(pid) if module.encode() in _told(child, "cmdline")]


def named(name: str, pid: int) -> list[int]:
    """The children of ``pid``, living and dead, that call themselves ``name``."""
    return [child for child in children(pid) if _told(child, "comm") == name.encode() + b"\n"]


def _told(pid: int, file: str) -> bytes:
    # Nothing, if it was reaped since it was listed.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/{file}").read_bytes()
    return b""


@contextlib.contextmanager
def none_left() -> Iterator[None]:
    """Fail if what runs inside leaves a descriptor open or a child behind."""
    fds_before, children_before = descriptors(), children()
    yield
    new = {fd: what for fd, what in descriptors().items() if fds_before.get(fd) != what}
    assert new == {}, f"descriptors left open: {new}"
    assert [pid for pid in children() if pid not in children_before] == [], "children were left"
