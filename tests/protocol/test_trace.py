"""The trace of one process: its lines, and when they reach the file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol import trace
from protocol.trace import Trace


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "trace"
    path.touch()
    return path


@pytest.fixture
def fd(file: Path) -> Iterator[int]:
    fd = os.open(file, os.O_WRONLY | os.O_APPEND)
    yield fd
    os.close(fd)


def rows(file: Path) -> list[list[str]]:
    return [line.split("\t") for line in file.read_text().splitlines()]


def test_an_event_has_its_time_its_duration_and_who_did_what(fd: int, file: Path) -> None:
    tracer = Trace(fd, "blk0")
    start = trace.now()

    tracer.event("queue", "requestq: 3 chains", start)
    tracer.flush()

    ((begun, duration, *rest),) = rows(file)
    assert int(begun) == start
    assert 0 <= int(duration) <= trace.now() - start
    assert rest == ["blk0", "queue", "requestq: 3 chains"]


def test_an_event_without_a_start_took_no_time(fd: int, file: Path) -> None:
    tracer = Trace(fd, "vmm")
    before = trace.now()

    tracer.event("state", "running")
    tracer.flush()

    ((begun, duration, *_),) = rows(file)
    assert before <= int(begun) <= trace.now()
    assert duration == "0"


def test_events_are_gathered_and_then_written_in_order(fd: int, file: Path) -> None:
    tracer = Trace(fd, "vmm")

    tracer.event("kind", "first")
    assert file.read_text() == ""
    for number in range(1000):
        tracer.event("kind", str(number))
    written = len(rows(file))
    tracer.flush()

    assert 0 < written < 1001
    assert [row[4] for row in rows(file)] == ["first", *map(str, range(1000))]


def test_what_is_written_is_not_written_again(fd: int, file: Path) -> None:
    tracer = Trace(fd, "vmm")
    tracer.event("kind", "once")

    tracer.flush()
    tracer.flush()

    assert len(rows(file)) == 1
