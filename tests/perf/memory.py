"""Proportional set size of each process of a VM with three devices, idle, its spare among them."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from tests.perf import vm
from tests.support.leaks import children

# Seconds until there is a spare (arbitrary, and far more than it takes).
_DEADLINE = 10.0


def measure() -> dict[str, object]:
    """MiB by process, as /proc/PID/smaps_rollup has them."""
    with tempfile.TemporaryDirectory() as folder:
        process = vm.start(Path(folder), vm.SLEEP)
        assert process.stdout is not None
        os.read(process.stdout.fileno(), 1)
        deadline = time.monotonic() + _DEADLINE
        while "spare" not in (names := _names(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.01)
        sizes = {"launcher": _pss(process.pid)}
        sizes |= {name: _pss(pid) for name, pid in names.items()}
        process.terminate()
        process.communicate()
    return {f"{name}, MiB": round(size, 1) for name, size in sizes.items()}


def _names(launcher: int) -> dict[str, int]:
    # Those that were forked call themselves what they are.
    found = {}
    for pid in children(launcher):
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        if name.startswith("python"):
            module = Path(f"/proc/{pid}/cmdline").read_bytes()
            name = "zygote" if b"zygote" in module else "vmm"
        found[name] = pid
    return found


def _pss(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"no Pss of process {pid}")
