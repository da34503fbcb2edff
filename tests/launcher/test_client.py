"""Targets on the command line, and machines that do not answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from launcher import client, rundir
from launcher.rundir import RunDirectory
from protocol.errors import BadInput


@pytest.fixture
def running(runtime: Path) -> Iterator[ExitStack]:
    """Enters what is to run until the end of the test."""
    with ExitStack() as stack:
        yield stack


def outcome(function: Callable[..., object], *arguments: object) -> object:
    """What it returns, or the text of the BadInput that it raises."""
    try:
        return function(*arguments)
    except BadInput as error:
        return str(error)


@pytest.mark.parametrize(
    ("names", "target", "found"),
    [
        (["one"], None, "one"),
        (["one", "other"], "other", "other"),
        ([], None, "ps: no machine runs"),
        (["one", "other"], None, "ps: which machine? running: one, other"),
        ([], "one", "'one': no such machine; none runs"),
        (["alpha"], "alpah", "'alpah': no such machine; did you mean 'alpha'?"),
        (["alpha", "beta"], "zzz", "'zzz': no such machine; known: alpha, beta"),
        (["one"], "one/blk0", "'one/blk0': ps is for a machine, and 'blk0' is a part of one"),
        (["one"], "", "'': no such machine; known: one"),
    ],
)
def test_target_is_a_machine_or_an_error_that_says_which_there_are(
    running: ExitStack, names: list[str], target: str | None, found: str
) -> None:
    for name in names:
        running.enter_context(RunDirectory(name))

    assert outcome(client.find, "ps", target) == found


@pytest.mark.parametrize(
    ("names", "target", "found"),
    [
        (["one"], "blk0", ("one", "blk0")),
        (["one", "other"], "other/blk0", ("other", "blk0")),
        (["one", "other"], "blk0", "kill: which machine? running: one, other"),
        (["one"], "one", "'one': a machine; which device of it? one/DEVICE"),
        (["one"], "one/", "'one/': which device? one/DEVICE"),
        (["one"], None, "kill: which device? VM/DEVICE; running: one"),
        (["one"], "two/blk0", "'two': no such machine; known: one"),
        ([], "blk0", "kill: no machine runs"),
    ],
)
def test_target_is_a_part_of_a_machine_or_an_error(
    running: ExitStack, names: list[str], target: str | None, found: object
) -> None:
    for name in names:
        running.enter_context(RunDirectory(name))

    assert outcome(client.find_part, "kill", target, "device") == found


def test_machine_that_is_gone_is_no_machine_though_its_directory_stayed(runtime: Path) -> None:
    with RunDirectory("alive"):
        (runtime / "vibevmm" / "dead").mkdir()
        (runtime / "vibevmm" / "file").touch()

        assert rundir.running() == ["alive"]
        with pytest.raises(client.Gone, match="'dead' is gone"):
            client.Client("dead")


def test_where_nothing_ever_ran_nothing_runs_and_nothing_is_made(runtime: Path) -> None:
    assert rundir.running() == []
    assert list(runtime.iterdir()) == []


def test_machine_without_a_socket_is_silent(runtime: Path) -> None:
    with RunDirectory("mute"), pytest.raises(client.Silent, match="'mute' does not answer"):
        client.Client("mute", 0.05)


@pytest.mark.slow
def test_looking_does_not_disturb_a_start(runtime: Path) -> None:
    # A look takes the lock of what it looks at; a start that meets it would say the name is taken.
    import threading

    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            rundir.running()
            rundir.lives("vm")

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(200):
            with RunDirectory("vm"):
                assert rundir.lives("vm")
    finally:
        ended.set()
        for looker in lookers:
            looker.join()
