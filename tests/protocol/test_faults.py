"""The table of faults, and the board on which they are armed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from protocol import faults
from protocol.errors import BadInput, HostError
from protocol.faults import FAULTS, POINTS, Board, Fault
from protocol.ring.faults import POINTS as ENGINE_POINTS


@pytest.fixture
def boards() -> Iterator[tuple[Board, Board]]:
    """The launcher's end of a board, and a process's."""
    fd = faults.create("test-faults")
    ours, theirs = Board(fd), Board(fd)
    yield ours, theirs
    ours.close()
    theirs.close()
    os.close(fd)


def test_every_step_of_the_engine_is_a_point_where_a_process_can_be_killed() -> None:
    assert set(ENGINE_POINTS) < set(FAULTS["kill"].points)
    assert {"answer_start", "answer_ping", "answer_write_config", "attach"} < set(POINTS)
    assert all(set(kind.points) <= set(POINTS) for kind in FAULTS.values())


@pytest.mark.parametrize(
    ("fault", "point", "words"),
    [
        ("explode", "", "'explode': no such fault; there are kill, hang"),
        ("kill", "nowhere", "--at: 'nowhere' is no point; there are attach, handle"),
        ("io-error", "complete", "--at: io-error strikes at handle, not at complete"),
        ("duplicate-used", "push_clear", "strikes at push_used_idx"),
    ],
)
def test_what_is_not_in_the_table_is_told_with_what_is(fault: str, point: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        faults.check(fault, point)


def test_fault_without_a_point_strikes_at_its_usual_one() -> None:
    assert faults.check("kill", "") == "handle"
    assert faults.check("drop-call", "") == "interrupt"


@pytest.mark.parametrize(
    ("after", "every", "strikes"),
    [(0, 0, [1]), (3, 0, [4]), (0, 1, [1, 2, 3, 4, 5, 6, 7, 8]), (2, 3, [3, 6])],
)
def test_passes_decide_when_it_strikes(
    boards: tuple[Board, Board], after: int, every: int, strikes: list[int]
) -> None:
    ours, theirs = boards
    ours.arm(Fault("kill", "handle", after, every))

    struck = [number for number in range(1, 9) if theirs.passed("handle")]

    assert struck == strikes
    assert theirs.passed("complete") == []
    ((fault, passes),) = ours.armed()
    assert (passes, fault.strikes(passes)) == (8, len(strikes))


def test_two_that_are_due_at_once_strike_both(boards: tuple[Board, Board]) -> None:
    ours, theirs = boards
    ours.arm(Fault("delay", "handle", every=1))
    ours.arm(Fault("io-error", "handle", after=1))

    struck = [[strike.fault.name for strike in theirs.passed("handle")] for _ in range(3)]

    assert struck == [["delay"], ["delay", "io-error"], ["delay"]]


def test_successor_counts_on(boards: tuple[Board, Board]) -> None:
    ours, theirs = boards
    ours.arm(Fault("kill", "handle", after=1))

    assert not theirs.passed("handle")
    assert ours.passed("handle")  # as another process would
    assert not theirs.passed("handle")


def test_pass_at_which_it_can_do_nothing_does_not_count(boards: tuple[Board, Board]) -> None:
    ours, theirs = boards
    ours.arm(Fault("short-write", "handle"))

    assert not theirs.passed("handle", ["short-write"])
    assert theirs.passed("handle")


def test_what_is_over_or_taken_back_does_not_strike(boards: tuple[Board, Board]) -> None:
    ours, theirs = boards
    ours.arm(Fault("kill", "handle", every=1, until=time.monotonic_ns()))
    assert not theirs.passed("handle")

    ours.arm(Fault("kill", "handle", every=1, until=time.monotonic_ns() + 10**12))
    assert theirs.passed("handle")
    ours.clear()
    assert not theirs.passed("handle")
    assert ours.armed() == []


def test_new_fault_in_an_old_place_counts_from_the_start(boards: tuple[Board, Board]) -> None:
    ours, theirs = boards
    ours.arm(Fault("kill", "handle", after=5))
    for _ in range(3):
        theirs.passed("handle")
    ours.clear()
    ours.arm(Fault("hang", "handle"))

    ((fault, passes),) = ours.armed()
    assert (fault.name, passes) == ("hang", 0)


def test_board_has_room_for_some_and_for_more_when_they_have_struck(
    boards: tuple[Board, Board],
) -> None:
    ours, theirs = boards
    for _ in range(faults.SLOTS):
        ours.arm(Fault("kill", "handle"))
    with pytest.raises(HostError, match="16 faults are armed already"):
        ours.arm(Fault("kill", "attach"))
    theirs.passed("handle")

    ours.arm(Fault("kill", "attach"))
    assert theirs.passed("attach")


def test_chance_is_decided_by_seed_and_number(boards: tuple[Board, Board]) -> None:
    def drawn(seed: int) -> list[float]:
        ours, theirs = boards
        ours.clear()
        ours.arm(Fault("corrupt-payload", "complete", every=1, seed=seed))
        return [theirs.passed("complete")[0].random.random() for _ in range(3)]

    assert drawn(1) == drawn(1)
    assert len({*drawn(1), *drawn(2)}) == 6
