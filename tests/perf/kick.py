"""Kick to interrupt: through the null device, against a C program with two eventfds.

The clock runs from ringing the kick to reading the call, in the same Python code for both, in
turn, one at a time; the request itself is laid into the ring before it starts. Everything is
pinned to one CPU: with two, what is measured is how the host halts and wakes an idle one.
"""

from __future__ import annotations

import os
import select
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from protocol import doorbell
from tests.support.device_host import DeviceHost

# Arbitrary: enough for a steady median; a round of both takes about half a second.
ROUNDS = 8
KICKS = 500


def measure() -> dict[str, object]:
    """Medians in microseconds, and the ratio null device / C program."""
    times: dict[str, list[float]] = {"null": [], "c": []}
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        _run(times)
    finally:
        os.sched_setaffinity(0, cpus)
    null, c = (statistics.median(times[name]) for name in ("null", "c"))
    return {
        "null device, µs": round(null * 1e6, 1),
        "C with two eventfds, µs": round(c * 1e6, 1),
        "ratio": round(null / c, 2),
    }


def _run(times: dict[str, list[float]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "kick"
        subprocess.run(["gcc", "-O2", "-o", program, Path(__file__).with_suffix(".c")], check=True)
        with DeviceHost("null", Path(folder)) as host, _CProgram(program) as c_program:
            host.start(size=16)
            for _ in range(ROUNDS):
                times["null"] += [_null(host) for _ in range(KICKS)]
                times["c"] += [c_program.kick() for _ in range(KICKS)]


def _null(host: DeviceHost) -> float:
    driver = host.drivers[0]
    driver.add(writable=[16])
    driver.publish()
    elapsed = _round_trip(host.kicks[0], host.call)
    driver.collect()
    return elapsed


def _round_trip(kick: int, call: int) -> float:
    wait: Callable[..., object] = select.select
    begin = time.perf_counter()
    doorbell.ring(kick)
    wait([call], [], [])
    doorbell.drain(call)
    return time.perf_counter() - begin


class _CProgram:
    def __init__(self, program: Path) -> None:
        # Its reads block, so these are not the non-blocking doorbells of the project.
        self._kick = os.eventfd(0, os.EFD_CLOEXEC)
        self._call = doorbell.create()
        self._process = subprocess.Popen(
            [program, str(self._kick), str(self._call)], pass_fds=[self._kick, self._call]
        )

    def kick(self) -> float:
        return _round_trip(self._kick, self._call)

    def __enter__(self) -> _CProgram:
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._kick)
        os.close(self._call)
