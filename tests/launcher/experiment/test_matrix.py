"""The cells of an experiment: which there are, and their order."""

from __future__ import annotations

from launcher.experiment.file import Experiment
from launcher.experiment.matrix import Cell, cells, ordered

EXPERIMENT = Experiment(
    devices=("blk", "rng"),
    isolation=("none", "jail"),
    grouping=("own", "shared"),
    loads=("read-1",),
    faults=("kill",),
    attacks=("peek", "poke"),
    surface=True,
    repetitions=3,
)


def test_every_combination_is_there_once() -> None:
    found = cells(EXPERIMENT)
    subjects = 2 * 2 * 2

    assert len(set(found)) == len(found)
    assert len([cell for cell in found if cell.trial == "load"]) == subjects * 3
    assert len([cell for cell in found if cell.trial == "fault"]) == subjects * 3
    assert len([cell for cell in found if cell.trial == "surface"]) == subjects
    # All attacks are one, and on no device of these.
    assert len([cell for cell in found if cell.trial == "attack"]) == 2 * 2


def test_order_is_by_chance_and_decided_by_the_seed() -> None:
    assert ordered(EXPERIMENT, 7) == ordered(EXPERIMENT, 7)
    assert ordered(EXPERIMENT, 7) != ordered(EXPERIMENT, 8)
    assert ordered(EXPERIMENT, 7) != cells(EXPERIMENT)
    assert sorted(map(str, ordered(EXPERIMENT, 7))) == sorted(map(str, cells(EXPERIMENT)))


def test_names_of_files_are_names_of_files_and_differ() -> None:
    odd = [
        Cell("load", "read-1", device, "jail", "own", 1)
        for device in ("../x.py:A", "../x.py;A", "..%2fx.py:A", "blk,block_size=512")
    ]

    stems = [cell.stem for cell in odd]

    assert len(set(stems)) == len(stems)
    assert not any("/" in stem or stem.startswith(".") for stem in stems)
