"""Experiments that have been carried out, as far as tables and plots can tell."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest

from launcher.experiment.file import Experiment
from launcher.experiment.matrix import Cell, ordered
from launcher.experiment.results import Found, Results


@pytest.fixture(scope="session", autouse=True)
def _fonts() -> None:
    """matplotlib keeps the fonts open with which it has drawn: none of ours leaves them."""
    with contextlib.suppress(ImportError):
        from matplotlib.figure import Figure

        figure = Figure()
        figure.suptitle("a")
        figure.savefig(io.BytesIO())


EXPERIMENT = Experiment(
    isolation=("jail", "bounce"),
    loads=("read-1",),
    faults=("kill", "swap"),
    attacks=("peek",),
    surface=True,
    repetitions=3,
)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Results:
    """Of EXPERIMENT, all cells but one, which failed."""
    monkeypatch.setattr("launcher.experiment.file.ATTACKS", {"peek": None})
    made = Results.create(tmp_path / "results", EXPERIMENT, 7, {"system": "a host"})
    for cell in ordered(EXPERIMENT, 7):
        if (cell.trial, cell.isolation, cell.repetition) == ("load", "bounce", 3):
            made.keep(Found(cell, {}, "the host has run out of something"))
        else:
            made.keep(Found(cell, samples(cell)))
    return made


def samples(cell: Cell) -> dict[str, Any]:
    """What might have been found: ``bounce`` is half as fast, and a later repetition faster."""
    slow = 2 if cell.isolation == "bounce" else 1
    if cell.trial == "surface":
        reachable = (64 << 20) * (cell.isolation == "jail")
        return {
            "readable_bytes": reachable,
            "writable_bytes": reachable,
            "system_calls": 33,
            "descriptors": None,
            "message_types": 8,
            "trusted_lines": 1000 * slow,
            "command": "",
        }
    if cell.trial == "attack":
        verdict = "succeeded" if cell.isolation == "jail" else "contained"
        return {"peek": {"verdict": verdict, "evidence": "4096 bytes of a canary | all"}}
    if cell.trial == "load":
        requests = [i * 1000.0 / cell.repetition * slow for i in range(1000 * cell.repetition)]
        requests = [at for at in requests if at < 1e6]
        return {
            "seconds": 1.0,
            "answered_us": requests,
            "latency_us": [100.0 * slow] * len(requests),
            "cpu_ns": {"device": 10_000 * len(requests), "vmm": 20_000 * len(requests)},
            "exits": 0,
            "exits_of_all": 7,
            "failed": 0,
            "dropped": 0,
        }
    # An answer a millisecond, but for 20 behind each fault.
    strikes = [100_000.0, 300_000.0]
    return {
        "answered_us": [
            at for at in range(0, 500_000, 1000) if not any(0 < at - s < 20_000 for s in strikes)
        ],
        "latency_us": [],
        "failed": 0,
        "dropped": 0,
        "strikes": [
            {
                "at_us": s,
                "noticed_us": s + (1000 if cell.name == "kill" else 18_000),
                "ended_us": s + 18_000,
                "took_us": 17_000,
                "steps_us": {"start": 16_000, "attach": 1000},
            }
            for s in strikes
        ],
    }
