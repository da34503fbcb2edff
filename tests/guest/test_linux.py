"""Stock Debian Linux on the software CPU: unmodified kernels, a process for each device."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import initramfs
from tests.support.kernels import Kernel, debian
from tests.support.packages import PROJECT
from tests.support.skips import unless_there_is_a_kernel
from tests.support.vibevmm import vibevmm
from tools import linux
from vmm.memory_map import slot_address

pytest.importorskip("unicorn", reason="the Unicorn engine is not installed")

# Seconds. A boot takes some ten; on a busy machine several times that.
DEADLINE = 300.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * DEADLINE)]

# Counts its boots on the disk; the first time it reboots.
REBOOTS_ONCE = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in /modules/*; do insmod "$module"; done
mount -t ext4 /dev/vda /mnt
echo boot >>/mnt/boots
boots=$(wc -l </mnt/boots)
echo "linux: boot $boots, from-host: $(sha256sum /mnt/from-host | cut -d ' ' -f 1)"
echo "linux: boot $boots, hwrng $(dd if=/dev/hwrng bs=16 count=1 2>/dev/null | xxd -p)"
echo "linux: boot $boots" >/dev/hvc0
umount /mnt
stty cs8 # waits until the serial port has sent all that
[ "$boots" -ge 2 ] && poweroff -f
reboot -f
"""

MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
COMMAND_LINE = "console=ttyS0 quiet panic=-1"


@dataclass(frozen=True)
class Boot:
    """What there was of one run: ``content`` is what the disk had for the guest; it printed
    ``lines`` on its serial port, and ``console`` on hvc0."""

    machine: str
    content: bytes
    lines: list[str]
    console: list[str]
    stats: dict[str, Any]

    def says(self, pattern: str) -> re.Match[str] | None:
        """The first of the guest's own lines that matches ``pattern`` as a whole."""
        matches = (re.fullmatch(f"linux: {pattern}", line) for line in self.lines)
        return next((match for match in matches if match), None)


@pytest.fixture(scope="module", params=MACHINES)
def boot(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Boot:
    """A run of Debian's cloud kernel for each architecture."""
    folder, content = tmp_path_factory.mktemp("linux"), os.urandom(linux.FILE_SIZE)
    kernel, initrd = guest(request.param, folder, content)
    done = vibevmm(
        *("--kernel", str(kernel.image), "--initrd", str(initrd), "--cmdline", COMMAND_LINE),
        *("--serial", f"file={folder / 'serial'}", "--disk", str(folder / "disk.img")),
        *("--console", "--device", "rng", "--stats", str(folder / "stats")),
        *("--hypervisor", "software", "--on-reboot", "exit"),  # which would be a panic
        deadline=DEADLINE,
    )
    assert done.returncode == 0, done.stderr
    return Boot(
        MACHINES[request.param],
        content,
        (folder / "serial").read_text().splitlines(),
        done.stdout.splitlines(),
        json.loads((folder / "stats").read_text()),
    )


def guest(
    architecture: str, folder: Path, content: bytes, init: str | None = None
) -> tuple[Kernel, Path]:
    """The kernel and its initial RAM disk; a disk with ``content`` is in ``folder``."""
    with unless_there_is_a_kernel():
        kernel = debian(f"cloud-{architecture}")
        init = init or (PROJECT / "tools" / "linux_init.sh").read_text()
        image = initramfs.build(kernel, init, linux.MODULES)
        linux.make_disk(folder, content)
    return kernel, image


def test_it_boots_and_powers_off(boot: Boot) -> None:
    assert boot.says(rf"Linux \S+-cloud-\w+ {boot.machine}, up .*")
    assert boot.says(r"powering off, .*")
    assert boot.stats["ended"] == "power-off"


@pytest.mark.parametrize(
    ("kind", "driver", "slot"),
    [(3, "virtio_console", 0), (2, "virtio_blk", 1), (4, "virtio_rng", 3)],
)
def test_it_finds_its_devices_at_their_slots(boot: Boot, kind: int, driver: str, slot: int) -> None:
    where = boot.says(rf"virtio\d at (\S+), device id {kind}: {driver}")

    assert where is not None
    # Named by ACPI, in the order of the slots, or after the address.
    assert boot.machine == "x86_64" or where[1] == f"{slot_address(slot):x}.virtio_mmio"


def test_it_reads_and_writes_its_disk(boot: Boot) -> None:
    assert boot.says(f"from-host: sha256 {hashlib.sha256(boot.content).hexdigest()}")
    assert boot.says("from-guest: written")
    assert boot.says("unmounted")


def test_it_writes_to_its_console(boot: Boot) -> None:
    assert boot.console == ["linux: a line on hvc0"]


def test_it_has_entropy_from_its_device(boot: Boot) -> None:
    entropy = boot.says("hwrng ([0-9a-f]{32})")

    assert entropy is not None
    (counters,) = (d["counters"] for d in boot.stats["devices"] if d["name"] == "rng0")
    assert counters["requestq.chains"] > 0


def test_each_device_was_a_process(boot: Boot) -> None:
    pids = {process["name"]: process["pid"] for process in boot.stats["processes"]}

    assert {"launcher", "vmm", "blk0", "console0", "rng0"} <= pids.keys()
    assert len(set(pids.values())) == len(pids)


@pytest.mark.parametrize("architecture", MACHINES)
def test_it_reboots_with_the_same_devices(architecture: str, tmp_path: Path) -> None:
    content = os.urandom(linux.FILE_SIZE)
    kernel, initrd = guest(architecture, tmp_path, content, REBOOTS_ONCE)

    done = vibevmm(
        *("--kernel", str(kernel.image), "--initrd", str(initrd), "--cmdline", COMMAND_LINE),
        *("--serial", f"file={tmp_path / 'serial'}", "--disk", str(tmp_path / "disk.img")),
        *("--console", "--device", "rng", "--hypervisor", "software"),
        deadline=DEADLINE,
    )

    said = (tmp_path / "serial").read_text()
    assert done.returncode == 0, done.stderr + said
    digest = hashlib.sha256(content).hexdigest()
    assert re.findall(r"linux: (boot \d), from-host: (\w+)", said) == [
        ("boot 1", digest),
        ("boot 2", digest),
    ]
    entropy = re.findall(r"hwrng ([0-9a-f]{32})", said)
    assert len(set(entropy)) == 2
    assert done.stdout.splitlines() == ["linux: boot 1", "linux: boot 2"]
