"""What ``vibevmm attack`` and ``vibevmm experiment`` leave when somebody ends them: nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher import rundir
from launcher.api import VM
from tests.support import guest
from tests.support.bare import require_backend
from tests.support.leaks import children
from tests.support.vibevmm import ROOT

EXPERIMENT = "isolation = ['jail']\nloads = ['read-1']\nseconds = 60\nhypervisor = 'software'"

COMMANDS = {
    "attack": ["attack", "fork-bomb", "hang-on-config", "--hypervisor=software", "--level=jail"],
    "experiment": ["experiment", "x.toml", "--out=out"],
}


def wait_until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_command_that_is_ended_leaves_nothing(
    words: list[str], number: signal.Signals, tmp_path: Path, runtime: Path
) -> None:
    require_backend("software")
    guest.build()
    temporary = runtime / "temporary"  # short enough for sockets, too
    temporary.mkdir()
    (tmp_path / "x.toml").write_text(EXPERIMENT)
    with subprocess.Popen(
        [sys.executable, "-m", "launcher", *words],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as running:
        wait_until(rundir.running)
        machine = VM.connect(rundir.running()[0])
        told = machine.describe()
        machine.close()
        assert len(list(temporary.iterdir())) == 1
        pids = {told.pid, *(each.pid for each in told.processes), *children(running.pid)}

        running.send_signal(number)

        status = running.wait()
    if number == signal.SIGKILL:  # those whom it leaves take their moment
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    assert status == (-number if number == signal.SIGKILL else 128 + signal.SIGINT)
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    assert list(temporary.iterdir()) == []
    assert list(runtime.glob("vibevmm/*")) == []
