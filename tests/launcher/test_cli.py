"""Commands other than run, and what all have in common."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launcher import cli
from launcher.completion import SHELLS

PROJECT = Path(__file__).parents[2]


def test_version_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capfd.readouterr().out.startswith("vibevmm 0.")


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["-h"]])
def test_help_says_what_can_be_asked_and_how_it_ends(
    words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 0

    text = capfd.readouterr().out
    assert "--kernel FILE" in text
    assert "Exit status" in text


def test_help_of_a_device_comes_from_its_options(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--help-device", "rng"]) == 0
    assert "max_bytes=NUMBER[K|M|G]  (default: 64K" in capfd.readouterr().out


def test_nothing_is_bad_input(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "usage:" in capfd.readouterr().err


def test_command_that_there_is_not_has_a_suggestion(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rnu"]) == 2
    assert capfd.readouterr().err == "vibevmm: 'rnu': no such command; did you mean 'run'?\n"


def test_run_may_be_left_out(binary: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--binary", binary, "--entry", "0x10000", "--dry-run"]) == 0
    assert "raw binary" in capfd.readouterr().out


def test_closed_standard_descriptors_are_no_files_of_ours(binary: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    command = (
        f"{sys.executable} -m launcher run --binary {binary} --disk {disk} --mem 0 <&- >&- 2>&-"
    )

    done = subprocess.run(["sh", "-c", command], cwd=PROJECT, check=False)

    assert done.returncode == 2
    assert disk.read_bytes() == bytes(1 << 20)


@pytest.mark.parametrize(
    "words",
    ["--version", "--help", "run --help", "run --help-device rng", "doctor", "completion bash"],
)
@pytest.mark.parametrize(
    ("output", "why"), [("/dev/full", "No space left on device"), ("&-", "is closed")]
)
def test_output_that_cannot_be_written_is_one_line_and_status_3(
    words: str, output: str, why: str
) -> None:
    command = f"{sys.executable} -m launcher {words} >{output}"

    done = subprocess.run(["sh", "-c", command], cwd=PROJECT, capture_output=True, text=True)

    assert done.returncode == 3
    assert done.stderr.startswith("vibevmm: standard output")
    assert why in done.stderr
    assert done.stderr.count("\n") == 1


def test_dry_run_to_a_full_disk_is_status_3(binary: str) -> None:
    command = f"{sys.executable} -m launcher --binary {binary} --entry 0x10000 --dry-run >/dev/full"

    done = subprocess.run(["sh", "-c", command], cwd=PROJECT, capture_output=True, text=True)

    assert done.returncode == 3
    assert done.stderr == "vibevmm: standard output: No space left on device\n"


def test_error_that_nobody_can_be_told_keeps_its_status() -> None:
    command = f"{sys.executable} -m launcher --kernel /nowhere 2>/dev/full"

    assert subprocess.run(["sh", "-c", command], cwd=PROJECT, check=False).returncode == 2


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_script_is_one_that_the_shell_understands(
    shell: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["completion", shell]) == 0

    script = capfd.readouterr().out
    assert "--disk" in script or "-l disk" in script
    if shutil.which(shell):
        assert subprocess.run([shell, "-n", "/dev/stdin"], input=script.encode()).returncode == 0


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("vibevmm ru", ["run"]),
        ("vibevmm run --dev", ["--device"]),
        ("vibevmm run --device r", ["rng"]),
        ("vibevmm --log de", ["debug"]),
        ("vibevmm completion z", ["zsh"]),
        ("vibevmm exp", ["experiment"]),
        ("vibevmm experiment x.toml --re", ["--resume"]),
    ],
)
def test_bash_completes(line: str, offered: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    cli.main(["completion", "bash"])
    script = capfd.readouterr().out
    words = line.split()
    ask = f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _vibevmm; echo ${{COMPREPLY[@]}}"

    done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True)

    assert done.stdout.split() == offered


def test_unknown_shell_is_bad_input(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "csh"]) == 2
    assert "bash" in capfd.readouterr().err
