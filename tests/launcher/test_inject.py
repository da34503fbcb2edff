"""``vibevmm inject``: what is armed, what is printed, and what can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher import cli, completion
from launcher.client import Refused
from launcher.verbs import VERBS
from protocol.faults import FAULTS, POINTS, SLOTS
from tests.support.machines import Start

# Nearly each starts a machine.
pytestmark = pytest.mark.slow

Capture = pytest.CaptureFixture[str]


def said(capfd: Capture, *words: str, status: int = 0) -> str:
    """What ``vibevmm inject WORDS`` prints, to either output; it ends with ``status``."""
    capfd.readouterr()
    assert cli.main(["inject", *words]) == status, capfd.readouterr()
    printed = capfd.readouterr()
    return printed.out + printed.err


def armed(capfd: Capture, *words: str) -> list[dict[str, Any]]:
    """The faults that it says are armed."""
    found = json.loads(said(capfd, *words, "--json"))["faults"]
    assert isinstance(found, list)
    return found


def test_list_has_the_whole_table_and_needs_no_machine(runtime: Path, capfd: Capture) -> None:
    text, table = said(capfd, "--list"), json.loads(said(capfd, "--list", "--json"))

    assert all(f"  {word} " in text for word in (*FAULTS, *POINTS))
    assert list(table["faults"]) == list(FAULTS)
    assert table["faults"]["drop-call"]["points"] == ["interrupt"]
    assert list(table["points"]) == list(POINTS)


def test_faults_are_armed_beside_one_another_and_taken_back(start: Start, capfd: Capture) -> None:
    start("idle", "rng", allow_inject=True)

    assert said(capfd, "rng0") == "idle/rng0: nothing is armed\n"
    words = ("kill", "--at", "push_used_idx", "--after", "3", "--every=5", "--seed", "7")
    assert said(capfd, "idle/rng0", *words) == (
        "idle/rng0: kill at push_used_idx, after 3, every 5, seed 7: passed 0, struck 0\n"
    )
    _, second = armed(capfd, "rng0", "delay=0.5", "--for", "9")
    assert (second["fault"], second["point"], second["delay"]) == ("delay", "handle", 0.5)
    assert second["every"] == 1
    assert 0 < second["left"] <= 9
    assert armed(capfd, "rng0", "none") == []


def test_seed_is_drawn_and_said(start: Start, capfd: Capture) -> None:
    start("idle", "rng", allow_inject=True)
    armed(capfd, "rng0", "corrupt-payload")

    one, other = armed(capfd, "rng0", "corrupt-payload")

    assert one["seed"] != other["seed"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("rng0 explode", "'explode': no such fault; there are kill, hang, delay"),
        ("rng0 kill --at nowhere", "--at: 'nowhere' is no point; there are attach, handle"),
        ("rng0 drop-call --at handle", "--at: drop-call strikes at interrupt, not at handle"),
        ("blk0 kill", "'blk0': no such device; there are rng0"),
        ("nothing/rng0 kill", "'nothing': no such machine"),
        ("idle kill", "'idle': a machine; which device of it?"),
        ("rng0 kill kill", "'kill': one target is enough: vibevmm inject VM/DEV [FAULT]"),
        ("rng0 kill --after often", "--after: 'often' is not a number"),
        ("rng0 kill --after 2000000000000", "--after: 2000000000000 is not from 0 to"),
        ("rng0 kill --every -1", "--every: not a number of 64 bits: -1"),
        ("rng0 kill --every 0", "--every: 0 is never"),
        ("rng0 hang --for 0", "--for: 0 is never"),
        ("rng0 hang --for ever", "--for: 'ever' is no number of seconds"),
        ("rng0 hang --for 1e9", "--for: from 0 to 86400 seconds"),
        ("rng0 delay=long", "delay: 'long' is no number of seconds"),
        ("rng0 kill=9", "'kill=9': only delay takes a value"),
        ("rng0 none --at handle", "--at: goes with a fault"),
        ("rng0 --seed 1", "--seed: goes with a fault"),
    ],
)
def test_bad_input_arms_nothing(start: Start, capfd: Capture, words: str, error: str) -> None:
    machine = start("idle", "rng", allow_inject=True)

    assert said(capfd, *words.split(), status=2).startswith(f"vibevmm: {error}")
    assert machine.inject("rng0") == ()


def test_machine_does_not_allow_it_unless_it_was_told_to(start: Start, capfd: Capture) -> None:
    start("idle", "rng")

    assert said(capfd, "rng0", "kill", status=2) == (
        "vibevmm: inject: this machine was not started with --allow-inject\n"
    )


def test_what_a_program_asks_wrongly_is_refused(start: Start) -> None:
    machine = start("idle", "rng", allow_inject=True)

    for wrong in ({"after": -1}, {"lasts": -1.0}, {"seed": -1}, {"at": "complete"}):
        with pytest.raises(Refused) as caught:
            machine.inject("rng0", "io-error", **wrong)  # type: ignore[arg-type]
        assert caught.value.exit_status == 2
    assert machine.inject("rng0") == ()


def test_disk_has_no_short_answers(start: Start, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(4096))
    machine = start("idle", f"blk,{disk}", allow_inject=True)

    with pytest.raises(Refused, match="short-write: no answer of blk0 may be shorter"):
        machine.inject("blk0", "short-write")


def test_too_many_faults_are_refused(start: Start) -> None:
    machine = start("idle", "rng", allow_inject=True)
    for _ in range(SLOTS):
        machine.inject("rng0", "kill")

    with pytest.raises(Refused, match="16 faults are armed already") as caught:
        machine.inject("rng0", "kill")
    assert caught.value.exit_status == 3


def test_completion_offers_devices_and_faults(start: Start) -> None:
    start("idle", "rng")

    offered = completion.targets(VERBS["inject"])

    assert offered == ["idle/rng0", *FAULTS, "none"]
