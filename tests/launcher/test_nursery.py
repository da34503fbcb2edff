"""Device processes come from one that forks them: children of ours, that share nothing."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.nursery import Nursery, Spares
from launcher.spawn import Child, keep_descriptors
from protocol import jail
from protocol.specs import Groups

DEADLINE = 20.0

# A zygote whose devices tell what they are, and wait to be ended.
TELLING = """
import json, os, socket, sys
from devices.runtime import zygote

def tell(handover, cell):
    with socket.socket(fileno=handover) as handover:
        fds = {int(fd): os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
               if os.path.exists(f"/proc/self/fd/{fd}")}
        print(json.dumps({"fds": sorted(fds), "stdin": fds[0], "same": fds[1] == fds[2],
            "leader": os.getsid(0) == os.getpid(), "comm": open("/proc/self/comm").read().strip(),
            "ours": [name for name in sys.modules if name.count(".") == 1 and
                name.partition(".")[0] in ("devices", "vmm", "launcher")]}), flush=True)
        os._exit(handover.recv(1) != b"")

sys.exit(zygote.main(sys.argv[1:], tell))
"""


@pytest.fixture(autouse=True)
def _reaper() -> Iterator[None]:
    jail.adopt_orphans(True)
    yield
    jail.adopt_orphans(False)


@pytest.fixture
def nursery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nursery]:
    (tmp_path / "telling_zygote.py").write_text(TELLING)
    monkeypatch.syspath_prepend(str(tmp_path))
    keep_descriptors()  # what we were started with ourselves
    made = Nursery("telling_zygote")
    yield made
    made.close()


def report_of(child: Child) -> dict[str, object]:
    assert select.select([child.log], [], [], DEADLINE)[0]
    found: dict[str, object] = json.loads(os.read(child.log, 65536))
    return found


def end(children: list[Child]) -> list[int | None]:
    """Hang up on each, wait until it is dead; their statuses."""
    for child in children:
        child.hang_up()
        assert select.select([child.pidfd], [], [], DEADLINE)[0]
        assert child.reap()
        child.close()
    return [child.status for child in children]


def test_devices_are_children_of_ours_in_the_order_of_their_names(nursery: Nursery) -> None:
    nursery.ask(["rng0", "blk0"])
    assert nursery.is_expecting

    children = nursery.answer()

    assert [child.name for child in children] == ["rng0", "blk0"]
    assert [report_of(child)["comm"] for child in children] == ["rng0", "blk0"]
    for child in children:
        status = Path(f"/proc/{child.pid}/status").read_text()
        assert f"PPid:\t{os.getpid()}\n" in status
    assert end(children) == [0, 0]


def test_device_has_four_descriptors_a_session_of_its_own_and_no_code_of_any_device(
    nursery: Nursery,
) -> None:
    nursery.ask(["blk0", "console0", "rng0"])

    children = nursery.answer()

    for child in children:
        found = report_of(child)
        assert found["fds"] == [0, 1, 2, 3]
        assert found["stdin"] == "/dev/null"
        assert found["same"] is True
        assert found["leader"] is True
        assert set(found["ours"]) == {"devices.kinds", "devices.runtime"}  # type: ignore[call-overload]
    assert end(children) == [0, 0, 0]


def test_zygote_answers_until_it_is_told_that_no_more_are_wanted(nursery: Nursery) -> None:
    nursery.ask(["blk0"])
    children = nursery.answer()
    nursery.ask(["blk1"])
    children += nursery.answer()
    assert [child.name for child in children] == ["blk0", "blk1"]

    nursery.zygote.hang_up()

    assert select.select([nursery.zygote.pidfd], [], [], DEADLINE)[0]
    assert nursery.zygote.reap()
    assert nursery.zygote.status == 0
    assert end(children) == [0, 0]


def test_killed_zygote_answers_nothing_and_leaves_nothing(nursery: Nursery) -> None:
    nursery.zygote.kill_and_reap()
    nursery.ask(["blk0"])

    assert nursery.answer() == []

    assert not nursery.is_expecting


def test_question_without_an_answer_leaves_nothing(nursery: Nursery) -> None:
    nursery.zygote.kill_and_reap()

    # That its descriptors are gone is seen by the fixture of all these tests.
    nursery.ask(["blk0", "rng0"])


def test_devices_of_which_nobody_heard_end_with_their_sockets(nursery: Nursery) -> None:
    """As when the zygote is killed between its forks and its answer."""
    nursery.ask(["blk0", "rng0"])
    assert select.select([nursery.zygote.handover], [], [], DEADLINE)[0]  # answered, and not read
    for cord in nursery._expected.values():
        assert select.select([cord.log], [], [], DEADLINE)[0]  # they have told what they are
    nursery.zygote.kill_and_reap()
    os.read(nursery.zygote.handover.fileno(), 65536)

    assert nursery.answer() == []

    # Both are orphans, and so ours to wait for.
    assert {os.wait()[1] for _ in range(2)} == {0}


def test_device_that_cannot_be_watched_is_ended_and_so_are_the_others(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = os.pidfd_open
    seen: list[int] = []

    def fail_the_second_time(pid: int) -> int:
        seen.append(pid)
        if len(seen) == 2:
            raise OSError("no more")
        return watched(pid)

    nursery.ask(["blk0", "rng0"])
    monkeypatch.setattr(os, "pidfd_open", fail_the_second_time)

    # That no process and no descriptor is left is seen by the fixture of all these tests.
    with pytest.raises(OSError, match="no more"):
        nursery.answer()


# ── spares ────────────────────────────────────────────────────────────────────────────


class Taken:
    """Spares of ``nursery``, and who came."""

    def __init__(self, nursery: Nursery) -> None:
        self.nursery = nursery
        self.arrived: list[Child] = []
        self.given: list[Child] = []
        self.spares = Spares(nursery, self.arrived.append)

    def take(self) -> None:
        self.spares.take(self.given.append)

    def answer(self) -> None:
        assert select.select([self.nursery.zygote.handover], [], [], DEADLINE)[0]
        self.spares.answered()


@pytest.fixture
def taken(nursery: Nursery) -> Iterator[Taken]:
    made = Taken(nursery)
    yield made
    end([child for child in made.arrived if child.status is None])


def test_spare_is_given_at_once_and_not_twice(taken: Taken) -> None:
    taken.spares.prepare()
    taken.answer()
    assert taken.given == []

    taken.take()
    assert taken.given == taken.arrived
    taken.take()
    assert len(taken.given) == 1

    taken.answer()
    assert taken.given == taken.arrived
    assert len(taken.given) == 2


def test_two_that_want_one_at_once_get_one_each(taken: Taken) -> None:
    taken.take()
    taken.take()

    taken.answer()
    taken.answer()

    assert taken.given == taken.arrived
    assert len(taken.given) == 2
    assert not taken.nursery.is_expecting


def test_dead_spare_is_not_given(taken: Taken) -> None:
    taken.spares.prepare()
    taken.answer()
    (spare,) = taken.arrived
    spare.kill_and_reap()
    assert taken.spares.died(spare)
    assert not taken.spares.died(spare)
    spare.close()

    taken.take()

    assert taken.given == []
    taken.answer()
    assert taken.given == taken.arrived[1:]


def test_who_waits_when_the_zygote_dies_is_served_by_the_next(taken: Taken) -> None:
    taken.nursery.zygote.kill_and_reap()
    taken.take()
    taken.nursery.replace_zygote()

    taken.spares.prepare()
    taken.answer()

    assert len(taken.given) == 1


def test_zygote_that_owes_an_answer_is_killed_when_nobody_came_in_time(taken: Taken) -> None:
    taken.spares.give_up()
    assert not taken.nursery.zygote.reap()
    os.kill(taken.nursery.zygote.pid, signal.SIGSTOP)
    taken.nursery.ask(["spare"])

    taken.spares.give_up()

    assert select.select([taken.nursery.zygote.pidfd], [], [], DEADLINE)[0]


def stop(child: Child) -> None:
    """Return when it is stopped."""
    os.kill(child.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)


def test_stopped_spare_is_killed_and_not_given(taken: Taken) -> None:
    taken.spares.prepare()
    taken.answer()
    (spare,) = taken.arrived
    assert spare.can_run
    stop(spare)

    taken.take()

    assert select.select([spare.pidfd], [], [], DEADLINE)[0]
    spare.close()
    assert taken.given == []
    taken.answer()
    assert taken.given == taken.arrived[1:]


def test_spare_that_is_dead_and_of_which_nobody_has_heard_yet_is_not_given(taken: Taken) -> None:
    taken.spares.prepare()
    taken.answer()
    (spare,) = taken.arrived
    spare.kill()
    assert select.select([spare.pidfd], [], [], DEADLINE)[0]

    taken.take()

    spare.close()
    assert taken.given == []
    taken.answer()
    assert taken.given == taken.arrived[1:]


def test_stopped_zygote_is_killed_and_the_next_one_asked(taken: Taken) -> None:
    stop(taken.nursery.zygote)
    taken.take()
    assert not taken.nursery.is_expecting
    assert select.select([taken.nursery.zygote.pidfd], [], [], DEADLINE)[0]
    assert taken.nursery.zygote.reap()

    taken.nursery.replace_zygote()
    taken.spares.prepare()
    taken.answer()

    assert len(taken.given) == 1


def test_spare_ends_with_the_machine_and_so_does_one_that_comes_late(taken: Taken) -> None:
    taken.spares.prepare()
    taken.answer()
    taken.take()
    taken.take()

    taken.spares.end()
    taken.answer()

    assert len(taken.given) == 1
    late = taken.arrived[1]
    assert select.select([late.pidfd], [], [], DEADLINE)[0]
    assert late.reap()
    assert late.status == 0
    late.close()


@pytest.mark.parametrize("is_killed", [True, False])
def test_zygote_removes_the_groups_of_a_launcher_that_is_gone(
    nursery: Nursery, tmp_path: Path, is_killed: bool
) -> None:
    # Where there are no cgroups, empty directories are as good.
    (tmp_path / "machine" / "4711").mkdir(parents=True)
    groups = Groups(str(tmp_path), str(tmp_path / "machine"))
    heir = Nursery("telling_zygote", groups)

    if is_killed:  # by the launcher, which lives
        heir.zygote.kill()
    else:
        heir.zygote.hang_up()

    assert select.select([heir.zygote.pidfd], [], [], DEADLINE)[0]
    heir.close()
    assert (tmp_path / "machine").exists() == is_killed
