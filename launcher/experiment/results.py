"""Where an experiment keeps what it finds: a directory, which a later run can go on with.

::

    experiment.json       what was asked for, the seed, the host
    raw/CELL.json.gz      a cell's samples, or the error that kept it from having any
    tables/, plots/       made of those, and made again whenever one likes
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from launcher.experiment.file import Experiment, from_plain
from launcher.experiment.matrix import Cell
from protocol.errors import BadInput

_RAW, _EXPERIMENT = "raw", "experiment.json"


@dataclass(frozen=True, slots=True)
class Found:
    """A cell, and its samples, or the ``error`` that there was instead."""

    cell: Cell
    samples: dict[str, Any]
    error: str = ""


class Results:
    """The directory ``path``, of ``experiment`` in the order of ``seed``, measured on ``host``."""

    def __init__(self, path: Path, experiment: Experiment, seed: int, host: dict[str, str]) -> None:
        self.path, self.experiment, self.seed, self.host = path, experiment, seed, host

    @classmethod
    def create(cls, path: Path, experiment: Experiment, seed: int, host: dict[str, str]) -> Results:
        """A new one; BadInput if there is something already."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise BadInput("--out", f"{path} is not empty; --resume goes on with what is there")
            (path / _RAW).mkdir()
        except OSError as error:
            raise BadInput("--out", f"{path}: {error.strerror}") from error
        about = {"experiment": experiment.as_plain(), "seed": seed, "host": host}
        _write(path / _EXPERIMENT, (json.dumps(about, indent=2) + "\n").encode())
        return cls(path, experiment, seed, host)

    @classmethod
    def open(cls, path: Path, option: str) -> Results:
        """One that is there; BadInput, naming ``option``, if it is none."""
        try:
            about = json.loads((path / _EXPERIMENT).read_bytes())
            experiment = from_plain(about["experiment"], str(path / _EXPERIMENT))
            return cls(path, experiment, int(about["seed"]), dict(about["host"]))
        except OSError as error:
            raise BadInput(option, f"{path}: no results here: {error.strerror}") from error
        except (KeyError, TypeError, ValueError) as error:
            why = f"{path / _EXPERIMENT} is not what an experiment wrote: {error}"
            raise BadInput(option, why) from error

    def has(self, cell: Cell) -> bool:
        """Whether it has been carried out, without an error."""
        path = self._path(cell)
        return path.exists() and not _read(path).error

    def keep(self, found: Found) -> None:
        """Store it: all of it, or, if the process dies of it, nothing."""
        plain = asdict(found)
        _write(self._path(found.cell), gzip.compress(json.dumps(plain).encode(), mtime=0))

    def all(self) -> Iterator[Found]:
        """Everything that has been found so far, in the order of names."""
        for path in sorted((self.path / _RAW).glob("*.json.gz")):
            yield _read(path)

    def _path(self, cell: Cell) -> Path:
        return self.path / _RAW / f"{cell.stem}.json.gz"


def _read(path: Path) -> Found:
    try:
        plain = json.loads(gzip.decompress(path.read_bytes()))
        cell = Cell(**{each.name: plain["cell"][each.name] for each in fields(Cell)})
        return Found(cell, plain["samples"], plain["error"])
    except (OSError, EOFError, KeyError, TypeError, ValueError) as error:
        raise BadInput(str(path), f"is not what an experiment wrote: {error}") from error


def _write(path: Path, data: bytes) -> None:
    # The new name appears when all of it is there.
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_bytes(data)
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
