"""The launcher's side of the zygote: device processes are asked for, and come as children.

When the machine runs, one process stands ready before anybody needs it: a spare, forked and
nothing else. The next is forked when that one serves (docs/decisions/0019).
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Collection, Sequence

from launcher.policy import BackOff
from launcher.spawn import Child, Cord, start
from protocol import codec, fds
from protocol.specs import Fork, Forked

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
        self._free: Collection[str] = ()

    @property
    def is_expecting(self) -> bool:
        """Whether an answer is to come."""
        return bool(self._expected)

    def ask(self, names: Sequence[str], free: Collection[str] = ()) -> None:
        """Ask for a process for each of ``names``, which is to be jailed, unless it is ``free``;
        the answer comes at ``zygote.handover``."""
        self._free = free
        request = codec.pack(codec.to_plain(Fork(tuple(free))))
        with contextlib.ExitStack() as theirs:
            handed: dict[str, int] = {}
            for name in names:
                self._expected[name] = cord = Cord()
                theirs.callback(cord.cut)
                handed[f"{name}.handover"] = cord.their_handover.fileno()
                handed[f"{name}.log"] = cord.their_log
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its death is noticed
                fds.send(self.zygote.handover, request, handed)

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
                child.is_free = name in self._free
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

    A process is jailed or ``free`` from its fork on. The one that stands ready is at first as is
    said here, then as the one that was wanted last. One that is dead or that somebody has stopped
    is not waited for, nor is such a zygote: it is killed when it is needed.
    """

    def __init__(
        self, nursery: Nursery, arrived: Callable[[Child], None], *, free: bool = False
    ) -> None:
        self._nursery = nursery
        self._arrived = arrived
        self._free = free
        self._spares: dict[bool, Child] = {}  # by whether it is free
        self._waiting: deque[tuple[Callable[[Child], None], bool]] = deque()
        self._back_off = BackOff()
        self._is_ended = False

    def take(self, then: Callable[[Child], None], *, free: bool = False) -> None:
        """Call ``then`` with a process: at once if one stands ready."""
        self._waiting.append((then, free))
        self._serve()

    def prepare(self) -> None:
        """See to it that one stands ready, or is on its way."""
        if self._nursery.is_expecting or self._is_ended:
            return
        if self._waiting:
            self._free = self._waiting[0][1]
        if self._free in self._spares:
            return
        if self._nursery.zygote.can_run:
            self._nursery.ask([SPARE], [SPARE] if self._free else [])
        else:
            self._nursery.zygote.kill()  # the next one is asked

    def delay(self) -> float:
        """The spare, or the zygote, has died: the seconds to wait before there is another."""
        return self._back_off.delay()

    def answered(self) -> None:
        """The zygote has something to say."""
        for child in self._nursery.answer():
            self._arrived(child)
            self._spares[self._free] = child
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
        ours = [free for free, spare in self._spares.items() if spare is child]
        for free in ours:
            del self._spares[free]
        return bool(ours)

    def end(self) -> None:
        """Nobody is wanted any more."""
        self._is_ended = True
        self._waiting.clear()
        for spare in self._spares.values():
            spare.hang_up()

    def _serve(self) -> None:
        while self._waiting and (child := self._spares.pop(self._waiting[0][1], None)):
            if child.can_run:
                then, _ = self._waiting.popleft()
                then(child)
            else:
                child.kill()
        if self._waiting:
            self.prepare()
