"""The software CPU: exits, instructions, and stock Linux's way to /init, the last two against QEMU.

QEMU runs its own translator (TCG) on the same kernel, initrd and kinds of device, in turn with us;
it is there where the lab is.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from protocol.errors import HostError
from tests.perf.exits import CountDown
from tests.perf.lab_boot import until_init
from tests.support.bare import BACKEND, CODE, DEVICE, bare_machine
from tests.support.packages import PROJECT
from tools import linux
from vmm.bus import Bus

EXITS, TURNS = 100_000, 5
# Arbitrary; the first of each is not counted.
BOOTS = 3
# QEMU's microvm hangs now and then before the kernel's first word, on a busy host; then it is
# started again, so often at most.
TRIES = 3
MARKER = b"linux: Linux"  # the first line of tools/linux_init.sh

MMIO_WRITE = "89 07 eb fc"  # 1: mov [rdi], eax; jmp 1b
# mov ecx, 200M; 1: add rax, rcx; xor rbx, rax; dec ecx; jnz 1b; out 0xf4, al; jmp .
INSTRUCTIONS = 4 * 200_000_000
LOOP = "b9 00c2eb0b 4801c8 4831c3 ffc9 75f6 e6f4 ebfe"


def measure() -> dict[str, object]:
    """MMIO exits and guest instructions per second, then boots."""
    token = BACKEND.set("software")
    try:
        found: dict[str, object] = {
            "MMIO writes to a device in Python, k/s": round(_exits() / 1e3),
            "guest instructions, interrupts on, M/s": round(_instructions() / 1e6),
        }
    finally:
        BACKEND.reset(token)
    return found | _boots()


def _exits() -> float:
    with bare_machine(MMIO_WRITE) as machine:
        machine.start_at(CODE, rdi=DEVICE)
        bus, device = Bus(), CountDown(machine.vcpu)
        bus.add_mmio(DEVICE, 4096, device)
        best = 0.0
        for _ in range(TURNS):
            device.left = EXITS
            begin = time.perf_counter()
            machine.vcpu.run(bus)
            best = max(best, EXITS / (time.perf_counter() - begin))
    return best


def _instructions() -> float:
    with bare_machine(LOOP, irqchip=True) as machine:
        begin = time.perf_counter()
        machine.run()
        return INSTRUCTIONS / (time.perf_counter() - begin)


def _boots() -> dict[str, object]:
    if not shutil.which("qemu-system-x86_64"):
        return {"boots": "no qemu-system-x86_64 here"}
    try:
        files, _ = linux.prepare("amd64")
    except HostError as error:
        return {"boots": str(error)}
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
            took = until_init(command, MARKER, lambda pid: memory.append(_own_memory(pid)))
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


def _qemus(files: Path) -> list[str]:
    # fmt: off
    return [
        "qemu-system-x86_64", "-M", "microvm,acpi=on", "-accel", "tcg", "-cpu", "max",
        "-m", "512M", "-nodefaults", "-display", "none", "-no-reboot",
        "-global", "virtio-mmio.force-legacy=false",
        "-kernel", str(files / "vmlinuz"), "-initrd", str(files / "initrd"),
        "-append", "console=ttyS0 quiet panic=-1", "-serial", "stdio",
        "-drive", f"id=disk,file={files / 'disk.img'},format=raw,if=none",
        "-device", "virtio-blk-device,drive=disk",
        "-device", "virtio-serial-device", "-chardev", "null,id=hvc",
        "-device", "virtconsole,chardev=hvc", "-device", "virtio-rng-device",
    ]
    # fmt: on
