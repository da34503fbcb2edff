"""A disk that Python serves whole."""

from __future__ import annotations

from devices.blk import Blk


class PythonBlk(Blk):
    """The same device without a lane, as every class made from another is."""
