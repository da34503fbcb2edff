"""The log: what children write to standard error, made one line an event and made harmless.

A line comes out as ``HH:MM:SS.mmm name level text``. Children are not believed: control
characters are shown and not sent, long lines are cut, floods are held back.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from dataclasses import dataclass, field

from launcher.output import Output
from protocol.log import Level

# Characters of a message of several lines, such as a dump of registers or a table of statistics;
# arbitrary: the longest has some hundred lines.
_MAX_TEXT = 64 * 1024

# Lines kept of each process, for the message when it dies.
_TAIL = 20
# Characters of a line that are shown, and lines that a process may write at once and a second
# after that (arbitrary: a traceback and a debug log pass, a flood does not fill a disk).
_MAX_LINE = 2000
_BURST = 400
_PER_SECOND = 200

_WORDS = {"E": "error", "C": "error", "W": "warn", "I": "info", "D": "debug"}


@dataclass(slots=True)
class _Source:
    partial: bytes = b""
    tail: deque[bytes] = field(default_factory=lambda: deque(maxlen=_TAIL))
    tokens: float = _BURST
    refilled: float = 0.0
    held_back: int = 0

    def refill(self) -> None:
        """As many more lines as the time since the last call allows."""
        now = time.monotonic()
        self.tokens = min(_BURST, self.tokens + (now - self.refilled) * _PER_SECOND)
        self.refilled = now


# Bytes of a process's own log, of which one older part is kept beside it (arbitrary).
_PART = 256 * 1024


class Logs:
    """Collects the lines of all processes and writes them to ``output``; and those of each process
    to ``NAME.log`` in ``directory``, of which no more than the last half megabyte is kept."""

    def __init__(
        self, output: Output, launcher_level: Level = Level.WARN, directory: str | None = None
    ) -> None:
        self._output = output
        self._directory = directory
        self._level = launcher_level
        self._sources: dict[str, _Source] = {}

    def note(self, level: Level, text: str) -> None:
        """A line of the launcher's own."""
        if level <= self._level:
            self._emit("launcher", level.name.lower(), printable(text.encode())[:_MAX_LINE])

    def feed(self, name: str, data: bytes) -> None:
        """Bytes that came from the standard output or error of process ``name``."""
        source = self._sources.setdefault(name, _Source())
        source.refill()
        # No more of them than are shown; the others are counted, which costs a hundredth.
        *lines, rest = (source.partial + data).split(b"\n", int(source.tokens))
        for line in lines:
            self._line(name, source, line)
        source.held_back += rest.count(b"\n")
        *last, source.partial = rest.rsplit(b"\n", _TAIL + 1)
        source.tail.extend(line[:_MAX_LINE] for line in last[-_TAIL:])
        if len(source.partial) > _MAX_LINE:
            self._line(name, source, source.partial)
            source.partial = b""

    def close(self, name: str) -> None:
        """Process ``name`` will write no more: what it left unfinished is a line, too."""
        source = self._sources.get(name)
        if source is None:
            return
        if source.partial:
            self._line(name, source, source.partial)
            source.partial = b""
        self._tell_held_back(name, source)

    def tail(self, name: str) -> tuple[str, ...]:
        """The last lines of ``name``, without time and name."""
        return tuple(map(printable, self._sources[name].tail)) if name in self._sources else ()

    def _line(self, name: str, source: _Source, line: bytes) -> None:
        source.tail.append(line[:_MAX_LINE])
        if source.tokens < 1:
            source.held_back += 1
            return
        source.tokens -= 1
        self._tell_held_back(name, source)
        text = printable(line[:_MAX_LINE])
        # Lines of the logging module begin with their level; a traceback's do not.
        if len(text) > 1 and text[1] == " " and text[0] in _WORDS:
            self._emit(name, _WORDS[text[0]], text[2:])
        else:
            self._emit(name, "output", text)

    def _tell_held_back(self, name: str, source: _Source) -> None:
        if source.held_back:
            self._emit(name, "warn", f"({source.held_back} lines were held back)")
            source.held_back = 0

    def _emit(self, name: str, level: str, text: str) -> None:
        now = time.time()
        clock = time.strftime("%H:%M:%S", time.localtime(now))
        line = f"{clock}.{int(now * 1000) % 1000:03} {name} {level} {text}\n"
        self._output.offer(line.encode())
        if self._directory is not None:
            # Without it, when the machine ends, or on a full disk, there is none.
            with contextlib.suppress(OSError):
                _append(os.path.join(self._directory, f"{name}.log"), line.encode())


def _append(path: str, line: bytes) -> None:
    # Opened for each line, of which there are few: no descriptor has to be had for each process.
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(fd, line)
        if os.fstat(fd).st_size >= _PART:
            os.rename(path, f"{path}.old")
    finally:
        os.close(fd)


def printable(data: bytes) -> str:
    """``data`` as text in which nothing can move a cursor or change a colour."""
    text = data.decode("utf-8", "backslashreplace").expandtabs(4)
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text.rstrip()
    )


def harmless(text: str) -> str:
    """``text`` of one or several lines, each of them printable and none too long. A line that is
    not the first begins with a blank, so that it is not taken for a message of its own."""
    cut = text[:_MAX_TEXT] + ("…" if len(text) > _MAX_TEXT else "")
    # Not splitlines(), which knows separators that are for printable() to show.
    first, *others = (
        printable(line[:_MAX_LINE].encode("utf-8", "backslashreplace"))
        for line in cut.rstrip("\n").split("\n")
    )
    return "\n".join([first, *(f" {line}" if line[:1].strip() else line for line in others)])
