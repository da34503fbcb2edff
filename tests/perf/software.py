"""The software CPU: exits, instructions, and stock Linux's way to /init, the last two against QEMU.

QEMU runs its own translator (TCG) on the same guests, with the same kinds of device, in turn with
us; it is there where the lab is.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from protocol.errors import HostError
from tests.perf.exits import CountDown
from tests.perf.lab_boot import until
from tests.support.bare import BACKEND, CODE, DEVICE, bare_machine
from tests.support.packages import PROJECT
from tools import linux
from vmm.bus import Bus

EXITS, TURNS = 100_000, 9
# Arbitrary; the first boot of each is not counted.
PAIRS, BOOTS = 5, 3
# QEMU's microvm hangs now and then before the kernel's first word, on a busy host; then it is
# started again, so often at most; seconds until it is taken for hung.
TRIES, DEADLINE = 3, 60.0
MARKER = b"linux: Linux"  # the first line of tools/linux_init.sh

# fmt: off
QEMU = (
    "qemu-system-x86_64", "-M", "microvm,acpi=on", "-accel", "tcg", "-cpu", "max",
    "-nodefaults", "-display", "none", "-no-reboot",
)
# fmt: on

# 1: mov [rdi], eax; jmp 1b, and mov eax, [rdi]
MMIO = {"writes": "89 07 eb fc", "reads": "8b 07 eb fc"}
# What ticks.S does between its marks: how many instructions of which kind.
WORK = {"registers": 4 * 100_000_000, "memory": 5 * 40_000_000, "calls": 4 * 25_000_000}
MARKS = (b"{", b"|", b"}", b"~")


class Answering(CountDown):
    """The same for a guest that reads."""

    def read(self, offset: int, size: int) -> int:
        self.write(offset, size, 0)
        return 0


def measure() -> dict[str, object]:
    """MMIO exits per second; then guest instructions per second, and boots, with QEMU's."""
    token = BACKEND.set("software")
    try:
        found: dict[str, object] = {
            f"MMIO {kind} of a device in Python, k/s": round(_exits(code) / 1e3)
            for kind, code in MMIO.items()
        }
    finally:
        BACKEND.reset(token)
    if not shutil.which("qemu-system-x86_64"):
        return found | {"against QEMU": "no qemu-system-x86_64 here"}
    for what, figures in {"instructions": _instructions, "boots": _boots}.items():
        try:
            found |= figures()
        except HostError as error:
            found[what] = str(error)
    return found


def _exits(code: str) -> float:
    with bare_machine(code) as machine:
        machine.start_at(CODE, rdi=DEVICE)
        bus, device = Bus(), Answering(machine.vcpu)
        bus.add_mmio(DEVICE, 4096, device)
        rates = []
        for _ in range(TURNS):
            device.left = EXITS
            begin = time.perf_counter()
            machine.vcpu.run(bus)
            rates.append(EXITS / (time.perf_counter() - begin))
    return statistics.median(rates)


def _instructions() -> dict[str, object]:
    rates: dict[str, list[tuple[float, float]]] = {kind: [] for kind in WORK}
    with tempfile.TemporaryDirectory() as folder:
        guest = Path(folder) / "ticks.elf"
        source = Path(__file__).with_name("ticks.S")
        layout = "-Wl,-Ttext=0x100000,-Tdata=0x200000,-e,pvh,-z,noexecstack"
        link = ["cc", "-nostdlib", "-static", "-no-pie", layout, "-o", str(guest), str(source)]
        subprocess.run(link, check=True)
        for _ in range(PAIRS):
            ours, theirs = _rates(_our_ticks(guest)), _rates(_qemus_ticks(guest))
            for kind in WORK:
                rates[kind].append((ours[kind], theirs[kind]))
    found: dict[str, object] = {}
    for kind, pairs in rates.items():
        ours_median, theirs_median = (
            round(statistics.median(r) / 1e6) for r in zip(*pairs, strict=True)
        )
        name = f"instructions on {kind}, the timer ticking"
        found[f"{name}, M/s"] = {"vibevmm": ours_median, "qemu_tcg": theirs_median}
        ratio = statistics.median(ours / theirs for ours, theirs in pairs)
        found[f"{name}, ratio to QEMU's TCG"] = round(ratio, 3)
    return found


def _rates(command: Sequence[str]) -> dict[str, float]:
    # Instructions per second, of each kind of work.
    took = pairwise(until(command, MARKS))
    return {kind: WORK[kind] / (end - begin) for kind, (begin, end) in zip(WORK, took, strict=True)}


def _boots() -> dict[str, object]:
    files, _ = linux.prepare("amd64")
    seconds: dict[str, list[float]] = {"vibevmm": [], "qemu_tcg": []}
    memory = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(BOOTS + 1):
            time_of, memory = _boot(_ours(files, Path(folder)))
            seconds["vibevmm"].append(time_of)
            seconds["qemu_tcg"].append(_boot(_qemus(files))[0])
    ours, theirs = (statistics.median(times[1:]) for times in seconds.values())
    return {
        "command to /init, s": {key: [round(t, 2) for t in v] for key, v in seconds.items()},
        "command to /init, ratio to QEMU's TCG": round(ours / theirs, 2),
        "the VMM's own memory beside the guest's 512 MiB, MiB": round(memory),
    }


def _boot(command: Sequence[str]) -> tuple[float, float]:
    # Seconds, and MiB of the VMM's own memory then.
    memory: list[float] = []
    for last in (*[False] * (TRIES - 1), True):
        try:
            (took,) = until(
                command, [MARKER], lambda pid: memory.append(_own_memory(pid)), DEADLINE
            )
            return took, memory[-1]
        except HostError as error:
            if last:
                raise
            print(f"  {error}", file=sys.stderr)
    raise AssertionError("unreachable")


def _own_memory(launcher: int) -> float:
    # MiB that the VMM, the first child, has besides guest memory: what is not of its memfd.
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    if not children:
        return 0.0
    status = Path(f"/proc/{children[0]}/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


def _ours(files: Path, folder: Path) -> list[str]:
    # fmt: off
    return [
        str(PROJECT / ".venv/bin/vibevmm"), "run", "--hypervisor", "software",
        "--kernel", str(files / "vmlinuz"), "--initrd", str(files / "initrd"),
        "--cmdline", "console=ttyS0 quiet panic=-1", "--mem", "512M",
        "--disk", f"path={files / 'disk.img'},format=raw",
        "--console", f"backend=socket,path={folder / 'console'}", "--device", "rng",
    ]
    # fmt: on


def _our_ticks(guest: Path) -> list[str]:
    vibevmm = str(PROJECT / ".venv/bin/vibevmm")
    return [vibevmm, "run", "--hypervisor", "software", "--kernel", str(guest), "--mem", "64M"]


def _qemus_ticks(guest: Path) -> list[str]:
    return [*QEMU, "-m", "64M", "-kernel", str(guest), "-serial", "stdio"]


def _qemus(files: Path) -> list[str]:
    # fmt: off
    return [
        *QEMU, "-m", "512M", "-global", "virtio-mmio.force-legacy=false",
        "-kernel", str(files / "vmlinuz"), "-initrd", str(files / "initrd"),
        "-append", "console=ttyS0 quiet panic=-1", "-serial", "stdio",
        "-drive", f"id=disk,file={files / 'disk.img'},format=raw,if=none",
        "-device", "virtio-blk-device,drive=disk",
        "-device", "virtio-serial-device", "-chardev", "null,id=hvc",
        "-device", "virtconsole,chardev=hvc", "-device", "virtio-rng-device",
    ]
    # fmt: on
