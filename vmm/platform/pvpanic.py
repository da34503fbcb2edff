"""pvpanic: a port on which the guest's kernel reports that it crashed (QEMU, docs/specs/pvpanic).

Bits are those of <misc/pvpanic.h>.
"""

from __future__ import annotations

import logging

from vmm.platform.power import Reason, Request
from vmm.regmap import Register, RegisterMap

log = logging.getLogger(__name__)

PANICKED = 1 << 0
CRASH_LOADED = 1 << 1


class PvPanic(RegisterMap):
    """One byte: reads tell the supported events, a write reports those that happened."""

    def __init__(self, request: Request) -> None:
        super().__init__([Register(0, 1, "EVENTS", lambda: PANICKED | CRASH_LOADED, self._report)])
        self._request = request

    def _report(self, events: int, _mask: int) -> None:
        if events & CRASH_LOADED:
            log.warning("the guest panicked and goes on in its crash kernel")
        if events & PANICKED:
            self._request(Reason.PANIC)
