"""The programs in docs/api.md, run as they stand there; the first has thirty lines at most."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.bare import require_kvm

PAGE = (Path(__file__).parents[1] / "docs" / "api.md").read_text()


def block(language: str, index: int = 0) -> str:
    """The fenced block of ``language`` on the page that has this number."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert len(found) == 2, f"docs/api.md has {len(found)} {language} blocks"
    return str(found[index])


@pytest.mark.kvm
@pytest.mark.parametrize("index", [0, 1])
def test_program_on_the_page_prints_what_the_page_says(
    index: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    require_kvm()
    monkeypatch.chdir(tmp_path)

    exec(block("python", index), {"__name__": "__main__"})

    assert capsys.readouterr().out == block("text", index)


def test_it_is_thirty_lines_at_most() -> None:
    lines = [line for line in block("python").splitlines() if line.strip()]

    assert len(lines) <= 30
