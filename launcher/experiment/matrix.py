"""The cells of an experiment, in an order that a seed decides."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from launcher.experiment.file import Experiment


@dataclass(frozen=True, slots=True)
class Cell:
    """One thing to do once: ``trial`` is a key of trials.TRIALS, ``name`` which load or fault,
    ``repetition`` counts from 1. (Of the samples of all attacks, each is looked at as a cell of
    its name: measures.grouped.)"""

    trial: str
    name: str
    device: str
    isolation: str
    grouping: str
    repetition: int

    @property
    def stem(self) -> str:
        """Its name as that of a file, which no other cell has."""
        words = (self.trial, self.name, self.device, self.isolation, self.grouping)
        safe = (re.sub(r"[^\w-]", lambda found: f"%{ord(found[0]):x}", word) for word in words)
        return ".".join([*filter(None, safe), str(self.repetition)])

    @property
    def held(self) -> str:
        """How the device is held, for people: a column of a table."""
        return self.isolation if self.grouping == "own" else f"{self.isolation}, {self.grouping}"

    def __str__(self) -> str:
        what = f"{self.trial} {self.name}".strip()
        held = ", ".join(filter(None, [self.device, self.held]))
        return f"{what}: {held}, #{self.repetition}"


def cells(experiment: Experiment) -> list[Cell]:
    """All of them, in the order in which the file has them."""
    subjects = [
        (device, isolation, grouping)
        for device in experiment.devices
        for isolation in experiment.isolation
        for grouping in experiment.grouping
    ]
    trials = [("surface", "")] if experiment.surface else []
    trials += [("load", name) for name in experiment.loads]
    trials += [("fault", name) for name in experiment.faults]
    found = [
        Cell(trial, name, *subject, repetition)
        for trial, name in trials
        for subject in subjects
        for repetition in range(1, 1 + (experiment.repetitions if name else 1))
    ]
    # An attacker brings its own device: it matters how that is held, not what is measured beside.
    # All at once: a machine has room for many, and what comes of them is no figure that varies.
    attacked = [
        Cell("attack", "", "", isolation, grouping, 1)
        for isolation in experiment.isolation
        for grouping in experiment.grouping
        if experiment.attacks
    ]
    return found + attacked


def ordered(experiment: Experiment, seed: int) -> list[Cell]:
    """All of them, in the order of ``seed``: what drifts while they run falls on all alike."""
    found = cells(experiment)
    random.Random(seed).shuffle(found)
    return found
