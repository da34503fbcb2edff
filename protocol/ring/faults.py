"""The ring engine with fault points: a hook behind every store that it makes to shared memory.

Another build of the same C (build.py, points.h), for tests and for ``--allow-inject``: the engine
in :mod:`protocol.ring` has no trace of it, and nothing imports this module unless it is meant to::

    ring = faults.Ring(memory, …, journal=journal)
    faults.set_hook(lambda point: point == "push_used_idx" and os.kill(os.getpid(), SIGKILL))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from protocol import ring
from protocol.ring._ring_faults import ffi, lib

__all__ = ["POINTS", "Ring", "set_hook"]


class Ring(ring.Ring):
    """The same ring, on the engine with fault points."""

    _ffi, _lib = ffi, lib


def _names() -> Iterator[str]:
    index = 0
    while name := lib.ring_point_name(index):
        yield ffi.string(name).decode()
        index += 1


#: The names of all points, in the order of points.h.
POINTS: tuple[str, ...] = tuple(_names())

_hook: Callable[[str], Any] | None = None


def set_hook(hook: Callable[[str], Any] | None) -> None:
    """Call ``hook`` with the name of a point right behind its store, in the thread that made it,
    for all rings of this process; None: no more. What it raises is printed and dropped."""
    global _hook
    _hook = hook
    lib.ring_set_fault_hook(lib.ring_fault_call_python if hook else ffi.NULL, ffi.NULL)


@ffi.def_extern()  # type: ignore[untyped-decorator]
def ring_fault_call_python(_context: object, point: int) -> None:
    """What the engine calls."""
    if _hook is not None:
        _hook(POINTS[point])
