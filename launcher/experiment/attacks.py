"""Attacks that an experiment can carry out: one table, and what an attack is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

Verdict = Literal["succeeded", "contained", "reported"]
"""What came of an attack: it did what it wanted; it did not; it did not, and somebody was told."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The ``verdict``, and the ``evidence``: an errno, a signal, the bytes of a canary."""

    verdict: Verdict
    evidence: str


class Attack(Protocol):
    """A hostile device, or guest, that tries one thing on a machine of its own."""

    def __call__(self, isolation: str, grouping: str, hypervisor: str) -> Outcome:
        """What comes of it against devices held so, and with so many in a process."""


ATTACKS: dict[str, Attack] = {}
"""Every attack by its name."""
