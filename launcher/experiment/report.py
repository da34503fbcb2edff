"""Tables of an experiment's figures: Markdown for people, JSON and CSV for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from launcher.experiment.file import Experiment
from launcher.experiment.matrix import Cell
from launcher.experiment.measures import MEASURES, Groups, Row, grouped, rows, verdicts
from launcher.experiment.results import Found, Results
from launcher.experiment.statistics import CONFIDENCE, Estimate
from launcher.experiment.surface import trusted_command
from protocol.specs import LEVELS

_FIELDS = ("trial", "name", "device", "isolation", "grouping", "measure", "unit")


def write(results: Results) -> None:
    """Make the tables of ``results``, in its directory."""
    found = list(results.all())
    folder = results.path / "tables"
    folder.mkdir(exist_ok=True)
    groups = grouped(found)
    table = rows(groups, results.seed)
    (folder / "results.md").write_text(markdown(results, found))
    (folder / "results.json").write_text(
        json.dumps(
            {
                "seed": results.seed,
                "host": results.host,
                "confidence": CONFIDENCE,
                "rows": [_plain(row) for row in table],
                "attacks": [
                    {**_named(cell), "verdict": verdict, "evidence": groups[cell][0]["evidence"]}
                    for cell, verdict in verdicts(groups).items()
                ],
                "errors": [{**asdict(f.cell), "error": f.error} for f in found if f.error],
            },
            indent=2,
        )
        + "\n"
    )
    (folder / "results.csv").write_text(_csv(table))


def _named(cell: Cell) -> dict[str, str]:
    plain = asdict(cell)
    del plain["repetition"]
    return plain


def _plain(row: Row) -> dict[str, Any]:
    unit = MEASURES[row.measure].unit
    return {**_named(row.cell), "measure": row.measure, "unit": unit, **asdict(row.estimate)}


def _csv(table: Iterable[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [*_FIELDS, "count", "median", "low", "high"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(_plain(row) for row in table)
    return text.getvalue()


# ── for people ────────────────────────────────────────────────────────────────────────────


def markdown(results: Results, found: Sequence[Found]) -> str:
    """One table a device, a column for each way to hold it."""
    experiment, groups = results.experiment, grouped(found)
    table = rows(groups, results.seed)
    failed = [each for each in found if each.error]
    lines = [
        "# Results",
        "",
        f"{len(found) - len(failed)} runs in an order by seed {results.seed}, "
        f"hypervisor {experiment.hypervisor}, on {', '.join(results.host.values())}.",
        f"Medians, in brackets the {CONFIDENCE:.0%} interval of each by bootstrap.",
    ]
    attacks = verdicts(groups)
    names = ["", *experiment.loads, *experiment.faults]
    for device in experiment.devices:
        mine = [row for row in table if row.cell.device == device]
        columns = _columns([row.cell for row in mine], experiment)
        if mine:
            lines += ["", f"## {device}", "", *_device(mine, attacks, columns, names)]
    if attacks:
        lines += ["", "## Attacks", "", *_attacks(attacks, groups, experiment)]
    if any(row.measure == "trusted" for row in table):
        lines += ["", "Trusted code is counted so, in the project's folder:", "", "```sh"]
        lines += [f"{trusted_command(level)}  # {level}" for level in experiment.isolation]
        lines += ["```"]
    if failed:
        lines += ["", "## Not measured", ""]
        lines += [f"- {each.cell}: {each.error}" for each in failed]
    return "\n".join(lines) + "\n"


def _columns(cells: Iterable[Cell], experiment: Experiment) -> list[str]:
    order: dict[str, int] = {level: number for number, level in enumerate(LEVELS)}
    held = {(order[c.isolation], experiment.grouping.index(c.grouping), c.held) for c in cells}
    return [text for _, _, text in sorted(held)]


def _device(
    table: Sequence[Row], attacks: dict[Cell, str], columns: list[str], names: Sequence[str]
) -> list[str]:
    cells: dict[str, dict[str, str]] = {}
    if attacks:
        cells["attacks contained"] = {held: _contained(attacks, held) for held in columns}
    order = list(MEASURES)
    for row in sorted(
        table, key=lambda row: (order.index(row.measure), names.index(row.cell.name))
    ):
        title, unit = MEASURES[row.measure].title, MEASURES[row.measure].unit
        what = ", ".join(filter(None, [title, row.cell.name, "" if unit == "bytes" else unit]))
        cells.setdefault(what, {})[row.cell.held] = shown(row.estimate, unit)
    return _table("", columns, cells)


def _contained(attacks: dict[Cell, str], held: str) -> str:
    mine = [verdict for cell, verdict in attacks.items() if cell.held == held]
    return f"{sum(verdict != 'succeeded' for verdict in mine)} of {len(mine)}" if mine else "–"


def _attacks(attacks: dict[Cell, str], groups: Groups, experiment: Experiment) -> list[str]:
    cells: dict[str, dict[str, str]] = {}
    for cell, verdict in attacks.items():
        evidence = groups[cell][0]["evidence"].replace("|", "\\|")
        cells.setdefault(cell.name, {})[cell.held] = f"{verdict}: {evidence}"
    return _table("attack", _columns(attacks, experiment), cells)


def _table(corner: str, columns: Sequence[str], cells: dict[str, dict[str, str]]) -> list[str]:
    return [
        f"| {' | '.join([corner, *columns])} |",
        f"|---|{'---:|' * len(columns)}",
        *(
            f"| {' | '.join([what, *(held.get(column, '–') for column in columns)])} |"
            for what, held in cells.items()
        ),
    ]


def shown(found: Estimate, unit: str) -> str:
    """A figure as people read it."""
    median = number(found.median, unit)
    if found.low is None or found.high is None:
        return median
    return f"{median} [{number(found.low, unit)}, {number(found.high, unit)}]"


def number(value: float, unit: str = "") -> str:
    """A number with three digits that count, or all before the point."""
    if unit == "bytes":
        return f"{value / (1 << 20):g} MiB" if value else "0"
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
