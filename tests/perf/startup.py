"""From ``vibevmm run`` to the guest's first instructions, with three devices, by level."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from operator import sub
from pathlib import Path

from protocol.specs import LEVELS
from tests.perf import vm

# Arbitrary; the first start warms the page cache and does not count.
STARTS = 8


def measure() -> dict[str, object]:
    """Milliseconds from starting the command to the guest's first byte, of each level in turn, and
    where they go."""
    times: dict[str, list[float]] = {level: [] for level in LEVELS}
    phases = {}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "stats.json"
        for _ in range(STARTS + 1):
            for level in LEVELS:
                options = ("--stats", str(report), "--isolation", level)
                begin = time.perf_counter()
                process = vm.start(Path(folder), vm.POWER_OFF, *options)
                assert process.stdout is not None
                os.read(process.stdout.fileno(), 1)
                times[level].append((time.perf_counter() - begin) * 1e3)
                process.communicate()
                phases[level] = json.loads(report.read_text())["startup_ms"]
    return {
        "to the first instruction, ms (median)": {
            level: round(statistics.median(times[level][1:])) for level in LEVELS
        },
        "fastest, ms": {level: round(min(times[level][1:])) for level in LEVELS},
        "more than without a jail, ms (median of pairs)": {
            level: round(statistics.median(map(sub, times[level][1:], times["none"][1:])))
            for level in LEVELS
            if level != "none"
        },
        "where it goes, ms": phases,
    }
