"""Results on disk: whole or not there, and read back as they were."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.experiment.matrix import Cell
from launcher.experiment.results import Found, Results
from protocol.errors import BadInput
from tests.launcher.experiment.conftest import EXPERIMENT

CELL = Cell("load", "read-1", "blk", "jail", "own", 1)


def test_what_was_kept_is_found_again(results: Results) -> None:
    again = Results.open(results.path, "--plot")

    assert (again.experiment, again.seed, again.host) == (EXPERIMENT, 7, {"system": "a host"})
    assert list(again.all()) == list(results.all())
    assert again.has(CELL)


def test_cell_that_failed_has_not_been_done(results: Results) -> None:
    assert not results.has(Cell("load", "read-1", "blk", "bounce", "own", 3))


def test_half_of_a_cell_is_never_there(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, target: Path) -> None:
        raise OSError("no space left")

    before = sorted(results.path.rglob("*"))
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space"):
        results.keep(Found(CELL, {"new": 1}))

    assert sorted(results.path.rglob("*")) == before
    assert all("new" not in found.samples for found in results.all())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("experiment.json", b"{}"),
        ("experiment.json", b'{"experiment": {"levels": 3}, "seed": 1, "host": {}}'),
        ("experiment.json", b"nonsense"),
        ("raw/load.read-1.blk.jail.own.1.json.gz", b"nonsense"),
    ],
)
def test_what_is_none_of_ours_is_bad_input(results: Results, name: str, content: bytes) -> None:
    (results.path / name).write_bytes(content)

    with pytest.raises(BadInput):
        list(Results.open(results.path, "--plot").all())
