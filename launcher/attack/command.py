"""``vibevmm attack``: carries attacks out, and tells whether any of them got out."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from launcher.attack.machine import attacked
from launcher.attack.table import ATTACKS, Attack, Outcome
from launcher.options import suggestion
from launcher.signals import all_interrupt
from protocol.errors import BadInput
from protocol.specs import LEVELS
from vmm.hypervisor import detect

_BACKENDS = ("auto", "kvm", "software")

Outcomes = Mapping[str, Mapping[str, Outcome]]
"""What came of each attack, by level."""


def run(names: Sequence[str], given: Mapping[str, str]) -> int:
    """The verb with its options; the exit status."""
    attacks = [_named(name) for name in names] or list(ATTACKS.values())
    levels = _levels(given.get("--level"))
    hypervisor = given.get("--hypervisor", "auto")
    if hypervisor not in _BACKENDS:
        raise BadInput("--hypervisor", f"{hypervisor!r} is not one of {', '.join(_BACKENDS)}")
    if hypervisor == "auto":  # as for any raw binary
        hypervisor = "kvm" if detect.kvm_opens() else "software"
    if "--list" in given:
        return _list(attacks, levels, hypervisor, as_json="--json" in given)
    found: dict[str, Mapping[str, Outcome]] = {}
    with all_interrupt():
        for level in levels:
            print(f"vibevmm: {len(attacks)} attacks on {hypervisor}, {level}", file=sys.stderr)
            found[level] = attacked(attacks, level, hypervisor)
    _show(attacks, found, hypervisor, as_json="--json" in given)
    return 1 if escapes(attacks, found, hypervisor) else 0


def escapes(attacks: Sequence[Attack], found: Outcomes, hypervisor: str) -> list[tuple[str, str]]:
    """Attacks that succeeded at a level which is to contain them: pairs of name and level."""
    return [
        (attack.name, level)
        for attack in attacks
        for level, outcomes in found.items()
        if outcomes[attack.name].verdict == "succeeded"
        and _expected(attack, level, hypervisor) != "succeeded"
    ]


def _named(name: str) -> Attack:
    if name not in ATTACKS:
        raise BadInput(repr(name), f"no such attack{suggestion(name, ATTACKS)}")
    return ATTACKS[name]


def _levels(text: str | None) -> list[str]:
    levels: list[str] = [*LEVELS] if text is None else text.split(",")
    for level in levels:
        if level not in LEVELS:
            raise BadInput("--level", f"{level!r} is not one of {', '.join(LEVELS)}")
    return levels


def _expected(attack: Attack, level: str, hypervisor: str) -> str:
    return attack.expects(level, mediated=hypervisor == "software")


def _list(
    attacks: Sequence[Attack], levels: Sequence[str], hypervisor: str, *, as_json: bool
) -> int:
    expected = {
        attack.name: {level: _expected(attack, level, hypervisor) for level in levels}
        for attack in attacks
    }
    if as_json:
        rows = [
            {
                "name": attack.name,
                "what": attack.what,
                "by": attack.by,
                "row": attack.row or None,
                "expected": expected[attack.name],
            }
            for attack in attacks
        ]
        return _print(json.dumps(rows, indent=2))
    from launcher import tables

    tables.attacks(
        [(a.name, [expected[a.name][level] for level in levels], a.what) for a in attacks],
        levels,
        "what it does",
    )
    return 0


def _show(attacks: Sequence[Attack], found: Outcomes, hypervisor: str, *, as_json: bool) -> None:
    if as_json:
        _print(
            json.dumps(
                {
                    "hypervisor": hypervisor,
                    "attacks": {
                        attack.name: {
                            level: {
                                **asdict(outcomes[attack.name]),
                                "expected": _expected(attack, level, hypervisor),
                            }
                            for level, outcomes in found.items()
                        }
                        for attack in attacks
                    },
                },
                indent=2,
            )
        )
        return
    from launcher import tables

    rows = []
    for attack in attacks:
        mine = [outcomes[attack.name] for outcomes in found.values()]
        rows.append((attack.name, [each.verdict for each in mine], mine[-1].evidence))
    tables.attacks(rows, list(found), f"evidence ({list(found)[-1]})")
    for attack in attacks:
        for level, outcomes in found.items():
            outcome, expected = outcomes[attack.name], _expected(attack, level, hypervisor)
            if outcome.verdict == "succeeded" != expected:
                print(
                    f"vibevmm: ESCAPE: {attack.name} at {level}: {outcome.evidence}",
                    file=sys.stderr,
                )
            elif expected == "succeeded" != outcome.verdict:
                why = f"this host holds it itself: {outcome.evidence}"
                print(f"vibevmm: {attack.name} at {level}: {why}", file=sys.stderr)


def _print(text: str) -> int:
    from launcher.cli import print_text

    return print_text(text)
