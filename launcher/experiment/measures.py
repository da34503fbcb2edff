"""Figures of raw samples: one row of a table a figure. Who adds one adds a row to MEASURES."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from launcher.experiment.matrix import Cell
from launcher.experiment.results import Found
from launcher.experiment.statistics import Estimate, estimate, longest_gap, quantile

Samples = dict[str, Any]

# Microseconds: of the guest's clock, which is brought to ours, and of a queue that was full, which
# has to be worked off before the guest sees that nobody serves (arbitrary, both).
_SLACK = 5000.0


@dataclass(frozen=True, slots=True)
class Measure:
    """``title`` in ``unit``, of each run of ``trial``: ``values`` gets its raw samples."""

    title: str
    unit: str
    trial: str
    values: Callable[[Samples], list[float]]


def _per_second(samples: Samples) -> list[float]:
    return [len(samples["answered_us"]) / samples["seconds"]]


def _latency(part: float) -> Callable[[Samples], list[float]]:
    return lambda samples: _quantiles(samples["latency_us"], part)


def _quantiles(values: Sequence[float], part: float) -> list[float]:
    return [quantile(sorted(values), part)] if values else []


def _cpu(process: str) -> Callable[[Samples], list[float]]:
    return lambda samples: _each(samples["cpu_ns"][process] / 1e3, samples)


def _each(total: float, samples: Samples) -> list[float]:
    # For one request; nothing where there were none.
    requests = len(samples["answered_us"])
    return [total / requests] if requests else []


def _fact(name: str) -> Callable[[Samples], list[float]]:
    return lambda samples: [samples[name]] if samples[name] is not None else []


def stalls(samples: Samples) -> list[float]:
    """Milliseconds that the guest went without an answer, for each strike of a fault."""
    return [(end - begin) / 1e3 for begin, end in _gaps(samples)]


def _gaps(samples: Samples) -> Iterator[tuple[float, float]]:
    strikes = samples["strikes"]
    # Not into the next one.
    until = [strike["at_us"] for strike in strikes[1:]] + [float("inf")]
    for strike, following in zip(strikes, until, strict=True):
        end = min(strike["ended_us"] + _SLACK, following)
        yield longest_gap(samples["answered_us"], strike["at_us"] - _SLACK, end)


def phases(samples: Samples) -> Iterator[dict[str, float]]:
    """For each strike of a fault, milliseconds of what the guest waited for, in order. Steps that
    were taken while somebody served, as in a swap, are none of it."""
    for strike, (begin, end) in zip(samples["strikes"], _gaps(samples), strict=True):
        took, noticed = strike["took_us"], strike["noticed_us"]
        if noticed == strike["ended_us"]:
            steps = {"nobody serves": took, "first answer": end - begin - took}
        else:
            steps = {"notice": noticed - strike["at_us"], **strike["steps_us"]}
            # The guest may have its answer before the launcher hears that somebody serves.
            steps["first answer"] = end - strike["ended_us"]
        yield {step: max(0.0, spent) / 1e3 for step, spent in steps.items()}


def _took(samples: Samples) -> list[float]:
    return [strike["took_us"] / 1e3 for strike in samples["strikes"]]


MEASURES: dict[str, Measure] = {
    "readable": Measure("guest memory readable", "bytes", "surface", _fact("readable_bytes")),
    "writable": Measure("guest memory writable", "bytes", "surface", _fact("writable_bytes")),
    "calls": Measure("system calls allowed", "", "surface", _fact("system_calls")),
    "descriptors": Measure("descriptors held", "", "surface", _fact("descriptors")),
    "messages": Measure("message types reachable", "", "surface", _fact("message_types")),
    "trusted": Measure("trusted code", "lines", "surface", _fact("trusted_lines")),
    "throughput": Measure("throughput", "requests/s", "load", _per_second),
    "latency": Measure("latency, median", "µs", "load", _latency(0.5)),
    "latency99": Measure("latency, 99th percentile", "µs", "load", _latency(0.99)),
    "cpu_device": Measure("CPU of the device", "µs/request", "load", _cpu("device")),
    "cpu_vmm": Measure("CPU of the VMM, guest included", "µs/request", "load", _cpu("vmm")),
    "exits": Measure("exits", "per request", "load", lambda s: _each(s["exits"], s)),
    "stall": Measure("stall that the guest sees", "ms", "fault", stalls),
    "recovery": Measure("nobody serves", "ms", "fault", _took),
}
"""Every figure by its name."""


@dataclass(frozen=True, slots=True)
class Row:
    """A figure of all repetitions of a ``cell``, whose repetition is 0."""

    cell: Cell
    measure: str
    estimate: Estimate


Groups = dict[Cell, list[Samples]]


def grouped(found: Iterable[Found]) -> Groups:
    """The samples of all repetitions by their cell, without its repetition and without those that
    failed; in the order of names. Each attack has a cell of its own here."""
    groups: Groups = defaultdict(list)
    for each in found:
        cell = replace(each.cell, repetition=0)
        if each.error:
            continue
        if cell.trial == "attack":
            for name, outcome in each.samples.items():
                groups[replace(cell, name=name)].append(outcome)
        else:
            groups[cell].append(each.samples)
    return dict(groups)


def rows(groups: Groups, seed: int) -> list[Row]:
    """Every figure that there is."""
    return [
        row
        for cell, runs in groups.items()
        for name, measure in MEASURES.items()
        if measure.trial == cell.trial and (row := row_of(cell, runs, name, seed))
    ]


def row_of(cell: Cell, runs: Sequence[Samples], name: str, seed: int) -> Row | None:
    """One figure of ``runs``; None if there is nothing to make it of. What is drawn again for its
    interval is runs, or strikes of a fault: requests of one run depend on each other."""
    values = [value for samples in runs for value in MEASURES[name].values(samples)]
    if not values:
        return None
    return Row(cell, name, estimate(values, f"{seed}/{cell.stem}/{name}"))


def verdicts(groups: Groups) -> dict[Cell, str]:
    """What came of each attack."""
    return {cell: run["verdict"] for cell, (run, *_) in groups.items() if cell.trial == "attack"}


def medians(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of each phase, in order."""
    return {name: statistics.median(each.get(name, 0.0) for each in steps) for name in steps[0]}
