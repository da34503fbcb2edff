"""The README shows what the bare demo prints: the words the same, the numbers of another run."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.bare import require_kvm
from tests.support.skips import unless_there_is_a_kernel
from tools import linux
from vmm.hypervisor import detect

ROOT = Path(__file__).parents[1]


def shape(transcript: str) -> list[str]:
    """Its lines, with every number, and what its width moves, taken out."""
    lines = (re.sub(r"/tmp/tmp\.\w+", "/tmp/tmp", line) for line in transcript.splitlines())
    return [re.sub(r"\s+", " ", re.sub(r"[\d.]+", "0", line)).strip() for line in lines]


def told(transcript: str) -> list[str]:
    """What guest and demo say, but not the statistics, in which the rarest places come and go."""
    lines = (re.sub(r"\b[0-9a-f]{32,}\b", "HEX", line) for line in transcript.splitlines())
    return shape("\n".join(line for line in lines if re.match(r"linux|demo|vibevmm|  [├└]─", line)))


@pytest.mark.slow
def test_the_demo_prints_what_the_readme_shows() -> None:
    with unless_there_is_a_kernel():
        linux.prepare("amd64")
    if detect.kvm_opens() and not detect.kvm_is_software():
        pytest.skip("the README shows a host without hardware virtualization")
    shown = re.search(r"^\$ make demo\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)
    assert shown is not None

    printed = run_demo("linux")

    assert sorted(told(printed)) == sorted(told(shown[1]))  # two consoles are not one stream
    assert ", 0 exits" in printed


@pytest.mark.kvm
def test_the_bare_demo_ends_well() -> None:
    require_kvm()

    printed = run_demo("bare")

    assert "demo: done" in printed
    assert ", 0 exits" in printed


def run_demo(which: str) -> str:
    done = subprocess.run(
        [ROOT / "tools" / "demo", which],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_readme_has_the_smallest_device_whole() -> None:
    assert (ROOT / "devices" / "rng.py").read_text().rstrip() in (ROOT / "README.md").read_text()
