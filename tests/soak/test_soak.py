"""The soak in short, and its checkers on devices that lie: each lie is found."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from launcher.api import VM
from protocol import faults
from protocol.control import Event, EventKind
from tests.soak import harness, report, schedule
from tests.soak.__main__ import main
from tests.soak.bare import EVENT_IDX, INDIRECT_DESC, Bare, sector_content, wrong_sectors
from tests.soak.external import External
from tests.soak.harness import Outcome, run
from tests.support.bare import require_backend
from tests.support.daemons import STORAGE_DAEMON, lacks
from tests.support.leaks import none_left

SEED = 5

# Arbitrary: so much that every kind of step meets every device; some ten seconds.
COUNTS: dict[schedule.Action, int] = {"kill": 40, "swap": 15, "hang": 2, "restart": 3}


@pytest.fixture(params=[pytest.param("kvm", marks=pytest.mark.kvm), "software"])
def hypervisor(request: pytest.FixtureRequest) -> str:
    require_backend(request.param)
    return str(request.param)


@pytest.fixture(params=["jail", pytest.param("bounce", marks=pytest.mark.slow)])
def isolation(request: pytest.FixtureRequest) -> str:
    """How the devices are held; "none" is no other path."""
    return str(request.param)


@pytest.mark.slow
def test_devices_die_hang_and_are_swapped_and_the_guest_notices_nothing(
    tmp_path: Path, hypervisor: str, isolation: str
) -> None:
    guest = Bare(SEED, hypervisor, isolation=isolation)
    steps = schedule.draw(SEED, COUNTS, guest.devices, between=0.1)

    with none_left():
        outcome = run(guest, steps, tmp_path)

    assert outcome.problems == [], report.text(outcome)
    assert {what: outcome.done[what] for what in COUNTS} == COUNTS | {"kill": outcome.done["kill"]}
    assert outcome.deaths >= COUNTS["kill"]
    assert all(outcome.verdict.requests.values())
    assert outcome.seen["recovered"]
    assert outcome.seen["swapped"]


@pytest.mark.slow
@pytest.mark.kvm
@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_a_disk_dies_whose_requests_the_kernel_has_and_the_guest_notices_nothing(
    tmp_path: Path, cache: str
) -> None:
    require_backend("kvm")
    guest = Bare(SEED, "kvm", kinds={"blk": f"blk,engine=io_uring,cache={cache}"})
    steps = schedule.at_every_point(("blk0",))

    outcome = run(guest, steps, tmp_path, allow_inject=True)

    assert outcome.problems == [], report.text(outcome)
    assert outcome.done["inject"] == len(steps)


@pytest.mark.slow
@pytest.mark.skipif(bool(lacks(STORAGE_DAEMON)), reason=lacks(STORAGE_DAEMON))
def test_a_disk_is_another_program_s_that_dies_and_the_guest_notices_nothing(
    tmp_path: Path,
) -> None:
    require_backend("software")
    guest = External(SEED, "software")
    steps = schedule.draw(SEED, {"kill": 6, "restart": 2}, guest.devices, between=0.3)

    with none_left():
        outcome = run(guest, steps, tmp_path)

    assert outcome.problems == [], report.text(outcome)
    assert guest.kills
    assert outcome.seen["recovered"] > guest.kills / 2


@pytest.mark.slow
def test_kills_count_that_were_of_use(tmp_path: Path) -> None:
    require_backend("software")
    # All at once: most hit a process that is dying.
    steps = [schedule.Step(0.5, "rng0", "kill")] * 20

    outcome = run(Bare(SEED, "software"), steps, tmp_path)

    assert outcome.problems == [], report.text(outcome)
    assert outcome.done["kill"] >= outcome.deaths >= 20
    assert outcome.seen["died"] + outcome.seen["failed"] >= 20
    assert f"{outcome.deaths} deaths told of them" in report.text(outcome)


@pytest.mark.slow
@pytest.mark.parametrize("sleep", [True, False], ids=["interrupts", "looking"])
@pytest.mark.parametrize("features", [0, EVENT_IDX, INDIRECT_DESC])
def test_whatever_the_driver_negotiates(tmp_path: Path, features: int, sleep: bool) -> None:
    require_backend("software")
    guest = Bare(SEED, "software", features=features, sleep=sleep)
    steps = schedule.draw(SEED, {"kill": 6, "swap": 3}, guest.devices, between=0.1)

    outcome = run(guest, steps, tmp_path)

    assert outcome.problems == [], report.text(outcome)


@pytest.mark.slow
def test_every_device_is_killed_at_every_step_of_the_commit_order(
    tmp_path: Path, hypervisor: str, isolation: str
) -> None:
    guest = Bare(SEED, hypervisor, isolation=isolation)
    steps = schedule.at_every_point(guest.devices)

    outcome = run(guest, steps, tmp_path, allow_inject=True)

    assert outcome.problems == [], report.text(outcome)
    assert outcome.done["inject"] == len(steps)


# ── lies ──────────────────────────────────────────────────────────────────────────────


def lied_to(folder: Path, kind: str, liar: str) -> Outcome:
    """What is found where ``liar`` has the place of ``kind``."""
    require_backend("software")
    guest = Bare(SEED, "software", kinds={kind: f"tests.soak.liars:{liar}"}, patience=2)
    # Two swaps give it time, and touch what does not lie.
    steps = [schedule.Step(2.0, "rng0", "restart"), schedule.Step(4.5, "rng0", "restart")]
    return run(guest, steps, folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "liar", "complaint"),
    [
        ("blk", "CorruptingBlk", "differs"),
        ("blk", "ForgettingBlk", "differs"),
        ("blk", "LosingBlk", "has lost chain"),
        ("console", "StutteringConsole", r"line \d+ is b'\\n"),
        ("console", "DeafConsole", "of the input differs"),
    ],
)
def test_one_lie_is_found(tmp_path: Path, kind: str, liar: str, complaint: str) -> None:
    outcome = lied_to(tmp_path, kind, liar)

    assert any(re.search(complaint, problem) for problem in outcome.problems), outcome.problems


@pytest.mark.slow
def test_a_request_that_is_completed_twice_is_found(
    tmp_path: Path, hypervisor: str, isolation: str
) -> None:
    # Several, for the next completion may cover one that nobody has looked at yet.
    steps = [
        *(
            schedule.Step(0.2 + number / 10, "blk0", "inject", "duplicate-used push_used_idx")
            for number in range(8)
        ),
        schedule.Step(3.5, "rng0", "restart"),
    ]

    guest = Bare(SEED, hypervisor, patience=2, isolation=isolation)
    outcome = run(guest, steps, tmp_path, allow_inject=True)

    # A mediator does not pass it on, and has one less for the guest.
    found = "in flight" if (hypervisor, isolation) == ("kvm", "jail") else "has lost chain"
    assert any(found in problem for problem in outcome.problems), outcome.problems


def test_image_is_compared_with_what_was_written_last() -> None:
    image = b"".join([sector_content(SEED, 0, 7), bytes(512), sector_content(SEED, 2, 8)])

    assert wrong_sectors(image, SEED, [7, 0, 8]) == []
    assert wrong_sectors(image, SEED, [7, 0, 9]) == [2]
    assert wrong_sectors(image, SEED, [6, 3, 8]) == [0, 1]
    assert wrong_sectors(image[:600] + b"x" + image[601:], SEED, [7, 0, 8]) == [1]


def test_every_point_of_the_table_is_one_of_a_kill_or_of_those_that_are_not_reached() -> None:
    killed = {step.detail.split()[1] for step in schedule.at_every_point(["blk0"])}

    assert killed | set(schedule.NOT_REACHED) == set(faults.POINTS)
    assert not killed & set(schedule.NOT_REACHED)


def test_device_serves_whatever_is_told_of_others_of_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(harness, "PATIENCE", 0.0)

    def serves(*told: tuple[EventKind, int]) -> None:
        events = [
            Event(number, kind, "rng0", generation, 0, 0, 0, None, {}, "no answer")
            for number, (kind, generation) in enumerate(told)
        ]
        vm = cast(VM, SimpleNamespace(events=lambda: iter(events)))
        watcher = harness._Watcher(vm, ["rng0"], Outcome())
        watcher.join()
        watcher.until_all_serve()

    serves(("swapped", 2), ("hung", 1))
    serves(("hung", 2))
    with pytest.raises(harness.Problem, match="rng0 did not come back"):
        serves(("swapped", 2), ("hung", 2))


def test_schedule_is_the_seed_s_and_survives_its_file(tmp_path: Path) -> None:
    def draw(seed: int) -> list[schedule.Step]:
        return schedule.draw(seed, {"kill": 5, "swap": 3}, ("blk0", "rng0"), 0.1)

    schedule.save(draw(1), tmp_path / "steps")

    assert schedule.load(tmp_path / "steps") == draw(1) != draw(2)


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"at": 1}', '{"at": 1, "device": "x", "action": "y"}']
)
def test_file_that_is_no_schedule_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "steps").write_text(line)

    with pytest.raises(ValueError, match="line 1"):
        schedule.load(tmp_path / "steps")


@pytest.mark.parametrize(
    "words",
    [
        ["--kills", "-3"],
        ["--hangs", "x"],
        ["--between", "0"],
        ["--between", "-1"],
        ["--swaps", "-1"],
    ],
)
def test_number_that_makes_no_sense_is_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--guest", "bare"])

    assert words[0] in capsys.readouterr().err
