"""Stock Debian Linux on the VMM, on real kvm_amd: boots, and uses every device, twice."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import linux
from tests.support.linux import Report

pytestmark = [
    pytest.mark.lab,
    # A boot takes about ten seconds here, several times that on a busy machine.
    pytest.mark.timeout(600),
    pytest.mark.skipif("VIBE_LAB" not in os.environ, reason="runs inside `make lab`"),
]

DISK_SIZE = 64 << 20
GUEST_DEADLINE = 180.0
WORDS = "the answer is 42"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return linux.make_disk(tmp_path_factory.mktemp("disk") / "disk.img", DISK_SIZE)


@pytest.fixture(scope="module")
def first(disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return boot(disk, tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def second(first: Report, disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return boot(disk, tmp_path_factory.mktemp("second"))


def test_linux_powers_off_with_status_0(first: Report) -> None:
    assert first.says(r"done [0-9.]+"), first.serial
    assert first.status == 0


def test_both_cpus_come_up(first: Report) -> None:
    assert first.says("cpus 2"), first.serial


def test_hwrng_is_fed_by_virtio_rng(first: Report, second: Report) -> None:
    entropy = r"entropy ([0-9a-f]{64})"
    assert first.says(r"rng virtio_rng\.0"), first.serial
    one, other = first.says(entropy), second.says(entropy)
    assert one is not None
    assert other is not None
    assert one[1] != other[1]


def test_ext4_on_the_disk_is_mounted_written_and_unmounted(first: Report) -> None:
    assert first.says(f"mounted {DISK_SIZE // 512} sectors"), first.serial
    assert first.says("wrote 8 files"), first.serial
    assert first.says("unmounted"), first.serial


def test_what_the_first_boot_wrote_the_second_one_reads(second: Report) -> None:
    assert second.says("sums hold for 8 files"), second.serial
    assert second.status == 0


def test_the_file_system_is_clean_to_the_hosts_own_checker(second: Report, disk: Path) -> None:
    checked = subprocess.run(["/sbin/e2fsck", "-f", "-n", str(disk)], capture_output=True)
    assert checked.returncode == 0, checked.stdout.decode()


def test_console_carries_words_both_ways(first: Report) -> None:
    assert first.says(f"console heard {WORDS}"), first.serial
    assert f"guest: heard {WORDS}" in first.console


def boot(disk: Path, folder: Path) -> Report:
    """Run the guest once, with somebody at the other end of its console."""
    console = folder / "console.sock"
    # fmt: off
    command = [
        str(linux.VIBEVMM), "run",
        "--kernel", str(linux.kernel()), "--initrd", str(linux.initrd()),
        "--cmdline", linux.COMMAND_LINE, "--cpus", "2", "--mem", "512M",
        "--disk", f"path={disk},format=raw",
        "--console", f"backend=socket,path={console}", "--device", "rng",
        "--on-reboot", "exit", "--timeout", str(int(GUEST_DEADLINE)),
    ]
    # fmt: on
    serial = folder / "serial"
    with serial.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        heard = talk(console, lambda: process.poll() is None)
        # The program's own deadline ends it; this one is for a program that ignores it.
        status = process.wait(timeout=GUEST_DEADLINE + 30)
    finally:
        process.kill()
        process.wait()
    return Report(status, serial.read_text(errors="replace"), heard)


def talk(path: Path, alive: Callable[[], bool]) -> str:
    """Say WORDS when asked to; what was heard until the guest ended or answered."""
    heard = b""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(1.0)
        while alive():
            try:
                line.connect(str(path))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                time.sleep(0.05)
        told = False
        while alive() and not heard.rstrip().endswith(WORDS.encode()):
            try:
                received = line.recv(4096)
            except TimeoutError:
                continue
            except ConnectionResetError:
                break
            if not received:
                break
            heard += received
            if not told and b"say something" in heard:
                line.sendall(WORDS.encode() + b"\n")
                told = True
    return heard.decode(errors="replace")
