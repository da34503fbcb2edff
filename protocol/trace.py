"""Time-stamped events of one process, written to a file that the launcher merges at the end.

A line is ``start_ns<TAB>duration_ns<TAB>who<TAB>kind<TAB>what``; the clock is CLOCK_MONOTONIC,
which all processes of a host share. Each process has its own file, handed over open, so that a
process that dies takes nothing with it but its last buffer.
"""

from __future__ import annotations

import os
import time

now = time.monotonic_ns

# Bytes gathered before a write; small enough that a crash loses little (arbitrary).
_BUFFER = 16 * 1024


class Trace:
    """Writes events to ``fd``. Where nothing is traced there is no Trace at all: callers hold
    None and test for it once, outside of their loops."""

    def __init__(self, fd: int, who: str) -> None:
        self._fd = fd
        self._who = who
        self._lines: list[str] = []
        self._bytes = 0

    def event(self, kind: str, what: str, start: int | None = None) -> None:
        """Note ``what``; with ``start``, a time from :func:`now`, it took from then until now."""
        end = now()
        begun = end if start is None else start
        line = f"{begun}\t{end - begun}\t{self._who}\t{kind}\t{what}\n"
        # list.append and the += below are each used by several vCPU threads: a lost count
        # delays a flush, nothing more.
        self._lines.append(line)
        self._bytes += len(line)
        if self._bytes > _BUFFER:
            self.flush()

    def flush(self) -> None:
        """Write what is gathered."""
        lines, self._lines, self._bytes = self._lines, [], 0
        if lines:
            os.write(self._fd, "".join(lines).encode())
