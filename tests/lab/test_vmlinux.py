"""Debian's vmlinux, an ELF file, entered by PVH on real kvm_amd: boots to its init, and ends."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.support import linux
from tests.support.linux import Report

pytestmark = [
    pytest.mark.lab,
    # A boot takes about ten seconds here, several times that on a busy machine.
    pytest.mark.timeout(300),
    pytest.mark.skipif("VIBE_LAB" not in os.environ, reason="runs inside `make lab`"),
]

GUEST_DEADLINE = 180


@pytest.fixture(scope="module")
def options() -> list[str]:
    # fmt: off
    return [
        "--kernel", str(linux.vmlinux()), "--initrd", str(linux.initrd()),
        "--cmdline", linux.COMMAND_LINE, "--cpus", "1", "--mem", "512M",
        "--on-reboot", "exit", "--timeout", str(GUEST_DEADLINE),
    ]
    # fmt: on


def run(*arguments: str) -> Report:
    """The program's output, and how it ended."""
    # Its own deadline ends it; this one is for a program that ignores that.
    done = subprocess.run(
        [str(linux.VIBEVMM), "run", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=GUEST_DEADLINE + 30,
    )
    return Report(done.returncode, done.stdout.decode(errors="replace"), "")


def test_it_is_entered_by_pvh(options: list[str]) -> None:
    planned = run(*options, "--dry-run")

    assert planned.status == 0
    assert "kernel: ELF kernel with a PVH entry" in planned.serial


def test_it_boots_to_its_init_on_one_cpu_and_powers_off(options: list[str]) -> None:
    booted = run(*options)

    assert booted.says(r"init [0-9.]+"), booted.serial
    assert booted.says("cpus 1"), booted.serial
    assert booted.says(r"done [0-9.]+"), booted.serial
    assert booted.status == 0
