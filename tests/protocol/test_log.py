"""Logging: which levels pass, one line an event, and how much of it from one place."""

from __future__ import annotations

import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest

from protocol import log
from protocol.log import Level, RateLimit
from tests.support.device_host import ROOT

BURST = 3


class Clock:
    """Seconds that pass when told to; starts like a host that has been up for a while."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(log, "time", SimpleNamespace(monotonic=clock))
    return clock


def record(line: int = 1, file: str = "vmm/bus.py", text: str = "odd %d") -> logging.LogRecord:
    return logging.LogRecord("test", logging.INFO, file, line, text, (7,), None)


def passing(limit: RateLimit, records: int) -> int:
    return sum(limit.filter(record()) for _ in range(records))


def test_a_burst_passes_and_no_more(clock: Clock) -> None:
    assert passing(RateLimit(BURST), 10) == BURST


def test_after_a_burst_one_passes_each_second(clock: Clock) -> None:
    limit = RateLimit(BURST)
    passing(limit, 10)

    passed = []
    for seconds in (0.75, 0.25, 0.5, 0.5, 2.0):
        clock.seconds += seconds
        passed.append(passing(limit, 10))

    assert passed == [0, 1, 0, 1, 2]


def test_long_silence_allows_another_burst_and_not_a_larger_one(clock: Clock) -> None:
    limit = RateLimit(BURST)
    passing(limit, 10)
    clock.seconds += 3600

    assert passing(limit, 10) == BURST


@pytest.mark.parametrize("other", [record(line=2), record(file="vmm/machine.py")])
def test_another_place_in_the_code_has_a_burst_of_its_own(
    clock: Clock, other: logging.LogRecord
) -> None:
    limit = RateLimit(BURST)
    passing(limit, 10)

    assert limit.filter(other)


def test_the_next_that_passes_says_how_many_did_not(clock: Clock) -> None:
    limit = RateLimit(BURST)
    passing(limit, BURST + 5)
    clock.seconds += 2
    next_one, after_it = record(), record()

    assert limit.filter(next_one)
    assert limit.filter(after_it)

    assert next_one.getMessage() == "odd 7 (5 more like this were held back)"
    assert after_it.getMessage() == "odd 7"


def test_each_level_passes_itself_and_what_is_worse() -> None:
    program = """
import logging
from protocol import log
for level in log.Level:
    log.set_up(level)
    for name in ("debug", "info", "warning", "error", "critical"):
        getattr(logging, name)("at %d", level)
"""
    expected = {
        Level.NONE: "",
        Level.ERROR: "EC",
        Level.WARN: "WEC",
        Level.INFO: "IWEC",
        Level.DEBUG: "DIWEC",
    }

    assert set(expected) == set(Level)
    assert logged(program) == [
        f"{letter} at {level:d}" for level in Level for letter in expected[level]
    ]


def test_an_event_is_one_line_whatever_is_in_it() -> None:
    program = """
import logging
from protocol import log
log.set_up(log.Level.INFO)
logging.info("one\\ntwo")
try:
    1 / 0
except ZeroDivisionError:
    logging.exception("three")
"""
    first, second = logged(program)

    assert first == "I one\\ntwo"
    assert second.startswith("E three\\nTraceback (most recent call last):\\n")
    assert second.endswith("\\nZeroDivisionError: division by zero")


def test_a_process_that_logs_without_end_is_limited() -> None:
    program = """
import logging, types
from protocol import log
log.time = types.SimpleNamespace(monotonic=lambda: 1000.0)
log.set_up(log.Level.INFO)
for number in range(1000):
    logging.info("again %d", number)
"""
    assert logged(program) == [f"I again {number}" for number in range(20)]


def logged(program: str) -> list[str]:
    """The lines that a process with this program writes to stderr."""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return done.stderr.splitlines()
