"""Traces of several processes become one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from launcher import trace as trace_file
from launcher.trace import Traces, parse
from protocol.trace import Trace


def merged(path: Path, lines: dict[str, bytes]) -> tuple[str, int]:
    """What becomes of the ``lines`` of processes, and how many made no sense."""
    with open(path, "wb") as file:
        traces = Traces(file.fileno(), str(path))
        for process, data in lines.items():
            fd = traces.part(process)
            assert fd is not None
            os.write(fd, data)
        skipped = traces.write(dict.fromkeys(lines, 42))
        traces.close()
    return path.read_text(), skipped


def test_events_are_in_order_of_time_whoever_wrote_them(tmp_path: Path) -> None:
    text, skipped = merged(
        tmp_path / "t.txt",
        {
            "vmm": b"3000\t500\tvmm\texit\tport 0x3f8\n1000\t0\tvmm\tcontrol\thello\n",
            "blk0": b"2000\t1500\tblk0\tchain\tread\n",
        },
    )

    assert skipped == 0
    assert [line.split(maxsplit=1) for line in text.splitlines()] == [
        ["0.000000000", "vmm          control    hello"],
        ["0.000001000", "blk0         chain      read  (1.5 us)"],
        ["0.000002000", "vmm          exit       port 0x3f8  (0.5 us)"],
    ]


def test_perfetto_gets_a_track_a_process(tmp_path: Path) -> None:
    text, _ = merged(
        tmp_path / "t.json",
        {"vmm": b"1000\t500\tvmm\texit\tport\n" * 2, "b": b"900\t0\tb\tkick\tq0\n"},
    )

    events = json.loads(text)["traceEvents"]
    names = [event["args"]["name"] for event in events if event["ph"] == "M"]
    assert names == ["b", "b", "vmm", "vmm"]
    whole = {"name": "port", "cat": "exit", "ph": "X", "ts": 0.1, "dur": 0.5, "pid": 42, "tid": 2}
    assert events[-1] == whole
    assert any(event["ph"] == "i" and event["ts"] == 0 for event in events)


def test_what_is_no_event_is_left_out_and_counted(tmp_path: Path) -> None:
    text, skipped = merged(
        tmp_path / "t.txt",
        {
            "evil": b"1\t2\n-1\t0\ta\tb\tc\nx\t0\ta\tb\tc\n" + b"9" * 30 + b"\t0\ta\tb\tc\n"
            b"5\t0\tme\tk\t\x1b[2J\n6\t0\tme\tk\tcut off"
        },
    )

    assert skipped == 5
    assert "\\x1b[2J" in text
    assert text.count("\n") == 1


def test_line_without_an_end_is_one_that_makes_no_sense(tmp_path: Path) -> None:
    text, skipped = merged(
        tmp_path / "t.txt", {"evil": b"1\t0\ta\tk\t" + b"x" * 100_000 + b"\n2\t0\ta\tk\tgood\n"}
    )

    assert skipped == 1
    assert text.split()[-1] == "good"
    assert text.count("\n") == 1


def test_long_traces_are_merged_without_being_held_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_file, "_WINDOW", 4)
    odd = b"".join(b"%d\t0\ta\tk\t%d\n" % (n ^ 3, n ^ 3) for n in range(1, 99, 2))
    even = b"".join(b"%d\t0\tb\tk\t%d\n" % (n, n) for n in range(0, 99, 2))

    text, skipped = merged(tmp_path / "t.txt", {"a": odd, "b": even})

    numbers = [int(line.split()[-1]) for line in text.splitlines()]
    assert skipped == 0
    assert len(numbers) == 99
    assert numbers == sorted(numbers)


def test_no_event_at_all_is_still_a_file_for_perfetto(tmp_path: Path) -> None:
    text, _ = merged(tmp_path / "t.json", {"vmm": b""})

    assert json.loads(text)["traceEvents"] == []


def test_events_of_the_protocol_are_understood() -> None:
    fd = os.memfd_create("trace")
    trace = Trace(fd, "vmm")
    trace.event("exit", "port\t0x3f8")
    trace.flush()

    event = parse(os.pread(fd, 1000, 0), "vmm", 1)

    os.close(fd)
    assert event is not None
    assert (event.who, event.kind, event.duration) == ("vmm", "exit", 0)


def test_without_a_file_nothing_is_traced() -> None:
    traces = Traces(None, "")

    traces.control("> Attach()")

    assert traces.part("vmm") is None
    assert traces.write({}) == 0
    traces.close()


def test_folder_without_nameless_files_still_gets_a_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY | os.O_CREAT)  # refused by every kernel

    text, _ = merged(tmp_path / "t.txt", {"vmm": b"1\t0\tvmm\texit\tport\n"})

    assert "port" in text
