"""The jail of every device process of a real machine, looked at from outside: as root, as an
ordinary user, and on hosts that lack parts of it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from protocol.jail import cgroup
from protocol.specs import PARTS
from tests.support.bare import require_backend
from tests.support.recovery import Victim, victim
from tests.support.vibevmm import DEADLINE, ROOT, raw

# CAP_KILL, which a root VMM needs: its devices have users of their own.
_KILL = "0000000000000020"

# A guest that does nothing: what is looked at is how its devices are held. jmp $
IDLE = b"\xeb\xfe"

_USER = 54321

# Root's machines have no run directory of their own, and these tests may run twice at once.
NAME = f"jailed-{os.getpid()}"

# What a device makes of itself; its cgroup is its launcher's to make.
_OWN_PARTS = tuple(part for part in PARTS if part != "cgroup")

_NAMESPACES = ("user", "pid", "net", "ipc", "uts", "mnt")

_STATUS = {
    "CapInh": "0000000000000000",
    "CapPrm": "0000000000000000",
    "CapEff": "0000000000000000",
    "CapBnd": "0000000000000000",
    "CapAmb": "0000000000000000",
    "NoNewPrivs": "1",
    "Seccomp": "2",
}

# Those of the VMM's own jail.
VMM_PARTS = {
    "root": {"net", "ipc", "uts", "landlock"},
    "user": {"user", "net", "ipc", "uts", "landlock"},
}

root = pytest.mark.root


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory that everybody may use, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as made:
        os.chmod(made, 0o777)
        yield Path(made)


def as_user(folder: Path) -> list[str]:
    """Before a command: as an ordinary user, who has ``folder``."""
    user = ["setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups"]
    return [*user, "env", f"XDG_RUNTIME_DIR={folder}", "PYTHONDONTWRITEBYTECODE=1"]


def lacking(*parts: str) -> list[str]:
    """Before a command: on a host without ``parts``."""
    return [sys.executable, "-m", "tests.support.lacking", *parts, "--"]


@contextlib.contextmanager
def machine(folder: Path, *options: str, before: Sequence[str] = ()) -> Iterator[Victim]:
    """An idle one with three devices, on the software CPU, once it runs."""
    require_backend("software")
    software = ("--hypervisor", "software", "--name", NAME)
    with victim(folder, IDLE, *software, *options, before=before) as running:
        running.until(lambda: "spare" in running.pids(), "a spare")
        yield running


def described(before: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """What `vibevmm ps` says of the machine's processes, by name."""
    done = subprocess.run(
        [*before, sys.executable, "-m", "launcher", "ps", NAME, "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=True,
    )
    (found,) = json.loads(done.stdout)
    return {process["name"]: process for process in found["processes"]}


def strict(folder: Path, before: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """A machine with a device whose jail is to be whole."""
    run = [*before, sys.executable, "-m", "launcher", "run", *raw(folder, IDLE)]
    return subprocess.run(
        [*run, "--device", "rng,isolation=jail+strict"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )


def lacks(process: dict[str, Any]) -> set[str]:
    """The parts that it has not made of itself."""
    return set(process["lacks"]) - {"cgroup"}


def threads(pid: int) -> list[Path]:
    return list(Path(f"/proc/{pid}/task").iterdir())


def status(folder: Path) -> dict[str, str]:
    lines = (line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    return {name: value.strip() for name, value in lines}


def namespaces(folder: Path | str) -> dict[str, str]:
    return {name: os.readlink(f"{folder}/ns/{name}") for name in _NAMESPACES}


@root
@pytest.mark.parametrize("who", ["root", "user"])
def test_every_thread_of_the_vmm_is_held(folder: Path, who: str) -> None:
    before = as_user(folder) if who == "user" else []
    with machine(folder, before=before) as running:
        vmm = running.pids()["vmm"]
        host, tasks = namespaces("/proc/self"), threads(vmm)
        assert len(tasks) > 3  # itself, libzmq's, that of its channels, and a CPU
        capabilities = {"CapPrm": _KILL, "CapEff": _KILL} if who == "root" else {}
        for task in tasks:
            found = status(task)
            assert {name: found[name] for name in _STATUS} == {**_STATUS, **capabilities}
            mine = namespaces(task)
            left = {name for name in mine if mine[name] != host[name]}
            assert left == {"net", "ipc", "uts"} | ({"user"} if who == "user" else set())
        (core,) = (
            line.split()[-3:-1]
            for line in Path(f"/proc/{vmm}/limits").read_text().splitlines()
            if line.startswith("Max core")
        )
        assert core == ["0", "0"]


@root
@pytest.mark.parametrize("who", ["root", "user"])
def test_every_thread_of_every_device_is_held_by_the_whole_jail(folder: Path, who: str) -> None:
    before = as_user(folder) if who == "user" else []
    with machine(folder, before=before) as running:
        pids = running.pids()
        devices = {name: pids[name] for name in ("blk0", "console0", "rng0")}
        host, seen = namespaces("/proc/self"), []
        for pid in devices.values():
            tasks = threads(pid)
            assert len(tasks) == 3
            for task in tasks:
                found = status(task)
                assert {name: found[name] for name in _STATUS} == _STATUS
                assert found["NSpid"].split()[0] == task.name
                # Nobody's: neither root nor, of a root launcher, any user of this host.
                (uid,) = set(found["Uid"].split())
                assert uid == str(_USER) if who == "user" else int(uid) >= 0x70000000
                assert found["Groups"] == ""
                assert namespaces(task) == namespaces(tasks[0])
                assert not set(namespaces(task).values()) & set(host.values())
            assert status(Path(f"/proc/{pid}"))["NSpid"].split() == [str(pid), "1"]
            # No way leads to a file: there are none.
            assert os.listdir(f"/proc/{pid}/root/") == ["channel0"]
            assert os.readlink(f"/proc/{pid}/cwd") == "/"
            assert len(Path(f"/proc/{pid}/mounts").read_text().splitlines()) == 2
            seen += list(namespaces(tasks[0]).values())
        # Nor are two of them in the same; but for that they are equal in everything.
        assert len(set(seen)) == len(seen)
        told = described(before)
        for name in devices:
            assert told[name]["isolation"] == "jail"
            assert lacks(told[name]) == set()
        assert (told["vmm"]["isolation"], told["vmm"]["lacks"]) == (None, [])


@root
@pytest.mark.parametrize("who", ["root", "user"])
@pytest.mark.parametrize("part", _OWN_PARTS)
def test_a_part_that_the_host_lacks_is_left_out_and_told(folder: Path, who: str, part: str) -> None:
    before = [*(as_user(folder) if who == "user" else []), *lacking(part)]
    if who == "user":  # no_new_privileges before the filter, which setpriv does
        before.insert(1, "--no-new-privs")
    # An ordinary user has all others of a user namespace only; a root without an empty root stays
    # who it was, or it would not reach its channel.
    needs = (
        {"user": set(_OWN_PARTS) - {"landlock"}} if who == "user" else {"mount": {"mount", "user"}}
    )
    with machine(folder, before=before):
        told = described(as_user(folder) if who == "user" else [])
    for name in ("blk0", "console0", "rng0"):
        assert lacks(told[name]) == needs.get(part, {part})
    assert set(told["vmm"]["lacks"]) == needs.get(part, {part}) & VMM_PARTS[who]


@root
@pytest.mark.parametrize("who", ["root", "user"])
@pytest.mark.parametrize("part", _OWN_PARTS)
def test_a_jail_that_is_to_be_whole_is_refused_where_a_part_is_lacking(
    folder: Path, who: str, part: str
) -> None:
    before = [*(as_user(folder) if who == "user" else []), *lacking(part)]
    if who == "user":
        before.insert(1, "--no-new-privs")
    done = strict(folder, before)

    assert done.returncode == 2
    assert "isolation=jail+strict (rng0): this host lacks " in done.stderr
    assert f"{part} (Operation not " in done.stderr
    assert os.listdir(folder) == ["guest.raw"]  # nothing was started


@root
@pytest.mark.parametrize("who", ["root", "user"])
@pytest.mark.parametrize("part", _OWN_PARTS)
def test_so_is_a_vmm_whose_machine_is_to_be_strict(folder: Path, who: str, part: str) -> None:
    before = [*(as_user(folder) if who == "user" else []), *lacking(part)]
    if who == "user":
        before.insert(1, "--no-new-privs")
    done = subprocess.run(
        [
            *(*before, sys.executable, "-m", "launcher", "run", *raw(folder, IDLE), "--dry-run"),
            *("--device", "rng,isolation=none", "--isolation", "jail+strict"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )

    if part not in VMM_PARTS[who]:  # of a device's jail, and none is to be in one
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 2
    assert "--isolation: jail+strict (vmm): this host lacks " in done.stderr
    assert f"{part} (Operation not " in done.stderr


@root
def test_a_machine_without_cgroups_says_why_and_is_refused_where_they_have_to_be(
    folder: Path,
) -> None:
    # An ordinary user's group is this test's, too.
    with machine(folder, before=as_user(folder)) as running:
        told = described(as_user(folder))
        (line,) = running.wait_for("jailed without cgroup: ")
    assert [told[name]["lacks"] for name in ("blk0", "rng0")] == [["cgroup"], ["cgroup"]]
    why = line.partition("without cgroup: ")[2]
    done = strict(folder, as_user(folder))
    assert done.returncode == 2
    assert f"isolation=jail+strict (rng0): this host lacks cgroup ({why})" in done.stderr


@root
def test_a_jail_that_is_whole_may_be_asked_to_be(folder: Path) -> None:
    if why := cgroup.why_not():
        pytest.skip(f"it is not whole here, but in the lab: {why}")
    with machine(folder, "--isolation", "jail+strict"):
        told = described()
        assert told["rng0"]["lacks"] == told["vmm"]["lacks"] == []


@root
def test_who_is_not_isolated_is_as_its_launcher_and_dies_with_it(folder: Path) -> None:
    with machine(folder, "--isolation", "none") as running:
        assert described()["rng0"]["isolation"] == "none"
        pids = running.pids()
        for name in ("blk0", "console0", "rng0", "spare"):
            assert namespaces(f"/proc/{pids[name]}") == namespaces("/proc/self")
            assert status(Path(f"/proc/{pids[name]}"))["Seccomp"] == "0"
        watched = [os.pidfd_open(pid) for pid in pids.values()]
        running.process.kill()
        running.process.wait()
        for pidfd in watched:
            wait_for_death(pidfd)
        assert running.process.stdout is not None
        printed = running.process.stdout.read().decode()
    assert printed.count("not isolated, and can do what you can: blk0, console0, rng0") == 1


@root
def test_one_device_may_be_free_and_its_successor_is(folder: Path) -> None:
    with machine(folder, "--device", "null,isolation=none") as running:
        first = running.kill("null0")
        running.wait_for("null0 recovered")
        pids = running.pids()
        assert pids["null0"] != first
        assert status(Path(f"/proc/{pids['null0']}"))["Seccomp"] == "0"
        running.kill("rng0")
        running.wait_for("rng0 recovered")
        assert status(Path(f"/proc/{running.pids()['rng0']}"))["Seccomp"] == "2"
        told = described()
        assert [told[name]["isolation"] for name in ("null0", "rng0")] == ["none", "jail"]


def wait_for_death(pidfd: int) -> None:
    """Wait for the end of a process, and close ``pidfd``."""
    waiting = select.poll()
    waiting.register(pidfd, select.POLLIN)
    assert waiting.poll(DEADLINE * 1000)
    os.close(pidfd)
