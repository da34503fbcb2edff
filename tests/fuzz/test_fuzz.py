"""A short run of each target, and for each a defect that such a run finds.

The number of executions and the seed are fixed: whatever the host, it does the same. `make fuzz`
takes longer ones.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import ROOT, TARGETS, Native

RUNS = {
    "chain": 5000,
    "journal": 4000,
    "mediation": 4000,
    "lanes": 3000,
    "frames": 5000,
    "codec": 10_000,
    "vhost-user": 1000,
    "blk": 2000,
    "console": 1000,
    "bzimage": 1000,
    "elf": 600,
    "config": 3000,
    "devices": 3000,
}
"""Executions: half a second of each, or less, on a host with nothing else to do."""

DEFECTS = {
    "chain": ("protocol/ring/ring.c", "desc.next >= table.entries", "desc.next > table.entries"),
    "journal": ("protocol/ring/journal.c", "(a > b) - (a < b)", "(a < b) - (a > b)"),
    "mediation": ("vmm/mediation/mediator.c", " || loan->returned)", ")"),
    "mediation, copies": ("vmm/mediation/mediator.c", "            from += length;\n", ""),
    "lanes": (
        "devices/lanes/blk.c",
        "size / SECTOR <= disk->sectors - sector",
        "size / SECTOR <= disk->sectors",
    ),
    "frames": ("protocol/channel.py", "if size > MAX_MESSAGE:", "if size > 2 * MAX_MESSAGE:"),
    "codec": ("protocol/codec.py", "type(plain) is not wanted", "not isinstance(plain, wanted)"),
    "vhost-user": (
        "devices/runtime/vhost_user.py",
        '    os.close(fd)\n    raise ProtocolError("the descriptor is no eventfd")',
        '    raise ProtocolError("the descriptor is no eventfd")',
    ),
    "blk": ("devices/blk.py", "if sector + sectors > self._sectors", "if sector > self._sectors"),
    "console": ("devices/console.py", " + data.size - data.left\n", "\n"),
    "bzimage": ("vmm/boot/bzimage.py", " and is_ram(regions, place, size)", ""),
    "elf": ("vmm/boot/elf.py", "is_ram(regions, segment.gpa, segment.size)", "True"),
    "config": ("launcher/toml.py", "except RecursionError as", "except KeyError as"),
    "devices": ("launcher/device_options.py", 'text.replace(",", ",,")', "text"),
}
"""By target: a file, what stands in it once, and what stands there in its place."""


def fuzz(root: Path, into: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzz", *arguments, "--into", str(into)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=110)


def needs(name: str) -> None:
    if isinstance(TARGETS[name], Native) and shutil.which("clang") is None:
        pytest.skip("needs clang with libFuzzer")
    if not isinstance(TARGETS[name], Native) and importlib.util.find_spec("atheris") is None:
        pytest.skip("needs atheris, which is not built for this machine")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the programs are built from what is here, once."""
    return tmp_path_factory.mktemp("sound")


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_short_run_finds_nothing(name: str, sound: Path) -> None:
    needs(name)

    result = fuzz(ROOT, sound, name, "--runs", str(RUNS[name]))

    assert result.returncode == 0, result.stdout + result.stderr
    assert re.fullmatch(rf"{name}: \d+ executions, \d+ edges, no finding\n", result.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_found_and_its_input_does_it_again(
    defect: str, tmp_path: Path, sound: Path
) -> None:
    name = defect.partition(",")[0]
    needs(name)
    planted = tmp_path / "planted"
    for part in ("protocol", "devices", "vmm", "launcher", "tests/fuzz", "tests/support"):
        shutil.copytree(
            ROOT / part, planted / part, ignore=shutil.ignore_patterns("__pycache__", "*.o")
        )
    path, right, wrong = DEFECTS[defect]
    text = (planted / path).read_text()
    assert text.count(right) == 1
    (planted / path).write_text(text.replace(right, wrong))

    found = fuzz(planted, tmp_path / "found", name, "--runs", str(RUNS[name]))

    assert found.returncode == 1, found.stdout + found.stderr
    (again,) = re.findall(r"^again: (.*)$", found.stdout, re.MULTILINE)
    command = shlex.split(again)[1:]  # of this interpreter
    assert fuzz(planted, tmp_path / "found", *command[2:]).returncode == 1
    assert fuzz(ROOT, sound, *command[2:]).returncode == 0


@pytest.mark.parametrize("option", ["--seconds", "--runs"])
def test_no_time_at_all_is_no_run_without_an_end(option: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "codec", option, "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 2
    assert f"argument {option}: 0 is none" in done.stderr
