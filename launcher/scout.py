"""Classes that somebody else wrote, asked in processes of their own.

What such code does (it may hang, exit, raise what it likes, fill memory) it does to a process that
is forked for one question, has a deadline, and gives its answer as data::

    launcher ── forks ──► scout      imports the module, asks the class
             ◄── Wish ────┤          open: "lock this file"
             ── Granted ─►│
             ◄── Answer ──┘          and descriptors, if it was to open some

The launcher has one thread of Python, and libzmq's; these hold nothing that the child needs, which
has no socket of theirs any more. It has nothing else of the launcher's either but memory. Modules
are imported afresh each time, and so as they are now.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, NoReturn, TypeVar, cast

from devices import kinds
from devices.runtime.device import Host, Offer
from launcher import model, wishes
from launcher.device_options import Request
from launcher.loop import Loop
from launcher.model import Model, Place
from launcher.spawn import Child, Cord
from protocol import codec, fds
from protocol.errors import BadInput, HostError, ProtocolError, VibeError

DEADLINE = 10.0
"""Seconds for one question (arbitrary: an import from a cold disk fits)."""

# Bytes of memory that a scout may fill (arbitrary; what is shared or only reserved does not count).
_MEMORY = 4 << 30

# Seconds between two calls of ``check`` (arbitrary: a person does not notice).
_CHECKED = 0.1

# Bytes of its output that are kept, for what it said last.
_KEPT = 4096
# Bytes that a pipe holds (pipe(7)).
_PIPE = 64 * 1024

SCOUT = "scout"
"""What such a process is called."""

_HANDOVER = 3
_EXIT_BUG = 1


@dataclass(frozen=True, slots=True)
class Opened:
    """It has opened what came with this."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why something does not fit; None if it does."""

    why: str | None


@dataclass(frozen=True, slots=True)
class _Refused:
    # Why there is no answer; ``where`` of a BadInput.
    where: str | None
    why: str


T = TypeVar("T")
Found = tuple[T, dict[str, int]]
"""An answer, and the descriptors that came with it, by name."""


@dataclass(frozen=True, slots=True)
class Question(Generic[T]):
    """``what`` is done, by code of ``kind``; ``option`` is who named that. ``ask`` runs in the
    scout, and gives an ``answer`` and descriptors. What it asks of its host, ``host`` does. One
    that ``waits`` for others is asked in a scout even if its kind is ours."""

    kind: str
    what: str
    option: str
    answer: type[T]
    ask: Callable[[Host], Found[T]]
    host: Host | None = None
    waits: bool = False

    @property
    def is_quick(self) -> bool:
        """Whether it can be asked here and now."""
        return kinds.is_ours(self.kind) and not self.waits


def looking(request: Request, option: str, place: Place | None = None) -> Question[Model]:
    """What ``request`` asks for: model.look."""
    return Question(
        request.kind,
        "its import",
        option,
        Model,
        lambda _: (model.look(request, option, place), {}),
    )


def opening(
    kind: str, config: bytes, option: str, host: Host, *, waits: bool = False
) -> Question[Opened]:
    """What a device of ``kind`` opens, which may take a while if it ``waits`` for others:
    model.open_files."""
    return Question(
        kind,
        "its open",
        option,
        Opened,
        lambda there: (Opened(), model.open_files(kind, config, option, there)),
        host,
        waits,
    )


def comparing(judge: str, ours: Offer, theirs: Offer) -> Question[Verdict]:
    """Whether a successor fits: model.why_unfit."""
    return Question(
        judge,
        "its why_unfit",
        "swap",
        Verdict,
        lambda _: (Verdict(model.why_unfit(judge, ours, theirs)), {}),
    )


def ask_now(question: Question[T], check: Callable[[], object]) -> Found[T]:
    """The answer; VibeError. Waits for it, and meanwhile calls ``check``, which may raise."""
    loop = Loop()
    found: list[Found[T] | VibeError] = []

    def look() -> None:
        check()
        loop.after(_CHECKED, look)

    def answered(answer: Found[T] | VibeError) -> None:
        found.append(answer)
        loop.end()

    scouts = Scouts(loop)
    try:
        scouts.send(question, answered)
        if not found:
            look()
            loop.run()
    finally:
        scouts.close()
    (answer,) = found
    if isinstance(answer, VibeError):
        raise answer
    return answer


@dataclass(eq=False)
class _Scout:
    question: Question[Any]
    then: Callable[[Any], object]
    child: Child
    said: bytearray = field(default_factory=bytearray)


class Scouts:
    """Those that are on their way. For what is quick nobody is sent: it is asked here."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._out: list[_Scout] = []

    def send(self, question: Question[T], then: Callable[[Found[T] | VibeError], object]) -> None:
        """Call ``then`` with the answer, or why there is none: now, or when it is here. The
        descriptors are its own."""
        if question.is_quick:
            then(_ask_here(question))
            return
        try:
            scout = _Scout(question, then, _fork(question))
        except OSError as error:
            then(HostError(f"cannot fork: {error.strerror}"))
            return
        self._out.append(scout)
        self._loop.on_readable(scout.child.log, partial(self._listen, scout))
        self._loop.on_readable(scout.child.handover.fileno(), partial(self._hear, scout))
        self._loop.after(DEADLINE, partial(self._late, scout))

    def compare(
        self, judge: str, ours: Offer, theirs: Offer, then: Callable[[str | None], object]
    ) -> None:
        """Tell ``then`` what ``judge`` (of a Model) says of a successor."""

        def compared(found: Found[Verdict] | VibeError) -> None:
            then(str(found) if isinstance(found, VibeError) else found[0].why)

        if judge:
            self.send(comparing(judge, ours, theirs), compared)
        else:
            then(None)

    def close(self) -> None:
        """End all of them; nobody is told."""
        while self._out:
            self._end(self._out[0])

    def _listen(self, scout: _Scout) -> None:
        # What it prints: nobody's, unless it ends without an answer.
        data = _read(scout.child.log)
        scout.said += data
        del scout.said[:-_KEPT]
        if not data:
            self._loop.on_readable(scout.child.log, None)

    def _hear(self, scout: _Scout) -> None:
        try:
            found = self._received(scout)
        except (OSError, ProtocolError) as error:
            found = _failed(scout.question, f"{scout.question.what}: {error}")
        if found is not None:
            self._finish(scout, found)

    def _received(self, scout: _Scout) -> Found[Any] | VibeError | None:
        # The answer, or why there is none; None if there is one to come yet.
        question, channel = scout.question, scout.child.handover
        handover = fds.receive(channel)
        if handover is None:
            return self._died(scout)
        # A wish is plain, as from one that was started by hand; an answer has an envelope.
        if question.host and isinstance(codec.unpack(handover.payload), dict):
            wishes.answer(channel, question.host, handover)
            return None
        try:
            message = codec.decode(handover.payload, (question.answer, _Refused)).message
        except ProtocolError:
            fds.close_all(handover.fds.values())
            raise
        if not isinstance(message, _Refused):
            return message, handover.fds
        fds.close_all(handover.fds.values())
        if message.where is not None:
            return BadInput(message.where, message.why)
        return _failed(question, message.why)

    def _died(self, scout: _Scout) -> VibeError:
        scout.child.kill_and_reap()
        scout.said += _read(scout.child.log)
        lines = scout.said.decode(errors="backslashreplace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        why = f"the process for {scout.question.what} {scout.child.how_it_ended()}"
        return _failed(scout.question, f"{why}: {last[-_KEPT:]}" if last else why)

    def _late(self, scout: _Scout) -> None:
        if scout in self._out:
            why = f"{scout.question.what} took longer than {DEADLINE:g} s"
            self._finish(scout, _failed(scout.question, why))

    def _finish(self, scout: _Scout, found: Found[Any] | VibeError) -> None:
        self._end(scout)
        scout.then(found)

    def _end(self, scout: _Scout) -> None:
        self._out.remove(scout)
        self._loop.on_readable(scout.child.log, None)
        self._loop.on_readable(scout.child.handover.fileno(), None)
        scout.child.close()


def _failed(question: Question[Any], why: str) -> BadInput:
    return BadInput(question.option, f"{question.kind!r}: {why}")


def _ask_here(question: Question[T]) -> Found[T] | VibeError:
    try:
        return question.ask(cast(Host, question.host))
    except VibeError as error:
        return error
    except Exception as error:
        return HostError(f"{question.kind}: {question.what}: {type(error).__name__}: {error}")


def _read(log: int) -> bytes:
    try:
        return os.read(log, _PIPE)
    except BlockingIOError:
        return b""


def _fork(question: Question[Any]) -> Child:
    cord, parent = Cord(), os.getpid()
    try:
        pid = os.fork()
        if pid == 0:
            _be(question, cord, parent)
        return Child(SCOUT, pid, cord)
    except BaseException:
        cord.close()
        raise
    finally:
        cord.cut()


# ── in the child ──────────────────────────────────────────────────────────────────────────


def _be(question: Question[Any], cord: Cord, parent: int) -> NoReturn:
    # Does not return, whatever happens: above are the launcher's frames.
    try:
        channel = _settle(cord, parent)
        fds.send(channel, *_answer(question, channel))
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    finally:
        os._exit(_EXIT_BUG)


def _settle(cord: Cord, parent: int) -> socket.socket:
    # What is collected would close descriptors by numbers that are others' by then.
    gc.freeze()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(cord.their_log, 1)
    os.dup2(cord.their_log, 2)
    os.dup2(cord.their_handover.fileno(), _HANDOVER, inheritable=False)
    fds.close_all(fd for fd in fds.open_descriptors() if fd > _HANDOVER)
    sys.stdout = sys.stderr = os.fdopen(
        1, "w", buffering=1, errors="backslashreplace", closefd=False
    )
    with open("/proc/self/comm", "wb", buffering=0) as comm:
        comm.write(SCOUT.encode())
    from protocol import jail

    jail.die_with(parent)
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return socket.socket(fileno=_HANDOVER)


def _answer(question: Question[Any], channel: socket.socket) -> tuple[bytes, dict[str, int]]:
    try:
        answer, opened = question.ask(wishes.AskingHost(channel))
        return codec.encode(answer), opened
    except BadInput as error:
        refused = _Refused(_sendable(error.where), _sendable(error.why))
    except VibeError as error:
        refused = _Refused(None, _sendable(str(error)))
    except BaseException as error:  # KeyboardInterrupt and SystemExit among them
        why = f"{question.what}: {type(error).__name__}: {error}"
        refused = _Refused(None, _sendable(why))
    return codec.encode(refused), {}


def _sendable(text: str) -> str:
    return text[:_KEPT].encode(errors="backslashreplace").decode()
