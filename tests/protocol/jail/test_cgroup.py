"""Cgroups of a machine: made where they may be, with limits, and removed by whoever is left; in a
hierarchy that has the kernel's rules. The kernel's own is tried in the lab (tests/lab)."""

from __future__ import annotations

import os
import subprocess

import pytest

from protocol.errors import HostError
from protocol.jail import cgroup
from protocol.jail.cgroup import CONTROLLERS, Machine
from tests.support.cgroups import ROOT, Cgroups

OWN = f"{ROOT}/user.scope"
ME = str(os.getpid())
# No process has this number: there are 2^22 at most.
DEAD = 1 << 22


def machine_path(base: str) -> str:
    return f"{base}/vibevmm-m-{ME}"


@pytest.fixture
def _root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.fixture
def _user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


@pytest.mark.usefixtures("_root")
def test_a_device_is_limited_before_it_is_in_its_group() -> None:
    tree = Cgroups(*CONTROLLERS)
    machine = Machine("m", tree)
    before = len(tree.writes)

    group = machine.enclose(DEAD, {"pids.max": "16", "cpu.max": "125000 100000"})
    group.limit({"memory.max": "4096"})

    path = f"{machine_path(ROOT)}/{DEAD}"
    assert group.path == path
    assert group.is_whole
    assert tree.writes[before:] == [
        (f"{path}/pids.max", "16"),
        (f"{path}/cpu.max", "125000 100000"),
        (f"{path}/cgroup.procs", str(DEAD)),
        (f"{path}/memory.max", "4096"),
    ]


@pytest.mark.usefixtures("_root")
def test_root_in_a_session_begins_at_the_top_and_stays_where_it_is() -> None:
    tree = Cgroups(*CONTROLLERS, own=OWN, others=("7",))

    machine = Machine("m", tree)

    assert machine.groups.machine == machine_path(ROOT)
    assert tree.processes(OWN) == {ME, "7"}
    machine.close()
    assert tree.groups() == []
    assert tree.controllers(ROOT) == set(CONTROLLERS)  # they were there before


@pytest.mark.usefixtures("_root")
def test_controllers_that_were_switched_on_are_switched_off_again() -> None:
    tree = Cgroups(*CONTROLLERS)

    machine = Machine("m", tree)
    assert tree.controllers(ROOT) == set(CONTROLLERS)
    machine.close()

    assert tree.controllers(ROOT) == set()
    assert tree.groups() == []


@pytest.mark.usefixtures("_root")
def test_another_machine_keeps_what_it_needs() -> None:
    tree = Cgroups(*CONTROLLERS)
    first = Machine("m", tree)
    second = Machine("other", tree)

    first.close()

    assert tree.groups() == [second.groups.machine]
    assert tree.controllers(second.groups.machine) == set(CONTROLLERS)
    assert second.enclose(DEAD, {"pids.max": "1"}).is_whole


@pytest.mark.usefixtures("_user")
def test_a_user_who_is_alone_in_his_group_goes_one_down_and_comes_back() -> None:
    tree = Cgroups(*CONTROLLERS, own=OWN)
    tree.forbidden = {ROOT}

    machine = Machine("m", tree)

    assert tree.processes(OWN) == set()
    assert tree.processes(f"{machine_path(OWN)}/home") == {ME}
    assert machine.enclose(DEAD, {"memory.max": "4096"}).is_whole
    machine.close()
    assert tree.processes(OWN) == {ME}
    assert tree.controllers(OWN) == set()
    assert tree.groups() == []


@pytest.mark.usefixtures("_user")
def test_who_watches_over_a_launcher_goes_with_it() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as guardian:
        child = str(guardian.pid)
        tree = Cgroups(*CONTROLLERS, own=OWN, others=(child,))
        tree.forbidden = {ROOT}

        machine = Machine("m", tree)

        assert tree.processes(f"{machine_path(OWN)}/home") == {ME, child}
        machine.close()
        assert tree.processes(OWN) == {ME, child}
        guardian.communicate()


@pytest.mark.usefixtures("_user")
@pytest.mark.parametrize(
    ("tree", "forbidden", "why"),
    [
        (Cgroups(*CONTROLLERS, own=OWN, others=("7",)), {ROOT}, "other processes are in it"),
        (Cgroups(*CONTROLLERS, own=OWN), {ROOT, OWN}, "Permission denied"),
        (Cgroups(own=OWN), {ROOT}, "no cpu, memory, pids controller"),
        (Cgroups(*CONTROLLERS, others=("1",), real=False), set(), "other processes are in it"),
    ],
    ids=["shell", "session", "controllers", "container"],
)
def test_where_there_can_be_none_it_is_said_and_nothing_is_left(
    tree: Cgroups, forbidden: set[str], why: str
) -> None:
    tree.forbidden = forbidden

    with pytest.raises(HostError, match=f"^{tree.own}: {why}$"):
        Machine("m", tree)

    assert tree.groups() == []
    assert ME in tree.processes(tree.own)
    assert cgroup.why_not(tree) == f"{tree.own}: {why}"


@pytest.mark.usefixtures("_user")
def test_limits_without_their_controller_are_left_out_and_told() -> None:
    tree = Cgroups("memory", "pids", own=OWN)

    machine = Machine("m", tree)
    group = machine.enclose(DEAD, {"cpu.max": "1", "pids.max": "16"})

    assert machine.lacks == "no cpu controller"
    assert not group.is_whole
    assert tree.read(f"{group.path}/pids.max") == "16"
    assert tree.processes(group.path) == {str(DEAD)}


@pytest.mark.usefixtures("_root")
def test_trying_leaves_nothing() -> None:
    tree = Cgroups(*CONTROLLERS)

    assert cgroup.why_not(tree) == ""
    assert tree.groups() == []


@pytest.mark.usefixtures("_root")
def test_who_is_left_waits_for_devices_that_are_about_to_die() -> None:
    tree = Cgroups(*CONTROLLERS)
    machine = Machine("m", tree)
    group = machine.enclose(DEAD, {})
    tree.busy = {group.path}

    cgroup.remove(tree, machine.groups)

    assert tree.groups() == []


@pytest.mark.usefixtures("_root")
def test_one_that_does_not_die_is_not_waited_for_for_ever() -> None:
    tree = Cgroups(*CONTROLLERS)
    machine = Machine("m", tree)
    group = machine.enclose(1, {})

    cgroup.remove(tree, machine.groups, patience=0)

    assert tree.groups() == [machine.groups.machine, group.path]


@pytest.mark.usefixtures("_root")
def test_what_nobody_is_left_for_goes_with_the_next_start() -> None:
    tree = Cgroups(*CONTROLLERS)
    for path in (f"{ROOT}/vibevmm-m-{DEAD}", f"{ROOT}/vibevmm-m-{DEAD}/home"):
        tree.add(path)
    tree.add(f"{ROOT}/vibevmm-m-1")  # whose launcher lives
    tree.add(f"{ROOT}/vibevmm")
    tree.add(f"{ROOT}/other-{DEAD}")

    machine = Machine("m", tree)

    others = {f"{ROOT}/vibevmm-m-1", f"{ROOT}/vibevmm", f"{ROOT}/other-{DEAD}"}
    assert set(tree.groups()) == {*others, machine.groups.machine}


@pytest.mark.usefixtures("_root")
@pytest.mark.parametrize(
    ("events", "why"),
    [
        ("low 0\nhigh 0\nmax 9\noom 0\noom_kill 0\n", ""),
        ("low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\n", "memory limit, 64 MiB"),
        ("low 0\nhigh 0\nmax 9\noom 0\noom_kill 1\n", "out of memory"),
        ("oom 0\n", ""),
    ],
)
def test_a_kill_for_memory_is_told_from_others(events: str, why: str) -> None:
    tree = Cgroups(*CONTROLLERS)
    group = Machine("m", tree).enclose(DEAD, {"memory.max": str(64 << 20)})
    tree.set(f"{group.path}/memory.events", events)

    assert group.why_killed() == why
    group.remove()
    assert group.why_killed() == ""


@pytest.mark.usefixtures("_user")
def test_whoever_removes_them_takes_everybody_home() -> None:
    tree = Cgroups(*CONTROLLERS, own=OWN)
    machine = Machine("m", tree)
    tree.write(f"{machine.groups.machine}/home/cgroup.procs", "1")  # the zygote, say

    cgroup.remove(tree, machine.groups)

    assert tree.processes(OWN) == {ME, "1"}
    assert tree.groups() == []


@pytest.mark.usefixtures("_root")
def test_what_was_removed_is_left_alone() -> None:
    tree = Cgroups(*CONTROLLERS)
    machine = Machine("m", tree)
    machine.close()
    before = len(tree.writes)

    machine.close()

    assert len(tree.writes) == before
