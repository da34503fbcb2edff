"""The README shows what the bare demo prints: the words the same, the numbers of another run."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.bare import require_kvm

ROOT = Path(__file__).parents[1]


def shape(transcript: str) -> list[str]:
    """Its lines, with every number, and what its width moves, taken out."""
    lines = (re.sub(r"/tmp/tmp\.\w+", "/tmp/tmp", line) for line in transcript.splitlines())
    return [re.sub(r"\s+", " ", re.sub(r"[\d.]+", "0", line)).strip() for line in lines]


@pytest.mark.kvm
def test_the_bare_demo_prints_what_the_readme_shows() -> None:
    require_kvm()
    readme = (ROOT / "README.md").read_text()
    shown = re.search(r"^\$ make demo-bare\n(.*?)^```", readme, re.S | re.M)
    assert shown is not None

    done = subprocess.run(
        [ROOT / "tools" / "demo", "bare"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0
    assert sorted(shape(done.stdout)) == sorted(shape(shown[1]))


def test_the_readme_has_the_smallest_device_whole() -> None:
    assert (ROOT / "devices" / "rng.py").read_text().rstrip() in (ROOT / "README.md").read_text()
