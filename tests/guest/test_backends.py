"""The demo guest with device processes, on every backend that this host has: they are the same."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.support.bare import require_kvm
from tests.support.guest import DEMO, EXECUTE, STREAM, build, demo
from tests.support.vibevmm import raw, run, vibevmm

pytestmark = pytest.mark.slow

BACKENDS = [pytest.param("kvm", marks=pytest.mark.kvm), "software"]

SECTOR, SECTORS = 512, 32


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """The options that choose each."""
    if request.param == "kvm":
        require_kvm()
    build()
    return str(request.param)


@pytest.mark.parametrize("sleep", [False, True], ids=["looking", "interrupts"])
def test_every_device_serves_the_guest(backend: str, sleep: bool, tmp_path: Path) -> None:
    printed, stats = run(tmp_path, demo(DEMO, sleep=sleep), "--hypervisor", backend)

    assert "blk0 wrote 64 sectors, read them back, verified" in printed
    assert "rng0 gave 2 times 32 bytes, which differ" in printed
    assert "Hello from the demo guest, over virtio-console" in printed
    (blk,) = (device for device in stats["devices"] if device["name"] == "blk0")
    counters = {name: blk["counters"][name] for name in ("reads", "writes", "flushes")}
    assert counters == {"reads": 64, "writes": 64, "flushes": 1}
    assert blk["counters"]["requestq.chains"] == 129


def code(number: int) -> bytes:
    """A function that returns ``number``: mov $number, %eax; ret."""
    return (b"\xb8" + struct.pack("<I", number) + b"\xc3").ljust(SECTOR, b"\xcc")


def test_code_that_a_device_keeps_rewriting_runs_as_it_is_now(backend: str, tmp_path: Path) -> None:
    disk = tmp_path / "code.img"
    disk.write_bytes(b"".join(code(0x1234567 * sector) for sector in range(1, SECTORS + 1)))
    guest = raw(tmp_path, demo(EXECUTE, sleep=True, count=1000))

    done = vibevmm(*guest, "--disk", str(disk), "--hypervisor", backend)

    assert (done.returncode, done.stderr) == (0, "")
    assert "demo: ran 1000 pages of code from the disk" in done.stdout


def test_no_wake_up_is_lost_in_ten_thousand_requests_that_wait_for_an_interrupt(
    backend: str, tmp_path: Path
) -> None:
    """Each is a handshake of two: the driver suppresses interrupts and asks for them again with
    EVENT_IDX. A lost one is a hang, which the time limit ends."""
    guest = demo(STREAM, sleep=True, count=10_000)

    _, stats = run(tmp_path, guest, "--hypervisor", backend)

    (blk,) = (device for device in stats["devices"] if device["name"] == "blk0")
    assert blk["counters"]["reads"] == 10_000
