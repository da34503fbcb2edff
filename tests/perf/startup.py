"""From ``vibevmm run`` to the guest's first instructions, with three devices."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from tests.perf import vm

# Arbitrary; the first start warms the page cache and does not count.
STARTS = 8


def measure() -> dict[str, object]:
    """Milliseconds from starting the command to the guest's first byte, and where they go."""
    times, phases = [], {}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "stats.json"
        for _ in range(STARTS + 1):
            begin = time.perf_counter()
            process = vm.start(Path(folder), vm.POWER_OFF, "--stats", str(report))
            assert process.stdout is not None
            os.read(process.stdout.fileno(), 1)
            times.append(time.perf_counter() - begin)
            process.communicate()
            phases = json.loads(report.read_text())["startup_ms"]
    return {
        "to the first instruction, ms (median)": round(statistics.median(times[1:]) * 1e3),
        "fastest, ms": round(min(times[1:]) * 1e3),
        "where it goes, ms": phases,
    }
