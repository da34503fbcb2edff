"""Logging of every process: one line an event on stderr, which is a pipe to the launcher.

A line is the level's letter, a space and the text; the launcher puts time and the process's
name before it, strips control characters and limits the rate, for it believes nobody.
"""

from __future__ import annotations

import logging
import time
from enum import IntEnum


class Level(IntEnum):
    """The levels of ``--log``, as numbers and as names."""

    NONE = 0
    ERROR = 1
    WARN = 2
    INFO = 3
    DEBUG = 4


_PYTHON = {
    Level.NONE: logging.CRITICAL + 1,
    Level.ERROR: logging.ERROR,
    Level.WARN: logging.WARNING,
    Level.INFO: logging.INFO,
    Level.DEBUG: logging.DEBUG,
}

# A guest that errs all the time must not fill the host's disk: this many lines at once from one
# place, and one a second after that (arbitrary: enough to see a pattern).
_BURST = 20


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record).replace("\n", "\\n")
        return f"{record.levelname[0]} {text}"


class RateLimit(logging.Filter):
    """Lets a burst of records from each place in the code through, then one a second, with a count
    of what it held back."""

    def __init__(self, burst: int = _BURST) -> None:
        super().__init__()
        self._burst = burst
        self._places: dict[tuple[str, int], list[float]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """True for a record that may pass."""
        # [tokens, time of the last refill, records held back]
        place = self._places.setdefault(
            (record.pathname, record.lineno), [float(self._burst), time.monotonic(), 0.0]
        )
        now = time.monotonic()
        place[0] = min(float(self._burst), place[0] + now - place[1])
        place[1] = now
        if place[0] < 1:
            place[2] += 1
            return False
        place[0] -= 1
        if place[2]:
            record.msg = f"{record.msg} ({int(place[2])} more like this were held back)"
            place[2] = 0
        return True


def set_up(level: Level | int) -> None:
    """Send this process's records of ``level`` and above to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    handler.addFilter(RateLimit())
    logging.basicConfig(level=_PYTHON[Level(level)], handlers=[handler], force=True)
    logging.raiseExceptions = False  # the launcher may be gone; that is found out elsewhere
