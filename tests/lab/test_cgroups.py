"""Cgroups of real machines: devices are held to their limits, die of them with the reason and are
followed, and no group is left, whoever of a machine is killed. As root, and as a user to whom a
group was delegated."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from launcher import limits
from protocol.jail import cgroup
from tests.guest.test_jail import IDLE, NAME, as_user, described, folder
from tests.support.recovery import Victim, victim
from tests.support.vibevmm import DEADLINE
from vmm import memory_map

__all__ = ["folder"]  # a fixture

pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(900),
    pytest.mark.skipif("VIBE_LAB" not in os.environ, reason="runs inside `make lab`"),
]

TOP = Path("/sys/fs/cgroup")
DELEGATED = TOP / "delegated"
GUEST = 64 << 20
_USER = 54321


def groups(base: Path = TOP) -> list[Path]:
    """Those of machines."""
    return sorted(base.glob("vibevmm-*"))


def held(running: Victim, name: str, base: Path = TOP) -> Path:
    """The group of a device, of which it is in."""
    pid = running.pids()[name]
    (found,) = base.glob(f"vibevmm-*-{running.process.pid}/{pid}")
    assert (found / "cgroup.procs").read_text() == f"{pid}\n"
    return found


def until_gone(base: Path = TOP) -> None:
    deadline = time.monotonic() + DEADLINE
    while groups(base):
        assert time.monotonic() < deadline, [
            (path, path.read_text()) for path in base.glob("vibevmm-*/**/cgroup.procs")
        ]
        time.sleep(0.01)


def odd(name: str) -> Sequence[str]:
    return ("--device", f"tests.support.odd_devices:{name},id=odd")


@contextlib.contextmanager
def idle(folder: Path, *options: str, before: Sequence[str] = ()) -> Iterator[Victim]:
    """A machine with three devices and ``options``, once it has a spare."""
    with victim(folder, IDLE, "--name", NAME, *options, before=before) as running:
        running.until(lambda: "spare" in running.pids(), "a spare")
        yield running


@pytest.fixture
def delegated() -> Iterator[list[str]]:
    """Words before a command, which is an ordinary user's then, in a group that is his."""
    control = TOP / "cgroup.subtree_control"
    control.write_text(" ".join(f"+{each}" for each in cgroup.CONTROLLERS))
    DELEGATED.mkdir()
    for name in ("", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"):
        shutil.chown(DELEGATED / name, _USER, _USER)
    yield ["sh", "-c", f'echo 0 >{DELEGATED}/cgroup.procs; exec "$@"', "sh"]
    # Who was in it may be dead, and not yet gone from there.
    deadline = time.monotonic() + DEADLINE
    while "populated 1" in (DELEGATED / "cgroup.events").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    DELEGATED.rmdir()
    control.write_text(" ".join(f"-{each}" for each in cgroup.CONTROLLERS))


def test_every_jailed_process_has_a_group_with_its_limits(folder: Path) -> None:
    before = (TOP / "cgroup.subtree_control").read_text()
    bounced = ("--device", "rng,id=bounced,isolation=bounce")
    free = ("--device", "rng,id=free,isolation=none")
    image = folder / "wide.img"
    image.write_bytes(bytes(1 << 20))
    wide = ("--disk", f"{image},id=wide,queues=3")
    with idle(folder, *bounced, *free, *wide) as running:
        own = memory_map.bounce_region(1).size
        for name, shared, threads in (
            ("blk0", GUEST, 0),
            ("console0", GUEST, 0),
            ("rng0", GUEST, 0),
            ("bounced", own, 0),
            ("wide", GUEST, 2),
        ):
            found = held(running, name)
            for file, text in (limits.STANDING | limits.of_device(shared, threads)).items():
                assert (found / file).read_text().strip() == text
        for name, text in limits.STANDING.items():
            assert (held(running, "spare") / name).read_text().strip() == text
        for name in ("vmm", "zygote", "free"):
            group = Path(f"/proc/{running.pids()[name]}/cgroup").read_text()
            assert group == Path("/proc/self/cgroup").read_text()
        told = described()
        assert [told[name]["lacks"] for name in ("blk0", "bounced")] == [[], []]
        running.process.send_signal(signal.SIGINT)
        assert running.end()[0] == 0
    assert groups() == []
    assert (TOP / "cgroup.subtree_control").read_text() == before


def test_one_that_eats_memory_dies_of_its_limit_and_is_followed(folder: Path) -> None:
    with idle(folder, *odd("Greedy")) as running:
        running.wait_for("odd recovered")
        limit = (GUEST + limits.ROOM) >> 20
        running.wait_for(rf"odd was killed by SIGKILL: memory limit, {limit} MiB$")
        held(running, "odd")
        running.until(lambda: len(list(groups()[0].glob("[0-9]*"))) == 5, "four devices, a spare")


@pytest.mark.parametrize(("level", "count"), [("jail", 63), ("none", 100)])
def test_one_has_as_many_threads_as_it_may(folder: Path, level: str, count: int) -> None:
    with idle(folder, *odd("Manifold"), "--isolation", level) as running:
        running.wait_for(f"{count} threads$")


def test_a_successor_has_a_group_of_its_own(folder: Path) -> None:
    with idle(folder) as running:
        first = held(running, "blk0")
        running.kill("blk0")
        running.wait_for("blk0 recovered")
        running.until(lambda: not first.exists(), "the end of its group")
        assert held(running, "blk0") != first
        assert (held(running, "blk0") / "memory.max").read_text() == f"{GUEST + limits.ROOM}\n"


@pytest.mark.parametrize("last", ["launcher", "vmm", "interrupt"])
def test_whoever_is_killed_no_group_is_left(folder: Path, last: str) -> None:
    with idle(folder) as running:
        for who in ("blk0", "spare", "zygote"):
            old = running.kill(who)
            running.until(
                lambda who=who, old=old: running.pids().get(who, old) != old,  # type: ignore[misc]
                f"another {who}",
            )
        if last == "launcher":
            running.process.kill()
        elif last == "vmm":
            running.kill("vmm")
        else:
            running.process.send_signal(signal.SIGINT)
        running.end()
        until_gone()


def test_what_launcher_and_zygote_leave_goes_with_the_next_start(folder: Path) -> None:
    with idle(folder) as running:
        zygote = running.pids()["zygote"]
        os.kill(zygote, signal.SIGSTOP)
        running.process.kill()
        running.end()
        os.kill(zygote, signal.SIGKILL)
        (left,) = groups()
    with idle(folder) as running:
        running.until(lambda: not left.exists(), "the end of the old groups")
        running.process.send_signal(signal.SIGINT)
        running.end()
    assert groups() == []


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_so_it_is_with_a_user_to_whom_a_group_was_delegated(
    folder: Path, delegated: list[str], end: signal.Signals
) -> None:
    options = (*odd("Greedy"), "--isolation", "jail+strict")
    with idle(folder, *options, before=[*delegated, *as_user(folder)]) as running:
        running.wait_for("odd recovered")
        running.wait_for("odd was killed by SIGKILL: memory limit, ")
        held(running, "blk0", DELEGATED)
        (home,) = DELEGATED.glob("vibevmm-*/home/cgroup.procs")
        pids = running.pids()
        assert {running.process.pid, pids["vmm"], pids["zygote"]} <= {
            int(pid) for pid in home.read_text().split()
        }
        running.process.send_signal(end)
        running.end()
        until_gone(DELEGATED)
    assert (DELEGATED / "cgroup.subtree_control").read_text().strip() == ""


def test_the_doctor_finds_them() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "launcher", "doctor"], capture_output=True, text=True, check=True
    ).stdout
    assert "ok       cgroup           version 2: cpu, memory, pids" in told
    assert groups() == []
