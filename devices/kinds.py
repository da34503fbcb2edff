"""The kinds of devices there are: one line each, and the only place that lists them."""

from __future__ import annotations

import importlib

from devices.runtime.device import AnyDevice
from protocol.errors import BadInput

KINDS = {
    "blk": "devices.blk:Blk",
    "console": "devices.console:Console",
    "null": "devices.null:Null",
    "rng": "devices.rng:Rng",
}


def find(kind: str, option: str = "--device") -> type[AnyDevice]:
    """The class of ``kind``; BadInput, with what may have been meant, if there is none.

    Imports the one module that is asked for: a device process holds no other device's code.
    """
    if kind not in KINDS:
        # Imported here: only the launcher comes this way, before anything is sealed.
        from difflib import get_close_matches

        near = get_close_matches(kind, KINDS, 1)
        meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(KINDS)}"
        raise BadInput(option, f"{kind!r} is not a kind of device; {meant}")
    module, _, name = KINDS[kind].partition(":")
    found: type[AnyDevice] = getattr(importlib.import_module(module), name)
    return found
