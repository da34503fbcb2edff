"""Pictures of an experiment's samples. The one module that needs matplotlib, which is an extra."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.experiment.file import Experiment
from launcher.experiment.matrix import Cell
from launcher.experiment.measures import (
    MEASURES,
    Groups,
    grouped,
    medians,
    phases,
    row_of,
    stalls,
    verdicts,
)
from launcher.experiment.report import number
from launcher.experiment.results import Results
from launcher.experiment.statistics import Estimate, bins, ecdf, quantile
from protocol.errors import HostError
from protocol.specs import LEVELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INSTALL = "pip install 'vibe-vmm[experiments]'"

FORMATS = ("png", "svg")

# Okabe and Ito's colours, which people tell apart whatever they see of colour.
_COLOURS = {"none": "#D55E00", "jail": "#0072B2", "bounce": "#009E73"}
_STEPS = ("#56B4E9", "#E69F00", "#F0E442", "#0072B2", "#CC79A7", "#999999", "#D55E00")
_VERDICTS = {"succeeded": "#D55E00", "contained": "#A6CEE3", "reported": "#66BFA3"}

_STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "axes.titlesize": "medium",
    "figure.constrained_layout.use": True,
    "figure.dpi": 120,
    "legend.frameon": False,
    "svg.hashsalt": "vibevmm",
    "svg.fonttype": "none",
}

# Milliseconds that are shown before a fault (arbitrary).
_BEFORE = 20


def draw(results: Results) -> list[Path]:
    """Make every plot of ``results`` that there are samples for, in its directory; the files.
    HostError where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise HostError(f"plots need matplotlib, an extra: {INSTALL}") from error
    matplotlib.use("agg")  # no display is needed, nor looked for
    folder = results.path / "plots"
    folder.mkdir(exist_ok=True)
    groups = grouped(results.all())
    made = []
    with matplotlib.rc_context(_STYLE):
        for name, plot in PLOTS.items():
            for device in ("",) if name == "attacks" else results.experiment.devices:
                mine = {cell: runs for cell, runs in groups.items() if cell.device == device}
                figure = plot(_Data(mine, results.experiment, results.seed))
                if figure is None:
                    continue
                several = device if len(results.experiment.devices) > 1 else ""
                made += _save(figure, folder, "-".join(filter(None, [name, _safe(several)])))
    return made


def _safe(text: str) -> str:
    return "".join(each if each.isalnum() or each in "-_" else "_" for each in text)


def _save(figure: Figure, folder: Path, stem: str) -> list[Path]:
    paths = [folder / f"{stem}.{format}" for format in FORMATS]
    for path in paths:
        # The same samples make the same file.
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, metadata=metadata)
    return paths


class _Data:
    # The samples of one device, and in which order and how its holds are drawn.

    def __init__(self, groups: Groups, experiment: Experiment, seed: int) -> None:
        self.groups, self.seed = groups, seed
        self._grouping, self.under = experiment.grouping, experiment.under
        self._names = {
            "load": experiment.loads, "fault": experiment.faults, "attack": experiment.attacks
        }  # fmt: skip

    def names(self, trial: str) -> list[str]:
        there = {cell.name for cell in self.groups if cell.trial == trial}
        return [name for name in self._names[trial] if name in there]

    def cells(self, trial: str, name: str | None = None) -> list[Cell]:
        found = [c for c in self.groups if c.trial == trial and name in (None, c.name)]
        return sorted(
            found, key=lambda c: (LEVELS.index(c.isolation), self._grouping.index(c.grouping))
        )

    def held(self, trial: str) -> list[str]:
        return list(dict.fromkeys(cell.held for cell in self.cells(trial)))

    def estimate(self, cell: Cell, measure: str) -> Estimate | None:
        row = row_of(cell, self.groups[cell], measure, self.seed)
        return None if row is None else row.estimate

    def look(self, cell: Cell) -> dict[str, Any]:
        return {"color": _COLOURS[cell.isolation], "alpha": 1 if cell.grouping == "own" else 0.5}


def _axes(
    rows: int, columns: int, width: float, height: float, **sharing: Any
) -> tuple[Figure, Any]:
    # The figure, and its axes in rows and columns.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(rows, columns, squeeze=False, **sharing)


def _legend(figure: Figure, axis: Axes) -> None:
    # One for all, below.
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def _errors(found: Sequence[Estimate]) -> list[list[float]]:
    # As matplotlib wants them: how far they reach down, and up.
    low = [e.median - (e.median if e.low is None else e.low) for e in found]
    high = [(e.median if e.high is None else e.high) - e.median for e in found]
    return [low, high]


# ── around a fault ────────────────────────────────────────────────────────────────────────


def timeline(data: _Data) -> Figure | None:
    """Requests per second in bins of 1 ms, around each kind of fault; the mean of all strikes."""
    faults, held = data.names("fault"), data.held("fault")
    if not faults:
        return None
    figure, axes = _axes(
        len(held),
        len(faults),
        3.4 * len(faults) + 0.6,
        1.5 * len(held) + 0.9,
        sharey=True,
        sharex="col",
    )
    for column, fault in enumerate(faults):
        cells = {cell.held: cell for cell in data.cells("fault", fault)}
        until = _until(data, cells.values())
        for row, name in enumerate(held):
            axis = axes[row][column]
            if cell := cells.get(name):
                _rate(axis, data, cell, until)
            axis.axvline(0, color="black", linewidth=0.8, linestyle=":")
            axis.set_xlim(-_BEFORE, until)
            if column == len(faults) - 1:
                axis.annotate(
                    name, (1.02, 0.5), xycoords="axes fraction", rotation=270, va="center"
                )
        axes[0][column].set_title(f"{fault} at 0")
        axes[-1][column].set_xlabel("ms")
    axes[0][0].set_ylim(bottom=0)
    figure.supylabel("requests/s, in bins of 1 ms", fontsize="medium")
    return figure


def _until(data: _Data, cells: Any) -> int:
    # Milliseconds behind the fault, up to which nearly all stalls are over, and some more.
    found = sorted(stall for c in cells for s in data.groups[c] for stall in stalls(s))
    return int(quantile(found, 0.95)) + 4 * _BEFORE


def _rate(axis: Axes, data: _Data, cell: Cell, until: int) -> None:
    edges = range(-_BEFORE, until + 1)
    counts, strikes = [0] * (len(edges) - 1), [0] * (len(edges) - 1)
    for samples in data.groups[cell]:
        starts = [strike["at_us"] for strike in samples["strikes"]]
        for at, following in zip(starts, [*starts[1:], 1e12], strict=True):
            # Behind the next fault there is nothing of this one.
            shown = min(len(counts), round((following - at) / 1e3) + _BEFORE)
            found = bins(((t - at) / 1e3 for t in samples["answered_us"]), -_BEFORE, until, 1)
            for each in range(shown):
                counts[each] += found[each]
                strikes[each] += 1
    rates = [1000 * count / max(1, of) for count, of in zip(counts, strikes, strict=True)]
    axis.stairs(rates, edges, fill=True, linewidth=0, **data.look(cell))


def stall(data: _Data) -> Figure | None:
    """How the stalls that the guest sees are distributed, for each kind of fault."""
    faults = data.names("fault")
    if not faults:
        return None
    figure, axes = _axes(1, len(faults), 3.2 * len(faults) + 0.4, 3.2, sharey=True)
    for axis, fault in zip(axes[0], faults, strict=True):
        for cell in data.cells("fault", fault):
            found = ecdf(value for samples in data.groups[cell] for value in stalls(samples))
            values = [found[0][0], *(value for value, _ in found)]
            parts = [0.0, *(part for _, part in found)]
            look = data.look(cell)
            axis.step(values, parts, where="post", label=cell.held, linewidth=1.8, **look)
        axis.set_title(fault)
        axis.set_xlabel("stall, ms")
        axis.set_xlim(left=0)
    axes[0][0].set_ylabel("part that is no longer")
    axes[0][0].set_ylim(0, 1.02)
    _legend(figure, axes[0][0])
    return figure


def recovery(data: _Data) -> Figure | None:
    """What the guest waits for, phase by phase: the median of each."""
    faults = data.names("fault")
    if not faults:
        return None
    heights = [max(4.5, len(data.cells("fault", fault)) + 1.6) for fault in faults]
    figure, axes = _axes(
        len(faults), 1, 7.5, 0.42 * sum(heights) + 0.3, gridspec_kw={"height_ratios": heights}
    )
    colours: dict[str, str] = {}
    for axis, fault in zip(axes[:, 0], faults, strict=True):
        cells = data.cells("fault", fault)
        seen: list[str] = []
        for at, cell in enumerate(cells):
            steps = medians([p for samples in data.groups[cell] for p in phases(samples)])
            left = 0.0
            for step, spent in steps.items():
                colour = colours.setdefault(step, _STEPS[len(colours) % len(_STEPS)])
                axis.barh(at, spent, left=left, color=colour, height=0.7)
                seen += [step] * (step not in seen)
                left += spent
            axis.annotate(f" {number(left)} ms", (left, at), va="center")
        axis.set_yticks(range(len(cells)), [cell.held for cell in cells])
        axis.invert_yaxis()
        axis.set_xlim(0, 1.2 * max(axis.dataLim.x1, 1))
        axis.grid(False, axis="y")
        axis.set_title(fault, loc="left")
        axis.legend(
            [_patch(colours[step]) for step in seen],
            seen,
            loc="center left",
            bbox_to_anchor=(1, 0.5),
        )
    axes[-1][0].set_xlabel("ms, the median of each phase")
    return figure


def _patch(colour: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour)


# ── what it buys, and costs ───────────────────────────────────────────────────────────────


def attacks(data: _Data) -> Figure | None:
    """What comes of each attack, by how devices are held."""
    found = verdicts(data.groups)
    if not found:
        return None
    names, held = data.names("attack"), data.held("attack")
    figure, axes = _axes(1, 1, 2.6 + 1.3 * len(held), 0.9 + 0.3 * len(names))
    axis = axes[0][0]
    for cell, verdict in found.items():
        x, y = held.index(cell.held), names.index(cell.name)
        axis.barh(y, 0.96, left=x - 0.48, height=0.92, color=_VERDICTS[verdict])
        axis.text(x, y, verdict, ha="center", va="center", fontsize="small")
    axis.set_xticks(range(len(held)), held)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    return figure


_REACH = {
    "readable": "guest memory that it can read, MiB",
    "calls": "system calls that it may make",
}


def reach(data: _Data) -> Figure | None:
    """What a device can reach against what it does: bytes, and system calls."""
    loads = data.names("load")
    if not loads or not data.cells("surface"):
        return None
    load = data.under if data.under in loads else loads[-1]
    figure, axes = _axes(1, len(_REACH), 4 * len(_REACH), 3.4, sharey=True)
    fast = {cell.held: data.estimate(cell, "throughput") for cell in data.cells("load", load)}
    for axis, (measure, title) in zip(axes[0], _REACH.items(), strict=True):
        for order, cell in enumerate(data.cells("surface")):
            x, y = data.estimate(cell, measure), fast.get(cell.held)
            if x is None or y is None:
                continue
            at = x.median / (1 << 20) if measure == "readable" else x.median
            look = data.look(cell)
            axis.errorbar(at, y.median, yerr=_errors([y]), fmt="o", capsize=3, markersize=8, **look)
            axis.annotate(
                cell.held,
                (at, y.median),
                xytext=(9, 12 - 12 * (order % 3)),
                textcoords="offset points",
                va="center",
                color=look["color"],
            )
        axis.set_xlabel(title)
        axis.set_xlim(-0.05 * axis.dataLim.x1, 1.4 * max(axis.dataLim.x1, 1))
    axes[0][0].set_ylabel(f"requests/s, {load}")
    axes[0][0].set_ylim(0, 1.15 * max(axis.dataLim.y1 for axis in axes[0]))
    return figure


def _bars(measure: str) -> Callable[[_Data], Figure | None]:
    def plot(data: _Data) -> Figure | None:
        loads, held = data.names("load"), data.held("load")
        if not loads:
            return None
        figure, axes = _axes(1, len(loads), (0.7 * len(held) + 1.2) * len(loads) + 0.6, 3.2)
        for axis, load in zip(axes[0], loads, strict=True):
            found = [(c, e) for c in data.cells("load", load) if (e := data.estimate(c, measure))]
            for at, (cell, each) in enumerate(found):
                axis.bar(
                    at, each.median, width=0.7, yerr=_errors([each]), capsize=4, **data.look(cell)
                )
                axis.annotate(
                    number(each.median),
                    (at, each.median if each.high is None else each.high),
                    xytext=(0, 3),
                    textcoords="offset points",
                    ha="center",
                )
            _name_bars(axis, [cell for cell, _ in found], load)
        title, unit = MEASURES[measure].title, MEASURES[measure].unit
        axes[0][0].set_ylabel(f"{title} {unit}" if unit.startswith("per") else f"{title}, {unit}")
        return figure

    plot.__doc__ = f"{MEASURES[measure].title} of each load, by how the device is held."
    return plot


def _name_bars(axis: Axes, cells: Sequence[Cell], title: str) -> None:
    axis.set_xticks(range(len(cells)), [cell.held.replace(", ", "\n") for cell in cells])
    axis.set_title(title)
    axis.grid(False, axis="x")
    axis.margins(y=0.15)
    axis.set_ylim(0, None if axis.dataLim.y1 > 0 else 1)


def cpu(data: _Data) -> Figure | None:
    """CPU time for a request: the device's process, and the VMM's with the guest in it."""
    loads, held = data.names("load"), data.held("load")
    if not loads:
        return None
    figure, axes = _axes(1, len(loads), (0.7 * len(held) + 1.2) * len(loads) + 1, 3.2)
    parts = {"cpu_device": ("device", "#0072B2"), "cpu_vmm": ("VMM, guest included", "#BBBBBB")}
    for axis, load in zip(axes[0], loads, strict=True):
        cells = data.cells("load", load)
        for at, cell in enumerate(cells):
            bottom = 0.0
            for measure, (label, colour) in parts.items():
                if each := data.estimate(cell, measure):
                    first = label if at == 0 else None
                    axis.bar(at, each.median, bottom=bottom, width=0.7, color=colour, label=first)
                    bottom += each.median
            axis.annotate(
                number(bottom), (at, bottom), xytext=(0, 3), textcoords="offset points", ha="center"
            )
        _name_bars(axis, cells, load)
    axes[0][0].set_ylabel("CPU time, µs/request")
    _legend(figure, axes[0][0])
    return figure


PLOTS: dict[str, Callable[[_Data], Figure | None]] = {
    "timeline": timeline,
    "stall": stall,
    "recovery": recovery,
    "attacks": attacks,
    "reach": reach,
    "throughput": _bars("throughput"),
    "cpu": cpu,
    "exits": _bars("exits"),
}
"""Every plot by its name, which its files have; None where there is nothing to plot."""
