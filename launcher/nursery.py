"""The launcher's side of the zygote: device processes are asked for, and come as children."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from launcher.spawn import Child, Cord, start
from protocol import codec, fds
from protocol.specs import Forked

ZYGOTE = "zygote"
"""The name of the zygote's process."""


class Nursery:
    """``zygote`` runs devices.runtime.zygote (``module``); :meth:`ask` it once.

    Between question and answer there may be processes whose pids nobody here knows. They end when
    their sockets do, but not at once: better wait for the answer before the zygote is killed.
    """

    def __init__(self, module: str) -> None:
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
        """The processes, in the order of their names; empty if the zygote is dead. It is told
        that no more are wanted. Waits for the answer, if it has not come."""
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
        self.zygote.hang_up()
        return children

    def close(self) -> None:
        """End the zygote, if it lives, and whoever it made and did not tell of."""
        self.zygote.close()
        for cord in self._expected.values():
            cord.close()
        self._expected.clear()
