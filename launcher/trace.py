"""``--trace``: a file for each process while it runs, and one file for people in the end.

The lines (see protocol/trace.py) come from processes that are not believed: what is not a line
of ours is left out and counted.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from operator import attrgetter
from typing import BinaryIO, TextIO

from launcher.logs import printable
from protocol.errors import HostError
from protocol.trace import Trace

# Bytes of a line; ours have some 250, and none that is longer is an event.
_MAX_LINE = 1024
# An event is written down when it is over, but stands where it began: so many events of its process
# are held for one that began earlier. One that took even longer comes late, with its right time.
_WINDOW = 1 << 14


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """One event: times in nanoseconds of CLOCK_MONOTONIC, and who did what."""

    start: int
    duration: int
    who: str
    kind: str
    what: str
    process: str
    pid: int


_start = attrgetter("start")


class Traces:
    """The traces of all processes, and the file ``output`` that they become; with None for it
    nothing is traced.

    ``path`` is the file's name: one that ends in ``.json`` is written for Perfetto
    (https://ui.perfetto.dev), any other one event a line.
    """

    def __init__(self, output: int | None, path: str) -> None:
        self._output = output
        self._path = path
        self._parts: dict[str, int] = {}
        own = self.part("launcher")
        self._own = None if own is None else Trace(own, "launcher")

    def control(self, what: str) -> None:
        """A control message of the launcher's own."""
        if self._own:
            self._own.event("control", what[:200])

    def part(self, process: str) -> int | None:
        """A descriptor for the trace of ``process``, and of those of that name that come after it;
        stays this object's. The file has no name, so nothing is left behind whoever dies."""
        if self._output is None:
            return None
        if process not in self._parts:
            self._parts[process] = _nameless_file(os.path.dirname(os.path.abspath(self._path)))
        return self._parts[process]

    def write(self, pids: dict[str, int]) -> int:
        """Merge all parts, sorted by time; the number of lines that made no sense.

        ``pids`` are the processes by name. Call it when all of them have ended.
        """
        if self._output is None:
            return 0
        if self._own:
            self._own.flush()
        parts = [_Part(process, pids.get(process, 0)) for process in self._parts]
        with ExitStack() as files:
            sources: list[Iterator[TraceEvent]] = []
            for part, fd in zip(parts, self._parts.values(), strict=True):
                os.lseek(fd, 0, os.SEEK_SET)
                file = files.enter_context(open(os.dup(fd), "rb"))
                sources.append(_sorted(part.events(file)))
            output = files.enter_context(open(os.dup(self._output), "w", encoding="utf-8"))
            write = write_perfetto if self._path.endswith(".json") else write_text
            write(heapq.merge(*sources, key=_start), output)
        return sum(part.skipped for part in parts)

    def close(self) -> None:
        """Close the parts."""
        for fd in self._parts.values():
            os.close(fd)
        self._parts.clear()


class _Part:
    """What one process wrote, which is not believed."""

    def __init__(self, process: str, pid: int) -> None:
        self._process = process
        self._pid = pid
        self.skipped = 0

    def events(self, file: BinaryIO) -> Iterator[TraceEvent]:
        """The events in ``file``; what is none is counted."""
        whole = True  # whether a line begins here
        while line := file.readline(_MAX_LINE):
            event = parse(line, self._process, self._pid) if whole else None
            whole = line.endswith(b"\n")
            if event is not None:
                yield event
            elif whole:
                self.skipped += 1
        self.skipped += not whole


def _sorted(events: Iterable[TraceEvent]) -> Iterator[TraceEvent]:
    # In order of time, as far as the window reaches; memory has a bound however many there are.
    held: list[TraceEvent] = []
    for event in events:
        held.append(event)
        if len(held) >= 2 * _WINDOW:
            held.sort(key=_start)
            yield from held[:_WINDOW]
            del held[:_WINDOW]
    held.sort(key=_start)
    yield from held


def _nameless_file(folder: str) -> int:
    try:
        # There the trace itself will fit; a temporary file system may be too small for it.
        flags = os.O_TMPFILE | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
        return os.open(folder, flags, 0o600)
    except OSError:
        import tempfile  # not every file system has files without a name

        try:
            with tempfile.TemporaryFile() as file:
                return os.dup(file.fileno())
        except OSError as error:
            raise HostError(f"no file for a trace: {error.strerror}") from error


def parse(line: bytes, process: str, pid: int) -> TraceEvent | None:
    """The event in ``line``; None if it is none."""
    fields = line.rstrip(b"\n").split(b"\t", 4)
    if len(fields) != 5 or not line.endswith(b"\n"):
        return None
    times = fields[:2]
    if not all(time.isdigit() and len(time) <= 20 for time in times):
        return None
    who, kind, what = (printable(field) for field in fields[2:])
    return TraceEvent(int(times[0]), int(times[1]), who, kind, what, process, pid)


def write_text(events: Iterable[TraceEvent], output: TextIO) -> None:
    """One line an event: seconds since the first, who, what, and how many microseconds."""
    first: int | None = None
    for event in events:
        first = event.start if first is None else first
        took = f"  ({event.duration / 1000:.1f} us)" if event.duration else ""
        seconds = (event.start - first) / 1e9
        output.write(f"{seconds:14.9f}  {event.who:<12} {event.kind:<10} {event.what}{took}\n")


def write_perfetto(events: Iterable[TraceEvent], output: TextIO) -> None:
    """The Trace Event Format that chrome://tracing and Perfetto read: times in microseconds, ``X``
    for events with a duration, ``i`` for those without, a track a process and a thread."""
    import json  # the start of a machine does not wait for it

    before = '{"displayTimeUnit": "ns", "traceEvents": [\n'

    def put(row: dict[str, object]) -> None:
        nonlocal before
        output.write(before + json.dumps(row))
        before = ",\n"

    processes: set[str] = set()
    tracks: dict[tuple[str, str], int] = {}
    first: int | None = None
    for event in events:
        first = event.start if first is None else first
        if event.process not in processes:
            processes.add(event.process)
            put(_metadata("process_name", event.pid, 0, event.process))
        track = tracks.get((event.process, event.who))
        if track is None:
            track = tracks[event.process, event.who] = len(tracks) + 1
            put(_metadata("thread_name", event.pid, track, event.who))
        row: dict[str, object] = {
            "name": event.what,
            "cat": event.kind,
            "ph": "X" if event.duration else "i",
            "ts": (event.start - first) / 1000,
            "pid": event.pid,
            "tid": track,
        }
        row |= {"dur": event.duration / 1000} if event.duration else {"s": "t"}
        put(row)
    output.write((before if first is None else "\n") + "]}\n")


def _metadata(kind: str, pid: int, tid: int, name: str) -> dict[str, object]:
    return {"name": kind, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}
