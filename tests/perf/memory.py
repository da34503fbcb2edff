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
        # They are started in this order: launcher.run.
        for name, child in zip(("vmm", "blk0", "console0", "rng0"), children, strict=True):
            sizes[name] = _pss(int(child))
        process.terminate()
        process.communicate()
    return {f"{name}, MiB": round(size, 1) for name, size in sizes.items()}


def _pss(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"no Pss of process {pid}")
