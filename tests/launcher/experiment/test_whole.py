"""A whole experiment, tiny, on machines that run the load guest."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher import cli
from launcher.experiment import attacks, file
from launcher.experiment.attacks import Outcome
from launcher.experiment.measures import MEASURES, grouped, rows
from launcher.experiment.results import Results
from tests.support import guest
from tests.support.bare import require_backend

EXPERIMENT = """
devices = ["{}"]
isolation = ["jail"]
surface = true
loads = ["read-1", "big"]
faults = ["kill", "hang", "swap"]
attacks = ["peek"]
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
    [pytest.param("blk", "kvm", marks=pytest.mark.kvm), ("blk", "software"), ("rng", "software")],
)
def test_everything_is_measured(
    tmp_path: Path, device: str, backend: str, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_backend(backend)
    guest.build()
    monkeypatch.setitem(attacks.ATTACKS, "peek", lambda *held: Outcome("contained", " ".join(held)))
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
    assert [runs[0]["evidence"] for cell, runs in groups.items() if cell.trial == "attack"] == [
        f"jail own {backend}"
    ]
    # No request of any is lost or wrong, and each was answered after it had been given.
    for runs in groups.values():
        for samples in runs:
            assert samples.get("failed", 0) == 0
            assert all(latency > 0 for latency in samples.get("latency_us", []))
    assert list(runtime.glob("vibevmm/*")) == []
