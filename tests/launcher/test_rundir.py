"""Run directories: private, locked, and cleaned up after those who could not."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.rundir import RunDirectory, base_directory
from protocol.errors import BadInput, HostError
from tests.support.leaks import children
from tests.support.vibevmm import DEADLINE, ROOT


@pytest.fixture
def base(runtime: Path) -> str:
    return base_directory()


def test_directory_is_private_and_goes_with_its_contents(base: str) -> None:
    with RunDirectory("vm") as directory:
        Path(directory.path, "socket").touch()
        assert stat.S_IMODE(os.stat(directory.path).st_mode) == 0o700
        assert stat.S_IMODE(os.stat(base).st_mode) == 0o700

    assert os.listdir(base) == []


def test_names_that_are_made_up_differ(base: str) -> None:
    with RunDirectory(None) as one, RunDirectory(None) as other:
        assert one.name != other.name


def test_name_of_a_running_machine_is_refused(base: str) -> None:
    with RunDirectory("vm"), pytest.raises(BadInput, match="--name"):
        RunDirectory("vm")


def test_what_the_dead_left_is_removed_and_the_living_stay(base: str) -> None:
    with RunDirectory("alive") as alive:
        stale = Path(base, "dead")
        stale.mkdir()
        (stale / "vmm").touch()

        with RunDirectory("dead") as again:
            assert os.listdir(again.path) == []
            assert os.path.isdir(alive.path)


def test_directory_of_somebody_else_is_refused(runtime: Path) -> None:
    target = runtime / "target"
    target.mkdir(mode=0o700)
    (runtime / "vibevmm").symlink_to(target)

    with pytest.raises(HostError, match="only its owner"):
        RunDirectory("vm")


def test_directory_that_others_can_enter_is_refused(base: str) -> None:
    os.mkdir(base)
    os.chmod(base, 0o755)

    with pytest.raises(HostError, match="only its owner"):
        RunDirectory("vm")


def test_path_too_long_for_a_socket_is_refused(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = runtime / ("d" * 60)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))

    with pytest.raises(HostError, match="too long"):
        RunDirectory("vm")


def test_runtime_directory_that_is_not_there_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nowhere")

    assert base_directory() in ("/run/vibevmm", f"/tmp/vibevmm-{os.geteuid()}")


def test_directory_goes_with_a_launcher_that_is_killed_before_there_is_a_vmm(
    base: str,
) -> None:
    program = """
import os, signal, sys
from launcher.rundir import RunDirectory
directory = RunDirectory("mine", sys.argv[1])
os.kill(os.getpid(), signal.SIGKILL)
"""
    with RunDirectory("other"):
        subprocess.run([sys.executable, "-c", program, base], cwd=ROOT, timeout=30, check=False)
        deadline = time.monotonic() + DEADLINE
        while os.path.exists(f"{base}/mine") and time.monotonic() < deadline:
            time.sleep(0.01)

        assert os.listdir(base) == ["other"]


def test_directory_is_left_to_another_process(base: str) -> None:
    before = children()
    with RunDirectory("mine") as directory:
        assert len(children()) == len(before) + 1
        directory.leave_to_another()

        assert children() == before
        assert os.path.exists(directory.path)
