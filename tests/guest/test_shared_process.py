"""Devices that share a process (`process=NAME`): each works, they die as one, and nothing is lost.

The demo guest writes sectors that differ in every word, reads them back, types and wants entropy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from launcher import cli
from launcher.api import VM
from launcher.client import Refused
from protocol import control as wire
from tests.support.bare import on_software
from tests.support.guest import build, demo

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("runtime")]

DEADLINE = 60.0
SECTORS = 3000
TOGETHER = ("blk0", "console0", "rng0")

Start = Callable[..., VM]


@pytest.fixture
def start(backend: str, tmp_path: Path) -> Iterator[Start]:
    """Starts the demo guest with three devices in process "all", and holds it near its beginning;
    with options of VM, and further ``settings`` of each device."""
    build()
    with ExitStack() as machines:

        def started(image: bytes | None = None, settings: str = "", **options: object) -> VM:
            guest, disk = tmp_path / "guest.raw", tmp_path / "disk.img"
            guest.write_bytes(image or demo(sleep=True, count=SECTORS))
            disk.write_bytes(bytes(8 << 20))
            more = f",process=all{settings}"
            base = {
                "binary": guest,
                "entry": "0x100000",
                "mem": "64M",
                "hypervisor": backend,
                "devices": [f"blk,{disk}{more}", f"console,terminal{more}", f"rng{more}"],
                "timeout": DEADLINE,
            }
            machine = machines.enter_context(VM(**{**base, **options}))  # type: ignore[arg-type]
            machine.wait_ready()
            machine.pause()
            return machine

        yield started


def pids(machine: VM) -> dict[str, int]:
    """Of the processes of its devices."""
    return {one.name: one.pid for one in machine.describe().processes if one.name != "vmm"}


def follow(events: Iterator[wire.Event | wire.Lost], kind: str) -> list[wire.Event]:
    """The events up to that ``kind`` of each device, one after another."""
    found: list[wire.Event] = []
    wanted = set(TOGETHER)
    for event in events:
        assert isinstance(event, wire.Event)
        found.append(event)
        if event.kind == kind:
            wanted.remove(event.device)
        if not wanted:
            return found
    raise AssertionError(f"the machine ended; {found}")


def test_all_work_die_as_one_and_are_followed_by_one(start: Start) -> None:
    machine = start()
    events = machine.events()
    for _ in range(4):
        (before,) = set(pids(machine).values())
        machine.resume()
        assert machine.kill("rng0") == before
        found = follow(events, "recovered")
        assert {e.device for e in found if e.kind == "died"} == set(TOGETHER)
        machine.pause()
        assert set(pids(machine)) == set(TOGETHER)
        (after,) = set(pids(machine).values())
        assert after != before
    machine.resume()

    assert machine.wait(DEADLINE) == 0


def test_who_hangs_holds_up_the_others_and_all_are_replaced(start: Start) -> None:
    machine = start(allow_inject=True, hang_after=0.5)
    events = machine.events()
    machine.inject("blk0", "hang", at="handle", after=50)
    machine.resume()

    found = follow(events, "recovered")

    assert "hung" in [event.kind for event in found]
    assert {event.device for event in found if event.kind == "died"} == set(TOGETHER)
    assert machine.wait(DEADLINE) == 0


@on_software
def test_a_fault_strikes_the_device_for_which_it_was_asked(start: Start) -> None:
    """The ring engine has one hook, and here three devices."""
    machine = start(allow_inject=True)
    machine.inject("blk0", "kill", at="push_used_idx", after=100)
    machine.inject("rng0", "kill", at="pop_inflight")
    machine.resume()

    events = [event for event in machine.events() if isinstance(event, wire.Event)]

    assert machine.wait(DEADLINE) == 0
    died = [event.device for event in events if event.kind == "died"]
    assert sorted(died) == sorted(TOGETHER * 2)


@on_software
def test_a_restart_takes_all_and_nothing_else_takes_one(
    start: Start, capfd: pytest.CaptureFixture[str]
) -> None:
    machine = start()
    (before,) = set(pids(machine).values())

    with pytest.raises(Refused, match="it shares process all with console0, rng0; restart takes"):
        machine.swap("blk0", "blk-mapped")
    assert cli.main(["device", "run", "blk", "--attach", f"{machine.name}/blk0"]) == 2
    assert "it shares process all" in capfd.readouterr().err

    machine.resume()
    served = machine.restart("blk0")
    machine.pause()  # or it might be through before there was a kill
    assert served.pid != before
    assert cli.main(["kill", f"{machine.name}/blk0", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["others"] == ["console0", "rng0"]
    machine.resume()
    assert machine.wait(DEADLINE) == 0


def test_those_that_share_one_process_serve_every_life_of_a_machine(start: Start) -> None:
    machine = start(demo(sleep=True, count=50, boots=3))
    before = pids(machine)
    machine.resume()

    kinds = [event.kind for event in machine.events() if isinstance(event, wire.Event)]

    assert machine.wait(DEADLINE) == 0
    assert kinds.count("rebooted") == 2
    assert "died" not in kinds
    assert len(set(before.values())) == 1


def test_a_guest_waits_until_all_are_back(start: Start) -> None:
    machine = start(settings=",on-death=pause-vm")
    events = machine.events()
    machine.resume()
    machine.kill("console0")
    next(event for event in events if isinstance(event, wire.Event) and event.kind == "paused")

    machine.restart("rng0")

    assert machine.wait(DEADLINE) == 0


def test_what_share_a_process_are_one_process_to_the_host(start: Start) -> None:
    machine = start()
    machine.resume()
    (pid,) = set(pids(machine).values())

    assert Path(f"/proc/{pid}/comm").read_text() == "all\n"
    machine.stop(force=True)
    assert not Path(f"/proc/{pid}").exists()
