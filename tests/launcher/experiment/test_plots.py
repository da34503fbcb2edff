"""Plots are made of samples that are stored, without a display."""

from __future__ import annotations

import sys

import pytest

from launcher.experiment import plots
from launcher.experiment.measures import grouped
from launcher.experiment.results import Results
from protocol.errors import HostError

pytestmark = pytest.mark.slow

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

WHOLE = {"png": b"IEND\xaeB`\x82", "svg": b"</svg>\n"}


def test_each_plot_is_made_in_each_format(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)

    made = plots.draw(results)

    assert {path.name for path in made} == {f"{n}.{f}" for n in plots.PLOTS for f in WHOLE}
    for path in made:
        assert path.read_bytes().endswith(WHOLE[path.suffix[1:]])


@pytest.mark.slow
def test_same_samples_make_the_same_plots(results: Results) -> None:

    first, second = ({path: path.read_bytes() for path in plots.draw(results)} for _ in range(2))

    assert first == second


def test_nothing_is_drawn_without_samples(results: Results) -> None:
    for path in (results.path / "raw").iterdir():
        path.unlink()

    assert plots.draw(results) == []


def test_rate_around_a_fault_falls_to_nothing_and_comes_back(results: Results) -> None:
    groups = {cell: runs for cell, runs in grouped(results.all()).items() if cell.device}

    figure = plots.timeline(plots._Data(groups, results.experiment, 7))

    assert figure is not None
    rates, edges, _ = figure.axes[0].patches[0].get_data()
    by_edge = dict(zip(edges, rates, strict=False))
    assert [by_edge[at] for at in (-20, -1, 0)] == [1000, 1000, 1000]
    assert {by_edge[at] for at in range(1, 20)} == {0}
    assert by_edge[20] == 1000


def test_who_has_no_matplotlib_is_told_the_name_of_the_extra(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    with pytest.raises(HostError, match=r"vibe-vmm\[experiments\]"):
        plots.draw(results)
