"""Events: numbered, told to all, and the last of them kept."""

from __future__ import annotations

from launcher.events import KEPT, Events
from protocol.control import Event


def test_who_listens_late_hears_what_was_kept_and_then_the_rest() -> None:
    events, early, late = Events(), list[Event](), list[Event]()
    events.listen(early.append)
    events.emit("started", "blk0", generation=1, pid=7)
    events.listen(late.append)
    events.emit("died", "blk0", generation=1, pid=7, detail="was killed by SIGKILL")

    assert early == late
    assert [(event.number, event.kind) for event in late] == [(1, "started"), (2, "died")]
    assert late[0].monotonic <= late[1].monotonic


def test_history_has_a_bound() -> None:
    events, heard = Events(), list[Event]()
    for _ in range(KEPT + 3):
        events.emit("paused")
    events.listen(heard.append)

    assert [event.number for event in heard] == list(range(4, KEPT + 4))


def test_detail_has_a_bound() -> None:
    events = Events()
    events.emit("ended", detail="x" * 100_000)

    assert len(events.kept[0].detail) == 500
