"""Attacks that an experiment carries out: those of launcher.attack, a machine for each."""

from __future__ import annotations

from functools import partial
from typing import Protocol

from launcher.attack import table
from launcher.attack.machine import carry_out
from launcher.attack.table import Outcome


class Attack(Protocol):
    """A hostile device, or guest, that tries one thing on a machine of its own."""

    def __call__(self, isolation: str, grouping: str, hypervisor: str) -> Outcome:
        """What comes of it against devices held so, and with so many in a process."""


ATTACKS: dict[str, Attack] = {name: partial(carry_out, name) for name in table.ATTACKS}
"""Every attack by its name."""
