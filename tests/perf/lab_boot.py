"""Power-on to /init of stock Linux: this VMM against QEMU's microvm, in turn, in the lab.

Same kernel, initrd, command line, CPUs, memory, KVM and kinds of device. A boot ends when the
first line of the guest's init arrives: ``make lab CMD='python -m tests.perf.lab_boot'``.
"""

from __future__ import annotations

import json
import os
import selectors
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from protocol.errors import HostError
from tests.support import linux

# Arbitrary: the first of each warms the page cache, and is not counted; a median needs three.
ROUNDS = 4
DEADLINE = 180.0
MARKER = b"guest: init"


def measure(rounds: int = ROUNDS) -> dict[str, object]:
    """Seconds of each boot after the first, their medians, and the ratio ours / QEMU's."""
    seconds: dict[str, list[float]] = {"vibevmm": [], "qemu_microvm": []}
    with tempfile.TemporaryDirectory() as folder:
        disk = linux.make_disk(Path(folder) / "disk.img", 64 << 20)
        commands = {"vibevmm": ours(disk), "qemu_microvm": microvm(disk)}
        for _ in range(rounds):
            for name, command in commands.items():
                seconds[name] += until(command, [MARKER])
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    return {
        "boots_s": {name: [round(time, 2) for time in times] for name, times in seconds.items()},
        "median_s": {name: round(median, 2) for name, median in medians.items()},
        "ratio": round(medians["vibevmm"] / medians["qemu_microvm"], 3),
    }


def until(
    command: Sequence[str],
    markers: Sequence[bytes],
    at_last: Callable[[int], object] = lambda pid: None,
    deadline: float = DEADLINE,
) -> list[float]:
    """Seconds from starting ``command`` to each of ``markers`` in its output, of which each comes
    after the one before; then, after a call of ``at_last`` with its pid, it is ended.

    Raises HostError with the output when it ends, or ``deadline`` comes, before that.
    """
    begin = time.monotonic()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    seen, took = b"", list[float]()
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while len(took) < len(markers):
                ready = selector.select(max(0.0, begin + deadline - time.monotonic()))
                data = os.read(process.stdout.fileno(), 65536) if ready else b""
                if not data:
                    words = seen.decode(errors="replace")
                    raise HostError(f"{command[0]}: no {markers[len(took)]!r}:\n{words}")
                seen += data
                arrived = time.monotonic() - begin
                took += [arrived for marker in markers[len(took) :] if marker in seen]
        at_last(process.pid)
        return took
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def ours(disk: Path) -> list[str]:
    """The command line of this VMM."""
    # fmt: off
    return [
        str(linux.VIBEVMM), "run",
        "--kernel", str(linux.kernel()), "--initrd", str(linux.initrd()),
        "--cmdline", linux.COMMAND_LINE, "--cpus", "2", "--mem", "512M",
        "--disk", f"path={disk},format=raw",
        "--console", f"backend=socket,path={disk.with_name('console')}", "--device", "rng",
        "--on-reboot", "exit",
    ]
    # fmt: on


def microvm(disk: Path) -> list[str]:
    """The command line of QEMU's smallest machine, with the same devices."""
    # fmt: off
    return [
        "qemu-system-x86_64", "-M", "microvm,acpi=on", "-accel", "kvm", "-cpu", "host",
        "-smp", "2", "-m", "512M", "-nodefaults", "-display", "none", "-no-reboot",
        # Linux's driver speaks both; the VMM here is a modern device, so is this one.
        "-global", "virtio-mmio.force-legacy=false",
        "-kernel", str(linux.kernel()), "-initrd", str(linux.initrd()),
        "-append", linux.COMMAND_LINE, "-serial", "stdio",
        "-drive", f"id=disk,file={disk},format=raw,if=none",
        "-device", "virtio-blk-device,drive=disk",
        "-device", "virtio-serial-device", "-chardev", "null,id=hvc",
        "-device", "virtconsole,chardev=hvc", "-device", "virtio-rng-device",
    ]
    # fmt: on


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
