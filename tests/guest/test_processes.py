"""The demo guest with devices in processes of their own, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.bare import require_kvm
from tests.support.guest import DEMO, STREAM, build, demo

pytestmark = pytest.mark.kvm

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _kernels() -> None:
    require_kvm()
    build()


def run(folder: Path, image: bytes) -> tuple[str, dict[str, Any]]:
    """What the guest printed, and the statistics; every kind of device is there."""
    guest, disk, stats = folder / "guest.raw", folder / "disk.img", folder / "stats.json"
    guest.write_bytes(image)
    disk.write_bytes(bytes(64 * 512))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "launcher", "run", "--binary", guest, "--entry", "0x100000"),
            *("--mem", "64M", "--disk", disk, "--console", "terminal", "--device", "rng"),
            *("--stats", stats, "--timeout", "60"),
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(stats.read_text())


def returns_but_for_the_serial_port(stats: dict[str, Any]) -> int:
    """Of KVM_RUN; what the guest prints has a number in it, and so another length."""
    printed = sum(row["count"] for row in stats["exits"] if row["device"] == "serial")
    return stats["run_returns"] - printed


@pytest.mark.parametrize("sleep", [False, True])
def test_every_device_serves_the_guest_from_a_process_of_its_own(
    tmp_path: Path, sleep: bool
) -> None:
    printed, stats = run(tmp_path, demo(DEMO, sleep=sleep))

    assert "blk0 wrote 64 sectors, read them back, verified" in printed
    assert "rng0 gave 2 times 32 bytes, which differ" in printed
    assert "Hello from the demo guest, over virtio-console" in printed
    names = {process["name"] for process in stats["processes"]}
    assert names == {"launcher", "vmm", "blk0", "console0", "rng0"}
    assert len({process["pid"] for process in stats["processes"]}) == 5


@pytest.mark.parametrize("sleep", [False, True])
def test_a_thousand_requests_more_return_from_kvm_run_not_once_more(
    tmp_path: Path, sleep: bool
) -> None:
    _, few = run(tmp_path, demo(STREAM, sleep=sleep, count=1))
    _, many = run(tmp_path, demo(STREAM, sleep=sleep, count=1001))

    chains = [run["devices"][0]["counters"]["requestq.chains"] for run in (few, many)]
    assert chains[1] - chains[0] == 1000
    assert returns_but_for_the_serial_port(many) == returns_but_for_the_serial_port(few)
