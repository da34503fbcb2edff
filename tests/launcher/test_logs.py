"""Lines of processes that are not believed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.logs import Logs, harmless, printable
from launcher.loop import Loop
from launcher.output import Output
from protocol.log import Level


@pytest.fixture
def logs() -> Iterator[tuple[Logs, Callable[[], list[str]]]]:
    """A log, and what it has written, each line without its time."""
    fd = os.memfd_create("log", os.MFD_CLOEXEC)
    output = Output(fd, Loop())

    def lines() -> list[str]:
        found = os.pread(fd, 1 << 20, 0).decode().splitlines()
        assert all(re.match(r"\d\d:\d\d:\d\d\.\d\d\d ", line) for line in found)
        return [line[13:] for line in found]

    yield Logs(output, Level.INFO), lines
    output.close()
    os.close(fd)


def test_lines_have_process_and_level_whatever_the_pieces_they_came_in(
    logs: tuple[Logs, Callable[[], list[str]]],
) -> None:
    log, lines = logs

    log.feed("blk0", b"W disk is sl")
    log.feed("blk0", b"ow\nE disk is gone\nTrace")
    log.close("blk0")

    assert lines() == ["blk0 warn disk is slow", "blk0 error disk is gone", "blk0 output Trace"]


def test_control_characters_are_shown_not_sent() -> None:
    assert printable(b"\x1b[2J\x07\xff\xc2\x9b31m\r") == r"\x1b[2J\x07\xff\x9b31m"


def test_message_of_several_lines_keeps_them_and_none_is_taken_for_another() -> None:
    assert harmless("died\nrip=1\n  rsp=2\n\x1b[2J\u2028\udcff\n") == (
        "died\n rip=1\n  rsp=2\n \\x1b[2J\\u2028\\udcff"
    )
    assert harmless("") == ""


def test_message_has_a_bound() -> None:
    assert len(harmless("x" * 1_000_000)) < 3000
    assert len(harmless("x\n" * 1_000_000)) < 200_000


def test_own_line_is_harmless_too(logs: tuple[Logs, Callable[[], list[str]]]) -> None:
    log, lines = logs

    log.note(Level.WARN, "forged\n\x1b[2J" + "x" * 10_000)

    assert len(lines()) == 1
    assert r"forged\n\x1b[2J" in lines()[0]
    assert len(lines()[0]) < 3000


def test_flood_is_held_back_and_counted(logs: tuple[Logs, Callable[[], list[str]]]) -> None:
    log, lines = logs

    log.feed("blk0", b"E no\n" * 5000)
    log.close("blk0")

    assert len(lines()) < 1000
    assert re.search(r"blk0 warn \(\d+ lines were held back\)", lines()[-1])


def test_lines_that_are_held_back_are_counted_and_not_looked_at(
    logs: tuple[Logs, Callable[[], list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    log, lines = logs
    looked: list[bytes] = []
    monkeypatch.setattr(
        "launcher.logs.printable", lambda data: looked.append(data) or printable(data)
    )

    log.feed("blk0", b"".join(b"I %d\n" % number for number in range(30_000)) + b"I unfin")
    assert len(looked) < 1000
    assert log.tail("blk0") == tuple(f"I {number}" for number in range(29_980, 30_000))
    log.feed("blk0", b"ished\n")
    log.close("blk0")

    assert log.tail("blk0")[-1] == "I unfinished"
    (held,) = re.findall(r"\((\d+) lines were held back\)", "".join(lines()))
    assert int(held) + len(lines()) - 1 == 30_001


def test_line_without_an_end_is_cut(logs: tuple[Logs, Callable[[], list[str]]]) -> None:
    log, lines = logs

    log.feed("blk0", b"x" * 100_000)

    assert len(lines()[0]) < 3000


def test_last_lines_of_each_process_are_kept(
    logs: tuple[Logs, Callable[[], list[str]]],
) -> None:
    log, _ = logs

    log.feed("blk0", b"".join(b"I %d\n" % number for number in range(100)))
    log.feed("rng0", b"I other\n")

    assert log.tail("blk0") == tuple(f"I {number}" for number in range(80, 100))
    assert log.tail("nobody") == ()


def test_own_lines_obey_the_level(logs: tuple[Logs, Callable[[], list[str]]]) -> None:
    log, lines = logs

    log.note(Level.DEBUG, "hidden")
    log.note(Level.INFO, "shown")

    assert lines() == ["launcher info shown"]


def test_each_process_has_a_file_of_its_last_lines(tmp_path: Path) -> None:
    fd = os.memfd_create("log", os.MFD_CLOEXEC)
    log = Logs(Output(fd, Loop()), Level.INFO, str(tmp_path))
    log.feed("blk0", b"W a line\n")
    log.note(Level.INFO, "another")

    assert (tmp_path / "blk0.log").read_text().endswith(" blk0 warn a line\n")
    assert (tmp_path / "launcher.log").read_text().endswith(" launcher info another\n")

    # Half a megabyte at most, whatever it says; and nothing when the directory is gone.
    for number in range(1000):
        log.note(Level.INFO, f"{number} " + "x" * 2000)
    sizes = {path.name: path.stat().st_size for path in tmp_path.glob("launcher*")}
    assert sizes.keys() == {"launcher.log", "launcher.log.old"}
    assert sum(sizes.values()) < 530_000
    for path in tmp_path.iterdir():
        path.unlink()
    tmp_path.rmdir()
    log.note(Level.INFO, "more")
    os.close(fd)
