"""A whole experiment, tiny, on machines that run the load guest."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher import cli, rundir
from launcher.api import VM
from launcher.attack.table import ATTACKS, Attack, Outcome
from launcher.experiment import file
from launcher.experiment.measures import MEASURES, grouped, rows
from launcher.experiment.results import Results
from tests.support import guest
from tests.support.bare import require_backend
from tests.support.vibevmm import ROOT

EXPERIMENT = """
devices = ["{}"]
isolation = ["jail"]
surface = true
loads = ["read-1", "big"]
faults = ["kill", "hang", "swap"]
attacks = ["read-canary", "execute"]
repetitions = 1
seconds = 0.2
strikes = 2
under = "read-1"
hypervisor = "{}"
[load.big]
depth = 64
size = 8192
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("device", "backend"),
    [
        pytest.param("blk", "kvm", marks=pytest.mark.kvm),
        ("blk-mapped", "software"),
        ("rng", "software"),
    ],
)
def test_everything_is_measured(
    tmp_path: Path, device: str, backend: str, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_backend(backend)
    guest.build()
    attacked = []

    def attack(attacks: list[Attack], *held: str) -> dict[str, Outcome]:
        attacked.append(held)
        return {each.name: Outcome("contained", each.what) for each in attacks}

    monkeypatch.setattr("launcher.experiment.trials.attacked", attack)
    path = tmp_path / "x.toml"
    path.write_text(EXPERIMENT.format(device, backend))

    assert cli.main(["experiment", str(path), "--out", str(tmp_path / "out")]) == 0

    results = Results.open(tmp_path / "out", "")
    assert [(str(found.cell), found.error) for found in results.all() if found.error] == []
    groups = grouped(results.all())
    found = {
        (row.measure, row.cell.name): row.estimate.median for row in rows(groups, results.seed)
    }
    assert {measure for measure, _ in found} == set(MEASURES)
    assert found["throughput", "read-1"] > 0
    assert found["throughput", "big"] > 0
    assert (found["exits", "read-1"] > 0) == (backend == "software")
    # It hangs for as long as that takes to be noticed.
    assert found["stall", "hang"] > 1000 * file.Experiment().hang_after
    assert found["stall", "kill"] > 0
    # All at once, and each is told of.
    assert attacked == [("jail", backend, "own")]
    told = {cell.name: runs for cell, runs in groups.items() if cell.trial == "attack"}
    assert told.keys() == {"read-canary", "execute"}
    assert told["execute"] == [{"verdict": "contained", "evidence": ATTACKS["execute"].what}]
    # No request of any is lost or wrong, and each was answered after it had been given.
    for runs in groups.values():
        for samples in runs:
            assert samples.get("failed", 0) == 0
            assert all(latency > 0 for latency in samples.get("latency_us", []))
    assert list(runtime.glob("vibevmm/*")) == []


@pytest.mark.slow
def test_ended_by_hand_it_leaves_no_machine(tmp_path: Path, runtime: Path) -> None:
    require_backend("software")
    guest.build()
    path = tmp_path / "x.toml"
    path.write_text(
        "isolation = ['jail']\nloads = ['read-1']\nseconds = 60\nhypervisor = 'software'"
    )
    words = [sys.executable, "-m", "launcher", "experiment", path, "--out", tmp_path / "out"]
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) as running:
        deadline = time.monotonic() + 60
        while not rundir.running():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with contextlib.closing(VM.connect(rundir.running()[0])) as machine:
            told = machine.describe()
        running.send_signal(signal.SIGINT)
        _, said = running.communicate()

    assert running.returncode == 128 + signal.SIGINT
    assert "go on with: vibevmm experiment --resume" in said
    pids = [told.pid, *(process.pid for process in told.processes)]
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    assert list(runtime.glob("vibevmm/*")) == []
    assert list((tmp_path / "out" / "raw").iterdir()) == []
