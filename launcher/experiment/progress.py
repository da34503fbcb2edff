"""How far an experiment is, by rich on a terminal, and a line a cell elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from launcher.experiment.matrix import Cell


class Shown:
    """What is under way, on standard error."""

    def __init__(self, bar: Progress, count: int, done: int) -> None:
        self._bar, self._done = bar, done
        self._task = bar.add_task("", total=count, completed=done, what="")

    def begins(self, cell: Cell) -> None:
        """``cell`` is under way."""
        self._bar.update(self._task, what=str(cell))

    def ended(self, cell: Cell, error: str) -> None:
        """It is over; ``error`` is empty if all went well."""
        self._done += 1
        self._bar.advance(self._task)
        if error:
            self._bar.console.print(Text(f"{cell}: {error}", "red"))
        elif not self._bar.console.is_terminal:
            print(f"{self._done}/{self._bar.tasks[0].total} {cell}", file=sys.stderr, flush=True)


@contextmanager
def shown(cells: Sequence[Cell], done: int) -> Iterator[Shown]:
    """While this lasts: ``done`` of ``cells`` are done already."""
    console = Console(stderr=True, soft_wrap=True)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[what]}", markup=False),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        yield Shown(bar, len(cells), done)
