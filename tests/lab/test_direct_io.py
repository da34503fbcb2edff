"""A disk dies while a real one is at work for it: the kernel's null_blk, which takes its time."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.guest import STREAM, build, demo
from tests.support.recovery import victim

pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(600),
    pytest.mark.skipif("VIBE_LAB" not in os.environ, reason="runs inside `make lab`"),
]

# As configfs has it: memory for sectors, completions by a timer. Arbitrary: 3 s are longer than
# a process takes to die and another to be ready.
SETTINGS = {"memory_backed": 1, "size": 16, "irqmode": 2, "completion_nsec": 3 * 10**9}


@pytest.fixture
def slow() -> Iterator[Path]:
    """Its folder below /sys/block."""
    subprocess.run(["modprobe", "null_blk", "nr_devices=0"], check=True)
    config = Path("/sys/kernel/config")
    if not (config / "nullb").exists():
        subprocess.run(["mount", "-t", "configfs", "none", str(config)], check=True)
    device = config / "nullb" / "nullb0"
    device.mkdir()
    for name, value in SETTINGS.items():
        (device / name).write_text(str(value))
    (device / "power").write_text("1")
    yield Path("/sys/block/nullb0")
    (device / "power").write_text("0")
    device.rmdir()
    subprocess.run(["modprobe", "-r", "null_blk"], check=False)  # unless somebody looks at it yet


def at_work(disk: Path) -> int:
    """Requests that it has not answered."""
    return sum(map(int, (disk / "inflight").read_text().split()))


def test_what_a_dead_disk_has_asked_for_is_done_before_the_next_one_begins(
    tmp_path: Path, slow: Path
) -> None:
    build()
    disk = f"blk,path=/dev/{slow.name},engine=io_uring,cache=none"
    with victim(tmp_path, demo(STREAM, sleep=True, count=1 << 31), external=disk) as machine:
        machine.wait_for("vmm info blk0 sealed: ")  # what was read before was not the guest's
        machine.until(lambda: at_work(slow), "a request")
        machine.kill("blk0")
        machine.wait_for("blk0 is dead; what the kernel still does for it is waited for")
        assert at_work(slow)
        machine.wait_for("vmm info blk0 sealed: ", 2)
        assert "blk0 recovered" not in machine.log
        machine.wait_for("blk0 recovered in ")
        machine.until(lambda: at_work(slow), "another request")
