"""Children get what they need, and nothing else."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
from pathlib import Path

import pytest

from launcher import spawn
from launcher.spawn import Child, keep_descriptors, start
from protocol.errors import HostError
from protocol.jail.cgroup import CONTROLLERS, Machine
from tests.support.cgroups import Cgroups

REPORT = """
import json, os, sys
fds = {int(fd): os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
       if os.path.exists(f"/proc/self/fd/{fd}")}
print(json.dumps({"fds": sorted(fds), "stdin": fds[0], "argv": sys.argv[1:],
    "env": sorted(os.environ), "leader": os.getsid(0) == os.getpid(), "path": sys.path,
    "site": "site" in sys.modules}), flush=True)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that reports what it sees on standard output."""
    (tmp_path / "reporting_child.py").write_text(REPORT)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "reporting_child"


def report_of(child: Child) -> dict[str, object]:
    import json

    text = b""
    while select.select([child.log], [], [], 10)[0] and (data := os.read(child.log, 65536)):
        text += data
    found: dict[str, object] = json.loads(text)
    return found


def test_child_has_four_descriptors_and_a_session_of_its_own(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "1234")
    leaked = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(leaked, True)
    keep_descriptors()

    child = start("child", module)
    found = report_of(child)

    child.close()
    os.close(leaked)
    assert found["fds"] == [0, 1, 2, 3]
    assert found["stdin"] == "/dev/null"
    assert found["argv"] == ["3"]
    assert found["leader"] is True
    assert found["site"] is False
    assert "SECRET_TOKEN" not in found["env"]  # type: ignore[operator]


def test_child_finds_the_packages_from_any_directory_and_none_in_it(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "json.py").write_text("raise SystemExit('taken from the current directory')")
    monkeypatch.chdir(elsewhere)

    child = start("child", module)
    found = report_of(child)

    child.close()
    assert str(Path(spawn.__file__).parents[1]) in found["path"]  # type: ignore[operator]


def test_end_is_told_in_words() -> None:
    child = start("child", "tests.support.fake_zygote")
    assert child.how_it_ended() == "is alive"

    os.kill(child.pid, signal.SIGSYS)
    assert select.select([child.pidfd], [], [], 10)[0]
    assert child.reap()

    assert child.how_it_ended() == "was killed by SIGSYS"
    child.close()


def test_end_by_the_limit_of_memory_is_told_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    tree = Cgroups(*CONTROLLERS)
    machine = Machine("m", tree)
    ends = {}
    for events in ("oom 1\noom_kill 1", "oom 0\noom_kill 0"):
        child = start("child", "tests.support.fake_zygote")  # until it is killed
        child.group = machine.enclose(child.pid, {"memory.max": str(64 << 20)})
        tree.set(f"{child.group.path}/memory.events", events)
        child.kill_and_reap()
        child.close()
        ends[events] = child.how_it_ended()

    assert list(ends.values()) == [
        "was killed by SIGKILL: memory limit, 64 MiB",
        "was killed by SIGKILL",
    ]
    assert tree.groups() == [machine.groups.machine]


def test_child_that_is_hung_up_on_can_end_by_itself() -> None:
    child = start("child", "tests.support.fake_zygote")

    child.hang_up()

    assert select.select([child.pidfd], [], [], 10)[0]
    assert child.reap()
    assert child.how_it_ended() == "exited with status 0"
    child.close()


def test_child_whose_sockets_are_closed_is_dying_if_it_dies_and_else_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    child = start("test", "tests.support.shout")  # it ends by itself
    lives = start("test", "tests.support.fake_zygote")  # until it is hung up on
    try:
        monkeypatch.setattr(spawn, "_DYING", 0.0)
        assert not lives.is_dying
        monkeypatch.setattr(spawn, "_DYING", 20.0)
        assert child.is_dying
        assert child.status is None
    finally:
        child.close()
        lives.close()
    assert lives.is_dying


def test_interpreter_that_cannot_be_started_is_an_error_of_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")

    with pytest.raises(HostError, match="cannot start /nowhere/python"):
        start("child", "json")


def test_child_that_cannot_be_watched_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pidfd_open", fail)

    # That no process and no descriptor is left is seen by the fixture of all these tests.
    with pytest.raises(HostError, match="Too many open files"):
        start("vmm", "tests.support.fake_vmm")
