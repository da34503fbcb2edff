"""The demo guest with devices in processes of their own, as a user runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.bare import require_kvm
from tests.support.guest import DEMO, STREAM, build, demo
from tests.support.vibevmm import run

pytestmark = pytest.mark.kvm


@pytest.fixture(autouse=True)
def _kernels() -> None:
    require_kvm()
    build()


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
    assert names == {"launcher", "vmm", "zygote", "blk0", "console0", "rng0"}
    assert len({process["pid"] for process in stats["processes"]}) == 6


@pytest.mark.parametrize("sleep", [False, True])
def test_a_thousand_requests_more_return_from_kvm_run_not_once_more(
    tmp_path: Path, sleep: bool
) -> None:
    _, few = run(tmp_path, demo(STREAM, sleep=sleep, count=1))
    _, many = run(tmp_path, demo(STREAM, sleep=sleep, count=1001))

    chains = [run["devices"][0]["counters"]["requestq.chains"] for run in (few, many)]
    assert chains[1] - chains[0] == 1000
    assert returns_but_for_the_serial_port(many) == returns_but_for_the_serial_port(few)
