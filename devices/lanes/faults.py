"""The lanes with fault points: another build, as :mod:`protocol.ring.faults` is of the engine."""

from __future__ import annotations

from devices.lanes._lanes_faults import ffi, lib
from protocol import faults, ring
from protocol.ring.faults import POINTS as ENGINE_POINTS
from protocol.ring.faults import Hook

__all__ = ["BEGIN", "POINTS", "Ring", "ffi", "lib", "set_hook"]

BEGIN = "begin"
"""No point for a fault: a lane is about to begin a chain, and may be told to decline it."""

POINTS = (faults.HANDLE, faults.COMPLETE, faults.INTERRUPT)
"""What a lane passes besides the engine's points."""


class Ring(ring.Ring):
    """The same ring, on the engine with fault points that the lanes are built with."""

    _ffi, _lib = ffi, lib


set_hook = Hook(ffi, lib, (*ENGINE_POINTS, BEGIN, *POINTS)).set
"""Set the hook of this build."""
