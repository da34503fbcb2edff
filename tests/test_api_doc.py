"""The virtual machine monitor in docs/api.md: run as it stands there, and thirty lines at most."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.bare import require_kvm

PAGE = (Path(__file__).parents[1] / "docs" / "api.md").read_text()


def block(language: str) -> str:
    """The first fenced block of ``language`` on the page."""
    found = re.search(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert found, f"docs/api.md has no {language} block"
    return found[1]


@pytest.mark.kvm
def test_program_on_the_page_prints_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    require_kvm()

    exec(block("python"), {"__name__": "__main__"})

    assert capsys.readouterr().out == block("text")


def test_it_is_thirty_lines_at_most() -> None:
    lines = [line for line in block("python").splitlines() if line.strip()]

    assert len(lines) <= 30
