"""Whole machines on back-ends that nobody here wrote, which are killed, replaced and swapped."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from launcher.api import VM
from launcher.client import Refused
from protocol.control import Event
from tests.guest.test_recovery import recovered
from tests.soak.bare import Bare
from tests.support import initramfs
from tests.support.daemons import (
    STORAGE_DAEMON,
    VIRTIOFSD,
    lacks,
    storage_daemon,
    virtiofsd,
)
from tests.support.guest import DEMO, build, demo
from tests.support.kernels import debian
from tests.support.leaks import none_left
from tests.support.peers import DEADLINE, Program, Served
from tests.support.recovery import Victim, victim
from tests.support.skips import unless_there_is_a_kernel
from tools import linux

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(lacks(STORAGE_DAEMON)), reason=lacks(STORAGE_DAEMON)),
]

# Sectors that the guest writes and reads back (arbitrary: enough to be killed in the middle).
SECTORS = 1000


@pytest.fixture(autouse=True)
def _kernels() -> Iterator[None]:
    build()
    with none_left():
        yield


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(8 << 20))
    return path


def working(machine: Victim, pid: int) -> None:
    """Wait until the guest is in the middle of its work: until the daemon has moved some more."""
    machine.wait_for("blk0 sealed")
    before = moved(pid)
    machine.until(lambda: moved(pid) > before + 16384, "requests of the daemon")


def moved(pid: int) -> int:
    """The bytes that the process has read and written."""
    io = Path(f"/proc/{pid}/io").read_text()
    return sum(int(io.split(f"{key}: ")[1].split()[0]) for key in ("rchar", "wchar"))


def recovered_from(vm: VM, generation: int) -> None:
    """Wait until another process of the disk than that serves."""
    for event in vm.events():
        assert isinstance(event, Event)
        if event.kind == "recovered" and event.generation > generation:
            return
    raise AssertionError("the machine is gone")


def test_a_back_end_is_killed_again_and_again_and_everything_is_verified(
    tmp_path: Path, image: Path, backend: str, isolation: str
) -> None:
    path = tmp_path / "socket"
    options = ("--hypervisor", backend, "--isolation", isolation)
    external = f"vhost-user,type=blk,socket={path}"
    daemon = storage_daemon(path, image)
    with victim(tmp_path, demo(DEMO, count=SECTORS), *options, external=external) as machine:
        for round_ in range(1, 3):
            working(machine, daemon.process.pid)
            daemon.close()
            daemon = storage_daemon(path, image)
            recovered(machine, "blk0", round_)
        working(machine, daemon.process.pid)
        machine.kill("blk0")  # and our own process
        recovered(machine, "blk0", 3)
        status, printed = machine.end()
    daemon.close()

    assert status == 0, printed
    assert f"blk0 wrote {SECTORS} sectors, read them back, verified" in printed
    assert "demo: done" in printed


@pytest.mark.kvm
def test_one_that_keeps_a_journal_is_killed_on_the_guests_own_rings(
    tmp_path: Path, image: Path
) -> None:
    path = tmp_path / "socket"
    external = f"vhost-user,type=blk,socket={path},direct=on"
    with (
        Served(path, "blk", f"path={image}") as served,
        victim(tmp_path, demo(DEMO, count=SECTORS), external=external) as machine,
    ):
        for round_ in range(1, 3):
            pid = served.device("blk")
            working(machine, pid)
            os.kill(pid, signal.SIGKILL)
            recovered(machine, "blk0", round_)
        status, printed = machine.end()

    assert status == 0, printed
    assert f"blk0 wrote {SECTORS} sectors, read them back, verified" in printed


# What is on the disk and in the folder is what the host put there, and the other way round; and
# what is written while the disk's program dies is there afterwards.
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in /modules/*; do insmod "$module"; done
mkdir /share
mount -t ext4 /dev/vda /mnt
mount -t virtiofs share /share
echo "linux: disk $(sha256sum /mnt/from-host | cut -d ' ' -f 1)"
echo "linux: folder $(sha256sum /share/from-host | cut -d ' ' -f 1)"
cp /mnt/from-host /share/copied
cd /mnt
for number in $(seq 8); do
    dd if=/share/from-host of="data$number" bs=64k count=2 conv=fsync 2>/dev/null || echo "no"
    echo "linux: wrote $number."
done
sha256sum data* >/tmp/sums
sync
echo 3 >/proc/sys/vm/drop_caches
sha256sum -c -s /tmp/sums && echo "linux: sums hold for $(grep -c . /tmp/sums) files"
cd /
umount /share
umount /mnt && echo "linux: unmounted"
stty cs8 # waits until the serial port has sent all that
poweroff -f
"""


@pytest.mark.root
@pytest.mark.timeout(300)
@pytest.mark.skipif(bool(lacks(VIRTIOFSD)), reason=lacks(VIRTIOFSD))
def test_stock_linux_has_a_disk_and_a_shared_folder_of_others_and_the_disks_program_is_killed(
    tmp_path: Path,
) -> None:
    pytest.importorskip("unicorn", reason="the Unicorn engine is not installed")
    on_disk, shared = os.urandom(1 << 20), os.urandom(1 << 20)
    with unless_there_is_a_kernel():
        kernel = debian("cloud-amd64")
        initrd = initramfs.build(kernel, INIT, (*linux.MODULES, "virtiofs"))
        linux.make_disk(tmp_path, on_disk)
    image, folder = tmp_path / "disk.img", tmp_path / "folder"
    folder.mkdir()
    (folder / "from-host").write_bytes(shared)
    blk, fs = tmp_path / "blk", tmp_path / "fs"
    command = [
        *(sys.executable, "-m", "launcher", "run", "--timeout", "200"),
        *("--kernel", str(kernel.image), "--initrd", str(initrd)),
        *("--cmdline", "console=ttyS0 quiet panic=-1", "--hypervisor", "software"),
        *("--device", f"vhost-user,type=blk,socket={blk},num-queues=2"),
        *("--device", f"vhost-user,type=fs,socket={fs},tag=share,isolation=bounce"),
    ]

    with storage_daemon(blk, image, queues=2) as first, virtiofsd(fs, folder) as daemon:
        with Program(command) as guest:
            guest.waits_for("linux: wrote 3.")
            first.close()
            with storage_daemon(blk, image, queues=2):
                assert guest.wait(DEADLINE) == 0, guest.said
        assert daemon.process.wait(DEADLINE) == 0  # with its front-end

    assert f"linux: disk {sha256(on_disk).hexdigest()}\n" in guest.said
    assert f"linux: folder {sha256(shared).hexdigest()}\n" in guest.said
    assert "linux: sums hold for 8 files" in guest.said
    assert "linux: unmounted" in guest.said
    assert "no\n" not in guest.said
    assert (folder / "copied").read_bytes() == on_disk


@pytest.mark.kvm
def test_a_back_end_that_hangs_is_left_and_found_again(tmp_path: Path, image: Path) -> None:
    path = tmp_path / "socket"
    external = f"vhost-user,type=blk,socket={path}"
    with (
        storage_daemon(path, image) as daemon,
        victim(
            tmp_path, demo(DEMO, count=SECTORS), "--hang-after", "0.4", external=external
        ) as machine,
    ):
        working(machine, daemon.process.pid)
        daemon.send(signal.SIGSTOP)
        machine.wait_for("blk0 hangs: ")
        machine.wait_for("a successor of blk0 failed")
        daemon.send(signal.SIGCONT)
        recovered(machine, "blk0")
        status, printed = machine.end()

    assert status == 0, printed
    assert f"blk0 wrote {SECTORS} sectors, read them back, verified" in printed


@pytest.mark.usefixtures("runtime")
def test_a_loaded_disk_of_ours_is_swapped_for_one_of_others_and_back(
    tmp_path: Path, backend: str
) -> None:
    path = tmp_path / "socket"
    guest = Bare(7, backend, isolation="bounce")
    with contextlib.closing(guest), VM(**guest.options(tmp_path)) as vm:
        vm.wait_ready()
        guest.begin(vm)
        disk = tmp_path / "disk.img"
        for _ in range(2):
            with storage_daemon(path, disk) as daemon:
                vm.swap("blk0", "vhost-user", type="blk", socket=str(path))
                theirs = vm.restart("blk0")
                daemon.kill()
                with storage_daemon(path, disk):
                    recovered_from(vm, theirs.generation)
                    vm.swap("blk0", "blk", path=str(disk))
        guest.end(vm)
        verdict = guest.verdict()

    assert not verdict.errors
    assert (verdict.lost, verdict.corrupted) == (0, 0)
    assert verdict.requests["blk0"] > 100


@pytest.mark.kvm
@pytest.mark.usefixtures("runtime")
def test_where_no_mediator_stands_nobody_without_a_journal_follows(
    tmp_path: Path, image: Path
) -> None:
    path = tmp_path / "socket"
    guest = Bare(7, "kvm")
    with (
        contextlib.closing(guest),
        storage_daemon(path, image),
        VM(**guest.options(tmp_path)) as vm,
    ):
        vm.wait_ready()
        with pytest.raises(Refused, match="it keeps no journal, and no mediator stands before"):
            vm.swap("blk0", "vhost-user", type="blk", socket=str(path))
