"""Processes of a machine that runs are killed, stopped and starved: the guest notices nothing."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.support import urings
from tests.support.bare import at_jail
from tests.support.guest import DEMO, STREAM, build, demo
from tests.support.recovery import Victim, victim

pytestmark = pytest.mark.slow

# Sectors that the guest writes and reads back, in the demo mode. Arbitrary: enough that a guest is
# in the middle of it while a few processes die.
SECTORS = 4000

# Requests of the stream: without an end, for how many a guest makes meanwhile is up to the host.
FOR_EVER = 1 << 31


@pytest.fixture(autouse=True)
def _kernels() -> None:
    build()


def reading(victim: Victim, read: int = 64 << 10) -> None:
    """Wait until the guest is in the middle of its work: the disk's process, which serves, has read
    so much more. What it reads from its file goes straight to the guest: counted by the kernel."""
    victim.wait_for("launcher debug started: ")
    first: dict[int, int] = {}

    def so_far() -> bool:
        pid = victim.pids().get("blk0")
        if pid is None:
            return False
        try:
            io = Path(f"/proc/{pid}/io").read_text()
        except OSError:
            return False
        count = int(io.split("rchar:")[1].split()[0])
        return count > first.setdefault(pid, count) + read

    victim.until(so_far, "requests of the disk")


def stopped(victim: Victim) -> None:
    """See the guest go on, and stop the machine."""
    reading(victim, 4096)
    victim.process.send_signal(signal.SIGTERM)
    status, printed = victim.end()
    assert status == 0, printed


def recovered(victim: Victim, name: str, count: int = 1) -> None:
    """Wait until ``name`` was recovered for the ``count``-th time."""
    victim.wait_for(rf"{name} recovered in ", count)


@at_jail
@pytest.mark.parametrize("setting", ["overlay={}/disk.cow", "queues=2"], ids=["overlay", "queues"])
def test_disk_is_killed_again_and_again_and_everything_is_verified(
    tmp_path: Path, backend: str, isolation: str, setting: str
) -> None:
    options = ("--hypervisor", backend, "--isolation", isolation)
    image = demo(DEMO, count=SECTORS)
    with victim(tmp_path, image, *options, setting=setting.format(tmp_path)) as machine:
        for round_ in range(1, 6):
            reading(machine)
            machine.kill("blk0")
            recovered(machine, "blk0", round_)
        status, printed = machine.end()

    assert status == 0, printed
    assert f"blk0 wrote {SECTORS} sectors, read them back, verified" in printed
    assert "demo: done" in printed


@pytest.mark.parametrize(
    ("isolation", "sleep"),
    [("jail", False), ("jail", True), ("bounce", True)],
    ids=["jail-looking", "jail-interrupts", "bounce-interrupts"],
    indirect=["isolation"],
)
def test_every_device_is_killed_in_the_middle_of_a_stream(
    tmp_path: Path, backend: str, isolation: str, sleep: bool
) -> None:
    image = demo(STREAM, sleep=sleep, count=FOR_EVER)
    options = ("--hypervisor", backend, "--isolation", isolation)
    with victim(tmp_path, image, *options) as machine:
        reading(machine)
        for name in ("blk0", "rng0", "console0"):
            machine.kill(name)
        for name in ("blk0", "rng0", "console0"):
            recovered(machine, name)
        stopped(machine)


@at_jail
def test_stopped_disk_is_found_and_replaced(tmp_path: Path, backend: str, isolation: str) -> None:
    image = demo(DEMO, count=SECTORS)
    options = ("--hypervisor", backend, "--isolation", isolation, "--hang-after", "0.4")
    with victim(tmp_path, image, *options) as machine:
        reading(machine)
        machine.send("blk0", signal.SIGSTOP)
        # More than one, if on a busy host its predecessor or successor seemed to.
        hung, *_ = machine.wait_for(r"blk0 hangs: ")
        recovered(machine, "blk0")
        status, printed = machine.end()

    assert status == 0, printed
    assert "makes no progress" in hung or "does not answer" in hung
    assert f"blk0 wrote {SECTORS} sectors, read them back, verified" in printed


@pytest.mark.kvm
def test_stopped_device_without_work_is_found_as_well(tmp_path: Path) -> None:
    image = demo(STREAM, sleep=True, count=FOR_EVER)
    with victim(tmp_path, image, "--hang-after", "0.4") as machine:
        reading(machine)
        machine.send("rng0", signal.SIGSTOP)
        machine.wait_for(r"rng0 hangs: it does not answer")
        recovered(machine, "rng0")
        stopped(machine)


@pytest.mark.kvm
def test_killed_zygote_is_replaced_and_makes_successors(tmp_path: Path) -> None:
    with victim(tmp_path, demo(STREAM, sleep=True, count=FOR_EVER)) as machine:
        reading(machine)
        before = machine.kill("zygote")
        machine.until(lambda: machine.pids().get("zygote", before) != before, "a second zygote")
        # The first takes the spare that is there; those after it come from the second zygote.
        for round_ in range(1, 4):
            machine.kill("blk0")
            recovered(machine, "blk0", round_)
            reading(machine, 4096)
        stopped(machine)


@pytest.mark.kvm
@pytest.mark.parametrize("helper", ["zygote", "spare"])
def test_stopped_helper_is_seen_when_it_is_needed_and_replaced(tmp_path: Path, helper: str) -> None:
    with victim(tmp_path, demo(STREAM, sleep=True, count=FOR_EVER)) as machine:
        reading(machine)
        machine.send(helper, signal.SIGSTOP)
        for round_ in (1, 2):
            machine.kill("blk0")
            recovered(machine, "blk0", round_)
            reading(machine, 4096)
        stopped(machine)
        assert "a successor of blk0 failed" not in machine.log


@pytest.mark.kvm
def test_killed_spare_is_replaced(tmp_path: Path) -> None:
    with victim(tmp_path, demo(STREAM, sleep=True, count=FOR_EVER)) as machine:
        reading(machine)
        before = machine.kill("spare")
        machine.kill("blk0")  # at once, without one
        recovered(machine, "blk0")
        machine.until(lambda: machine.pids().get("spare", before) != before, "another spare")
        stopped(machine)


@pytest.mark.kvm
def test_successor_is_killed_on_its_way(tmp_path: Path) -> None:
    with victim(tmp_path, demo(DEMO, count=SECTORS)) as machine:
        reading(machine)
        killed: set[int | None] = {None}
        for _ in range(5):  # each as soon as there is one, in whatever state
            machine.until(lambda: machine.pids().get("blk0") not in killed, "another blk0")
            killed.add(machine.kill("blk0"))
        recovered(machine, "blk0")
        status, printed = machine.end()

    assert status == 0, printed
    assert f"blk0 wrote {SECTORS} sectors, read them back, verified" in printed


@pytest.mark.kvm
@pytest.mark.root
def test_what_the_kernel_does_for_a_dead_disk_is_waited_for(tmp_path: Path) -> None:
    # Who has its io_uring keeps it, as would direct I/O that takes its time.
    image, setting = demo(DEMO, count=SECTORS), "engine=io_uring,cache=none"
    with victim(tmp_path, image, setting=setting) as machine:
        machine.until(lambda: any((tmp_path / "disk.img").read_bytes()), "the first write")
        ring = urings.duplicate(machine.pids()["blk0"])
        machine.kill("blk0")
        machine.wait_for("blk0 is dead; what the kernel still does for it is waited for")
        machine.wait_for("blk0 sealed: ", 2)
        assert "recovered" not in machine.log
        os.close(ring)
        recovered(machine, "blk0")
        status, printed = machine.end()

    assert status == 0, printed
    assert f"blk0 wrote {SECTORS} sectors, read them back, verified" in printed


def test_fail_io_gives_the_guest_errors(tmp_path: Path, backend: str) -> None:
    image = demo(STREAM, count=FOR_EVER)
    options = ("--hypervisor", backend)
    with victim(tmp_path, image, *options, on_death="fail-io") as machine:
        reading(machine)
        machine.kill("blk0")
        status, printed = machine.end()

    assert status == 1  # a guest that panics
    assert "demo: FAILED: disk request 0 at sector 0 ended with status 1" in printed


@pytest.mark.kvm
def test_stop_vm_ends_the_machine_and_names_the_device(tmp_path: Path) -> None:
    image = demo(STREAM, sleep=True, count=FOR_EVER)
    with victim(tmp_path, image, on_death="stop-vm") as machine:
        reading(machine)
        machine.kill("blk0")
        status, printed = machine.end()

    assert status == 3
    assert "vibevmm: blk0 was killed by SIGKILL" in printed


@pytest.mark.kvm
def test_pause_vm_says_so_and_the_machine_can_be_stopped(tmp_path: Path) -> None:
    image = demo(STREAM, sleep=True, count=FOR_EVER)
    with victim(tmp_path, image, on_death="pause-vm") as machine:
        reading(machine)
        machine.kill("blk0")
        machine.wait_for_print("vibevmm: blk0 was killed by SIGKILL; the guest is paused")
        assert "blk0" not in machine.pids()
        machine.process.send_signal(signal.SIGTERM)
        status, printed = machine.end()

    assert status == 0, printed


@pytest.mark.kvm
def test_machine_is_stopped_in_the_middle_of_a_recovery(tmp_path: Path) -> None:
    with victim(tmp_path, demo(STREAM, sleep=True, count=FOR_EVER)) as machine:
        reading(machine)
        processes = machine.pids()
        machine.kill("blk0")
        machine.process.send_signal(signal.SIGTERM)
        status, printed = machine.end()

    assert status == 0, printed
    assert not [pid for pid in processes.values() if os.path.exists(f"/proc/{pid}")]


@pytest.mark.kvm
@pytest.mark.slow
def test_sixty_deaths_leave_no_descriptor(tmp_path: Path) -> None:
    def held(pid: int) -> int:
        return len(os.listdir(f"/proc/{pid}/fd"))

    image = demo(STREAM, sleep=True, count=FOR_EVER)
    options = ("--timeout", "115")
    with victim(tmp_path, image, *options) as machine:
        reading(machine)
        names = ("blk0", "rng0", "console0")
        rounds, before = 0, (0, 0)
        for rounds in range(1, 61):
            name = names[rounds % 3]
            # Three rounds are longer than what makes a process healthy (launcher.policy): of those
            # that die sooner the successors are held back, the longer the more there are.
            time.sleep(0.05)
            machine.kill(name)
            recovered(machine, name, (rounds + 2) // 3)
            if rounds == 20:
                machine.until(lambda: "spare" in machine.pids(), "a spare")
                before = held(machine.process.pid), held(machine.pids()["vmm"])
        machine.until(lambda: "spare" in machine.pids(), "a spare")
        after = held(machine.process.pid), held(machine.pids()["vmm"])
        machine.process.send_signal(signal.SIGTERM)
        assert machine.end()[0] == 0

    # A few more or less, of the last deaths, may not be closed yet.
    assert abs(after[0] - before[0]) < 10
    assert abs(after[1] - before[1]) < 10
