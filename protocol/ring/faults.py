"""The ring engine with fault points: a hook behind every store that it makes to shared memory.

Another build of the same C (build.py, points.h), for tests and for ``--allow-inject``: the engine
in :mod:`protocol.ring` has no trace of it, and nothing imports this module unless it is meant to::

    ring = faults.Ring(memory, …, journal=journal)
    faults.set_hook(lambda point: point == "push_used_idx" and os.kill(os.getpid(), SIGKILL))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from protocol import ring
from protocol.ring._ring_faults import ffi, lib

__all__ = ["POINTS", "Hook", "Ring", "set_hook"]


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


class Hook:
    """The hook of one build of the engine, whose points have the names ``points``."""

    def __init__(self, ffi: Any, lib: Any, points: Sequence[str]) -> None:
        self._ffi, self._lib = ffi, lib
        self._points = points
        self._called: Callable[[str], Any] | None = None
        ffi.def_extern("ring_fault_call_python")(self._reached)

    def set(self, hook: Callable[[str], Any] | None) -> None:
        """Call ``hook`` with the name of a point right behind its store, in the thread that made
        it, for all rings of this build; None: no more. What it raises is printed and dropped."""
        self._called = hook
        call = self._lib.ring_fault_call_python if hook else self._ffi.NULL
        self._lib.ring_set_fault_hook(call, self._ffi.NULL)

    def _reached(self, _context: object, point: int) -> None:
        if self._called is not None:
            self._called(self._points[point])


set_hook = Hook(ffi, lib, POINTS).set
"""Set the hook of this build."""
