"""docs/attacks.md has every attack, with what it comes to at each level."""

from __future__ import annotations

from pathlib import Path

from launcher.attack.table import ATTACKS, Attack
from protocol.specs import LEVELS

PAGE = Path(__file__).parents[3] / "docs" / "attacks.md"


def row(attack: Attack) -> str:
    verdicts = (attack.expects(level) for level in LEVELS)
    number = str(attack.row) if attack.row else ""
    return f"| `{attack.name}` | {attack.what} | {number} | {' | '.join(verdicts)} |"


def test_the_page_has_every_attack_in_order() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]

    assert rows == [row(attack) for attack in ATTACKS.values()]
