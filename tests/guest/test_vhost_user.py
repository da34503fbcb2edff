"""Stock Linux on our devices under front-ends that nobody here wrote: QEMU and user-mode Linux."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kernels import debian
from tests.support.leaks import none_left
from tests.support.linux import make_disk
from tests.support.packages import PROJECT
from tests.support.peers import DEADLINE, QEMU, UML, Served, lacks, qemu, user_mode_linux
from tests.support.skips import unless_there_is_a_kernel

pytestmark = pytest.mark.slow

needs_uml = pytest.mark.skipif(bool(lacks(UML)), reason=lacks(UML))
needs_qemu = pytest.mark.skipif(bool(lacks(QEMU)), reason=lacks(QEMU))

INIT = (PROJECT / "tests" / "lab" / "l2_init.sh").read_text()

# Writes for as long as it takes to be disturbed, and reads all of it back from the disk.
BUSY = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in /modules/*; do insmod "$module"; done
echo "guest: queues $(ls /sys/block/vda/mq | xargs)"
echo "write through" >/sys/block/vda/cache_type
echo "guest: cache $(cat /sys/block/vda/cache_type)"
mount -t ext4 /dev/vda /mnt && cd /mnt
for number in $(seq 40); do
    dd if=/dev/urandom of="data$number" bs=64k count=2 conv=fsync 2>/dev/null ||
        echo "guest: cannot write data$number"
    echo "guest: wrote $number."
done
sha256sum data* >/tmp/sums
sync
echo 3 >/proc/sys/vm/drop_caches
sha256sum -c -s /tmp/sums && echo "guest: sums hold for $(grep -c . /tmp/sums) files"
cd /
umount /mnt && echo "guest: unmounted"
poweroff -f
"""


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    with none_left():
        yield


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return make_disk(tmp_path / "disk.img", 16 << 20)


@pytest.fixture
def _kernel() -> None:
    with unless_there_is_a_kernel():
        debian("cloud-amd64")


@needs_uml
def test_user_mode_linux_writes_a_disk_and_finds_it_again(tmp_path: Path, disk: Path) -> None:
    path = tmp_path / "blk"
    with Served(path, "blk", f"path={disk}", "engine=io_uring") as served:
        for found in ("guest: wrote 8 files", "guest: sums hold for 8 files"):
            with user_mode_linux(tmp_path, INIT, [f"{path}:2"]) as linux:
                assert linux.wait() == 0, linux.said
            assert "guest: mounted 32768 sectors" in linux.said
            assert found in linux.said
            assert "guest: unmounted" in linux.said
        assert served.end() == 128 + signal.SIGINT
    assert "blk error" not in served.said
    assert not path.exists()


@needs_qemu
@pytest.mark.usefixtures("_kernel")
def test_qemu_writes_a_disk_and_finds_it_again_and_has_entropy(tmp_path: Path, disk: Path) -> None:
    blk, rng, before = tmp_path / "blk", tmp_path / "rng", disk.read_bytes()
    words = ("blk", f"path={disk}", f"overlay={disk}.cow")
    devices = [("vhost-user-blk-pci", blk), ("vhost-user-rng-pci", rng)]
    with Served(blk, *words) as served, Served(rng, "rng") as entropy:
        for found in ("guest: wrote 8 files", "guest: sums hold for 8 files"):
            with qemu(INIT, "q35", devices) as linux:
                assert linux.wait() == 0, linux.said
            assert found in linux.said
            assert "guest: unmounted" in linux.said
            assert re.search("guest: entropy [0-9a-f]{64}\n", linux.said)
    assert "error" not in served.said + entropy.said
    assert disk.read_bytes() == before


@needs_qemu
@pytest.mark.usefixtures("_kernel")
def test_a_guest_of_qemu_loses_nothing_when_the_disks_process_is_killed_and_run_again(
    tmp_path: Path, disk: Path
) -> None:
    path = tmp_path / "blk"
    words = ("blk", f"path={disk}", "queues=2")
    with Served(path, *words) as first:
        # What is in flight comes back with the connection; QEMU comes back by itself.
        devices = [("vhost-user-blk-pci,num-queues=2", path)]
        with qemu(BUSY, "q35", devices, chardev=",reconnect=1", cpus=2) as linux:
            linux.waits_for("guest: wrote 5.")
            os.kill(first.device("blk"), signal.SIGKILL)
            first.waits_for("blk was killed by SIGKILL")
            linux.waits_for("guest: wrote 15.")
            first.process.kill()
            first.wait()
            path.unlink()  # who was killed could not
            with Served(path, *words):
                assert linux.wait(DEADLINE) == 0, linux.said
    assert "guest: queues 0 1\n" in linux.said
    assert "guest: cache write through\n" in linux.said
    assert "guest: sums hold for 40 files" in linux.said
    assert "guest: unmounted" in linux.said
    assert "cannot write" not in linux.said
