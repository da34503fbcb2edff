"""Proportional set size of each process of a VM with three devices, idle."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tests.perf import vm


def measure() -> dict[str, object]:
    """MiB by process, as /proc/PID/smaps_rollup has them."""
    with tempfile.TemporaryDirectory() as folder:
        process = vm.start(Path(folder), vm.SLEEP)
        assert process.stdout is not None
        os.read(process.stdout.fileno(), 1)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        sizes = {"launcher": _pss(process.pid)}
        for index, child in enumerate(children):
            sizes[f"{index} {_role(int(child))}"] = _pss(int(child))
        process.terminate()
        process.communicate()
    return {f"{name}, MiB": round(size, 1) for name, size in sizes.items()}


def _role(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return "vmm" if any("vmm.entry" in word for word in words) else "device"


def _pss(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"no Pss of process {pid}")
