"""Where the time from ``vibevmm run`` to the first guest instruction goes."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping


class Startup:
    """Phases of the start with the milliseconds since this process began, when each was over."""

    def __init__(self) -> None:
        self._began = _process_start()
        self.phases: dict[str, float] = {}
        self.is_ready = False
        self.mark("planned")

    def mark(self, phase: str) -> None:
        """``phase`` is over now."""
        elapsed = time.clock_gettime(time.CLOCK_BOOTTIME) - self._began
        self.phases[phase] = round(elapsed * 1000, 1)

    def ready(self, vmm_phases: Mapping[str, int]) -> None:
        """The guest runs; ``vmm_phases`` count from the start of the VMM's own code."""
        self.mark("ready")
        self.phases |= {f"in the VMM: {phase}": float(ms) for phase, ms in vmm_phases.items()}
        self.is_ready = True

    def __str__(self) -> str:
        return ", ".join(f"{phase} {ms:g} ms" for phase, ms in self.phases.items())


def _process_start() -> float:
    # Field 22 of proc(5)'s stat, in clock ticks since boot: to 10 ms where a second has 100. The
    # name, field 2, is in brackets and may contain anything.
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return int(fields[22 - 3]) / os.sysconf("SC_CLK_TCK")
