"""``vibevmm experiment``: its options, what stops it, and that it goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher import cli
from launcher.experiment import command, file
from launcher.experiment.matrix import ordered
from launcher.experiment.results import Results
from tests.support import guest

Refused = Callable[..., str]

SMALL = "isolation = ['jail']\nloads = ['read-1', 'read-32']\nrepetitions = 3\n"

# An experiment whose loads are none, and which at its third does what it is told.
PRETENDS = """
import os, signal, sys, time
from launcher import cli
from launcher.experiment.trials import TRIALS

done = []
def load(cell, setting):
    if len(done) == 2:
        {act}
    done.append(cell)
    print("did", cell.stem, flush=True)
    return {{"seconds": 1.0, "answered_us": [1.0, 2.0], "latency_us": [1.0, 1.0], "exits": 0,
            "cpu_ns": {{"device": 1, "vmm": 1}}, "failed": 0, "dropped": 0}}

TRIALS["load"] = load
sys.modules["matplotlib"] = None
sys.exit(cli.main(["experiment", *sys.argv[1:]]))
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guest.build()
    monkeypatch.chdir(tmp_path)
    Path("x.toml").write_text(SMALL)


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Refused:
    """Runs the command with what is wrong; the line that it says, once nothing was begun."""

    def run(*words: str) -> str:
        before = sorted(Path().rglob("*"))
        assert cli.main(["experiment", *words]) == 2
        printed = capfd.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1
        assert sorted(Path().rglob("*")) == before
        return printed.err.removeprefix("vibevmm: ").rstrip()

    return run


def pretend(act: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PRETENDS.format(act=act), *words],
        env={
            **os.environ,
            "TMPDIR": str(Path.cwd()),
            "PYTHONPATH": str(Path(command.__file__).parents[2]),
        },
        capture_output=True,
        text=True,
    )


def did(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line.split()[1] for line in done.stdout.splitlines() if line.startswith("did ")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none.toml"], "none.toml: No such file or directory"),
        (["x.toml", "--sead", "3"], "--sead: no such option; did you mean '--seed'?"),
        (["x.toml", "--seed", "x"], "--seed: 'x' is not a number such as 4096 or 0x1000"),
        (["x.toml", "--out"], "--out: needs a value: DIR"),
        (["x.toml", "--out", "x.toml"], "--out: x.toml: File exists"),
        (["x.toml", "y.toml"], "'y.toml': one target is enough: "),
        (["x.toml", "--resume"], "--resume: results: no results here: No such file or directory"),
        (["--plot", "nowhere"], "--plot: nowhere: no results here: No such file or directory"),
        (["x.toml", "--plot", "."], "--plot: goes without a file and without other options"),
        (["x.toml", "--default"], "--default: goes without a file and without other options"),
    ],
)
def test_what_is_asked_wrongly(refused: Refused, words: list[str], said: str) -> None:
    assert refused(*words).startswith(said)


def test_file_with_an_unknown_key(refused: Refused) -> None:
    Path("x.toml").write_text(SMALL + "levels = []")

    assert refused("x.toml").startswith("x.toml: unknown key 'levels'; ")


def test_directory_with_something_in_it(refused: Refused) -> None:
    Path("out").mkdir()
    Path("out", "mine").touch()

    said = refused("x.toml", "--out", "out")

    assert said == "--out: out is not empty; --resume goes on with what is there"


def test_default_is_printed_and_can_be_read(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["experiment", "--default"]) == 0

    Path("default.toml").write_text(capfd.readouterr().out)
    assert file.read("default.toml") == file.read(None)


def test_killed_in_the_middle_it_goes_on_where_it_was() -> None:
    words = ("x.toml", "--out", "out", "--seed", "7")
    order = [cell.stem for cell in ordered(file.read("x.toml"), 7)]

    first = pretend("os.kill(os.getpid(), signal.SIGKILL)", *words)
    second = pretend("pass", "--resume", "--out", "out")

    assert first.returncode == -signal.SIGKILL
    assert did(first) == order[:2]
    assert second.returncode == 0, second.stderr
    assert did(second) == order[2:]
    assert "seed 7, 6 cells, 4 to do" in second.stderr
    assert "no plots: they need matplotlib: pip install 'vibe-vmm[experiments]'" in second.stderr
    assert "| throughput, read-1, requests/s | 2 [2, 2] |" in second.stdout
    assert (
        "| throughput, read-1, requests/s | 2 [2, 2] |" in Path("out/tables/results.md").read_text()
    )


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_ended_by_hand_it_says_how_to_go_on(number: str) -> None:
    done = pretend(
        f"os.kill(os.getpid(), signal.{number}); time.sleep(60)", "x.toml", "--out", "out"
    )

    assert done.returncode == 128 + signal.SIGINT
    assert "go on with: vibevmm experiment --resume --out out" in done.stderr
    assert len(list(Path("out/raw").iterdir())) == 2


def test_cell_that_fails_ends_nothing() -> None:
    done = pretend("done.append(0); raise KeyError('x')", "x.toml", "--out", "out")

    assert done.returncode == 1, done.stderr
    assert done.stderr.endswith("vibevmm: failed cells: 1 of 6; --resume tries them again\n")
    assert [f.error for f in Results.open(Path("out"), "").all() if f.error] == ["KeyError: 'x'"]
    assert "## Not measured" in done.stdout


def test_results_of_another_experiment_are_not_gone_on_with(refused: Refused) -> None:
    Results.create(Path("out"), file.read("x.toml"), 7, {})
    Path("y.toml").write_text(SMALL + "seconds = 2")

    assert refused("y.toml", "--out", "out", "--resume") == (
        "--resume: out has the results of another experiment than y.toml"
    )
    assert refused("x.toml", "--out", "out", "--resume", "--seed", "8") == (
        "--seed: out was begun with seed 7"
    )


def test_tables_and_plots_of_what_is_there(
    results: Results, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    status = cli.main(["experiment", "--plot", str(results.path)])

    assert status == 3
    assert "vibe-vmm[experiments]" in capfd.readouterr().err
    assert (results.path / "tables" / "results.md").exists()  # they need no extra


def test_nobody_waits_for_it_who_runs_a_machine() -> None:
    program = """
import sys
import launcher.cli, launcher.session, launcher.verbs, launcher.completion
print([name for name in sys.modules if name.startswith(("launcher.experiment", "matplotlib"))])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert done.stdout == "[]\n", done.stderr
