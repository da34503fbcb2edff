"""The launcher's side of the zygote: device processes are asked for, and come as children.

When the machine runs, one process stands ready before anybody needs it: a spare, forked and
nothing else. The next is forked when that one serves (docs/decisions/0019).
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Sequence

from launcher.policy import BackOff
from launcher.spawn import Child, Cord, start
from protocol import codec, fds
from protocol.specs import Forked

ZYGOTE = "zygote"
"""The name of the zygote's process."""

SPARE = "spare"
"""The name of a process that is no device yet."""


class Nursery:
    """``zygote`` runs devices.runtime.zygote (``module``).

    Between question and answer there may be processes whose pids nobody here knows. They end when
    their sockets do, but not at once: better wait for the answer before the zygote is killed.
    """

    def __init__(self, module: str) -> None:
        self._module = module
        self.zygote: Child = start(ZYGOTE, module)
        self._expected: dict[str, Cord] = {}

    @property
    def is_expecting(self) -> bool:
        """Whether an answer is to come."""
        return bool(self._expected)

    def ask(self, names: Sequence[str]) -> None:
        """Ask for a process for each of ``names``; the answer comes at ``zygote.handover``."""
        with contextlib.ExitStack() as theirs:
            handed: dict[str, int] = {}
            for name in names:
                self._expected[name] = cord = Cord()
                theirs.callback(cord.cut)
                handed[f"{name}.handover"] = cord.their_handover.fileno()
                handed[f"{name}.log"] = cord.their_log
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its death is noticed
                fds.send(self.zygote.handover, b"", handed)

    def answer(self) -> list[Child]:
        """The processes, in the order of their names; empty if the zygote is dead. Waits for the
        answer, if it has not come."""
        expected, self._expected = self._expected, {}
        with contextlib.ExitStack() as undo:
            for cord in expected.values():
                undo.callback(cord.close)
            reply = fds.receive(self.zygote.handover)
            if reply is None:
                return []
            forked = codec.from_plain(Forked, codec.unpack(reply.payload))
            children = []
            for (name, cord), pid in zip(expected.items(), forked.pids, strict=True):
                child = Child(name, pid, cord)
                undo.callback(os.close, child.pidfd)
                undo.callback(child.kill_and_reap)
                children.append(child)
            undo.pop_all()
        return children

    def replace_zygote(self) -> None:
        """The zygote is dead and reaped: another one."""
        self.close()
        self.zygote = start(ZYGOTE, self._module)

    def close(self) -> None:
        """End the zygote, if it lives, and whoever it made and did not tell of."""
        self.zygote.close()
        for cord in self._expected.values():
            cord.close()
        self._expected.clear()


class Spares:
    """One spare from ``nursery``, and those who wait for one. ``arrived`` hears of each.

    A spare, or a zygote, that is dead or that somebody has stopped is not waited for: it is killed
    when it is needed.
    """

    def __init__(self, nursery: Nursery, arrived: Callable[[Child], None]) -> None:
        self._nursery = nursery
        self._arrived = arrived
        self._spare: Child | None = None
        self._waiting: deque[Callable[[Child], None]] = deque()
        self._back_off = BackOff()
        self._is_ended = False

    def take(self, then: Callable[[Child], None]) -> None:
        """Call ``then`` with a process: at once if one stands ready."""
        self._waiting.append(then)
        self._serve()

    def prepare(self) -> None:
        """See to it that one stands ready, or is on its way."""
        wanted = len(self._waiting) + (self._spare is None)
        if not wanted or self._nursery.is_expecting or self._is_ended:
            return
        if self._nursery.zygote.can_run:
            self._nursery.ask([SPARE])
        else:
            self._nursery.zygote.kill()  # the next one is asked

    def delay(self) -> float:
        """The spare, or the zygote, has died: the seconds to wait before there is another."""
        return self._back_off.delay()

    def answered(self) -> None:
        """The zygote has something to say."""
        for child in self._nursery.answer():
            self._arrived(child)
            self._spare = child
            self._back_off.served()
        if self._is_ended:
            self.end()
        self._serve()

    def give_up(self) -> None:
        """Nobody came in time: a zygote that does not answer is killed, and so replaced."""
        if self._nursery.is_expecting:
            self._nursery.zygote.kill()

    def died(self, child: Child) -> bool:
        """Whether ``child`` was the spare; there is none now."""
        was_ours = self._spare is child
        if was_ours:
            self._spare = None
        return was_ours

    def end(self) -> None:
        """Nobody is wanted any more."""
        self._is_ended = True
        self._waiting.clear()
        if self._spare is not None:
            self._spare.hang_up()

    def _serve(self) -> None:
        while self._waiting and self._spare is not None:
            child, self._spare = self._spare, None
            if child.can_run:
                self._waiting.popleft()(child)
            else:
                child.kill()
        if self._waiting:
            self.prepare()
