"""Tables for people, by rich: the one place that imports it, and only for who looks at a table."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

# Columns of what is no terminal, where nothing shall be cut (arbitrary).
_WIDE = 200

_COLOURS = {"running": "green", "paused": "yellow", "starting": "yellow"}


def machines(found: Iterable[Mapping[str, Any]]) -> None:
    """Print machines and their processes, as ``vibevmm ps --json`` has them."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("machine", "kind", "state"):
        table.add_column(name)
    for name in ("pid", "gen.", "up", "RSS", "PSS"):
        table.add_column(name, justify="right")
    table.add_column("isolation")
    for machine in found:
        kind = ""
        if "hypervisor" in machine:
            kind = f"{machine['architecture']}, {machine['hypervisor']}, {machine['cpus']} CPU"
        table.add_row(
            Text(machine["name"], "bold"),
            kind,
            _state(machine["state"]),
            str(machine.get("pid", "")),
            "",
            _duration(machine.get("uptime_ms")),
        )
        for process in machine["processes"]:
            table.add_row(
                Text(f"  {process['name']}"),
                Text(process["kind"]),
                _state(process["state"]),
                str(process["pid"]),
                str(process["generation"]),
                _duration(process["uptime_ms"]),
                _mebibytes(process.get("rss")),
                _mebibytes(process.get("pss")),
                _isolation(process),
            )
    console = Console(width=None if sys.stdout.isatty() else _WIDE)
    console.print(table)


def _state(word: str) -> Text:
    return Text(word, _COLOURS.get(word, "red"))


def _isolation(process: Mapping[str, Any]) -> Text:
    level, lacks = process["isolation"] or "", ", ".join(process["lacks"])
    text = f"{level} without {lacks}".strip() if lacks else level
    return Text(text, "red" if level == "none" else "")


def _duration(milliseconds: float | None) -> str:
    if milliseconds is None:
        return ""
    seconds = int(milliseconds / 1000)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def _mebibytes(size: int | None) -> str:
    return "" if size is None else f"{size / (1 << 20):.1f} MiB"


_VERDICTS = {"succeeded": "red", "contained": "green", "reported": "green"}


def attacks(
    rows: Iterable[tuple[str, Sequence[str], str]], levels: Sequence[str], last: str
) -> None:
    """Print the name of each attack, its verdict at each of ``levels``, and the ``last`` column."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("attack", *levels, last):
        table.add_column(name)
    for name, verdicts, text in rows:
        table.add_row(name, *(Text(each, _VERDICTS[each]) for each in verdicts), Text(text))
    Console(width=None if sys.stdout.isatty() else _WIDE).print(table)
