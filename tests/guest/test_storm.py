"""A device that interrupts without end harms its own line, which no other device has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.api import VM
from tests.support.guest import demo

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("runtime")]

DEADLINE = 60.0

# From when its driver is there, whether it is asked for something or not.
STORM = """
from devices.rng import Rng
from protocol import doorbell

class Storm(Rng):
    def __init__(self, config, fds, runtime):
        super().__init__(config, fds, runtime)
        self.call = fds["call"]

    def start(self, features):
        super().start(features)
        self.soon(self.storm)

    def storm(self):
        doorbell.ring(self.call)
        self.counters["storms"] += 1
        self.soon(self.storm)
"""


def test_a_device_serves_by_interrupt_while_another_storms(
    backend: str, isolation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On copies, or where the VMM is between guest and device anyhow, nothing of it is heard.
    reaches = (backend, isolation) == ("kvm", "jail")
    (tmp_path / "storm.py").write_text(STORM)
    monkeypatch.syspath_prepend(str(tmp_path))
    disks = [tmp_path / "first.img", tmp_path / "second.img"]
    for disk in disks:
        disk.write_bytes(bytes(64 * 512))
    (tmp_path / "guest.raw").write_bytes(demo(sleep=True, outlast=reaches))
    with VM(
        binary=tmp_path / "guest.raw",
        entry="0x100000",
        mem="64M",
        hypervisor=backend,
        isolation=isolation,
        # In the order in which the guest drives them: first disk, storm, second disk.
        devices=["storm:Storm,id=storm", *(f"blk,{disk}" for disk in disks)],
        timeout=90,
        serial=f"file={tmp_path}/serial",
        stats=str(tmp_path / "stats"),
    ) as vm:
        status = vm.wait(DEADLINE)

    # It sleeps until the interrupt of each request, and nothing else wakes it.
    assert status == 0
    said = (tmp_path / "serial").read_text()
    assert ("slot 3 stormed, its line is off" in said) == reaches
    assert "blk1 wrote 64 sectors, read them back, verified" in said
    devices = {
        each["name"]: each for each in json.loads((tmp_path / "stats").read_text())["devices"]
    }
    assert devices["storm"]["counters"]["storms"]
