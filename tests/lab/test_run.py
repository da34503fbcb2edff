"""The lab itself: statuses come back, output comes out, a deadline ends it and leaves nothing."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.run import LabDied, LabTimedOut, run
from tests.support import kernels, packages

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif("VIBE_LAB" in os.environ, reason="this is the lab already"),
    pytest.mark.skipif(
        shutil.which("qemu-system-x86_64") is None or not kernels.is_here("amd64"),
        reason="needs QEMU and the lab's kernel (`make lab` downloads it)",
    ),
]


def children() -> list[str]:
    tasks = Path("/proc/self/task").glob("*/children")
    return [child for task in tasks for child in task.read_text().split()]


def test_output_and_exit_status_are_the_commands_own() -> None:
    output = bytearray()

    # A process left behind must not keep the lab from ending.
    status = run("sleep 1000 & test -c /dev/kvm && echo here; exit 200", output=output.extend)

    assert output.decode() == "here\n"
    assert status == 200


def test_what_the_lab_writes_stays_in_the_lab(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("outside")
    output = bytearray()

    status = run(f"cat {file} && echo inside >{file} && cat {file}", output=output.extend)

    assert (status, output.decode()) == (0, "outsideinside\n")
    assert file.read_text() == "outside"


def test_the_deadline_ends_a_lab_that_hangs_and_leaves_no_process() -> None:
    before = children()

    with pytest.raises(LabTimedOut, match="did not end within 3 s"):
        run("sleep 1000", timeout=3, output=bytes)

    assert children() == before


def test_a_lab_that_dies_says_so() -> None:
    with pytest.raises(LabDied, match="no-such-device"):
        run("true", qemu_arguments=["-device", "no-such-device"], output=bytes)


def test_the_lab_does_not_outlive_its_runner(tmp_path: Path) -> None:
    runner = subprocess.Popen(
        [sys.executable, "-m", "tests.lab.run", "--", "echo up; sleep 1000"],
        cwd=packages.PROJECT,
        # A killed runner leaves its scratch folder behind.
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
    )
    assert runner.stdout is not None
    assert runner.stdout.readline() == b"up\n"
    (emulator,) = Path(f"/proc/{runner.pid}/task/{runner.pid}/children").read_text().split()
    watch = os.pidfd_open(int(emulator))
    try:
        runner.kill()
        runner.wait()
        assert select.select([watch], [], [], 30.0)[0], "QEMU is still there"
    finally:
        os.close(watch)
        runner.stdout.close()
