"""Plans: names, slots, and what --dry-run prints."""

from __future__ import annotations

import resource

import pytest

from launcher import cli, plan
from launcher.config import read
from launcher.plan import Plan
from protocol.errors import HostError


def devices(binary: str, *options: str) -> list[tuple[str, int, int]]:
    """Name, slot and GSI of the devices that ``options`` ask for."""
    made: Plan = plan.make(read(["--binary", binary, "--entry", "0x10000", *options]))
    found = [(device.name, device.slot, device.gsi) for device in made.devices]
    made.close()
    return found


def test_first_console_and_others_have_the_slots_of_the_map(binary: str) -> None:
    options = ["--device", "rng", "--console", "--console", "--device", "rng"]

    assert devices(binary, *options) == [
        ("rng0", 3, 10),
        ("console0", 0, 5),
        ("console1", 4, 11),
        ("rng1", 5, 14),
    ]


def test_fifteen_devices_have_fifteen_slots_and_lines(binary: str) -> None:
    found = devices(binary, *["--device", "rng"] * 14, "--console")

    assert {slot for _, slot, _ in found} == set(range(15))
    assert len({gsi for _, _, gsi in found}) == 15
    assert found[-1][:2] == ("console0", 0)


def test_made_up_names_avoid_those_that_were_asked_for(binary: str) -> None:
    options = ["--device", "rng", "--device", "rng,id=rng0", "--device", "rng"]

    assert [name for name, _, _ in devices(binary, *options)] == ["rng1", "rng0", "rng2"]


def test_devices_that_share_a_process_are_shown_with_it(
    binary: str, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ["--device", "rng,process=rng0", "--device", "rng", "--device", "rng,process=rng0"]

    assert cli.main(["--binary", binary, "--entry", "0x10000", *options, "--dry-run"]) == 0

    assert "processes: vmm, rng0 (rng1, rng3), rng2\n" in capfd.readouterr().out


def test_names_of_other_processes_are_taken(binary: str, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["run", "--binary", binary, "--entry", "0x10000", "--device", "rng,id=vmm"]

    assert cli.main(options) == 2
    assert capfd.readouterr().err == "vibevmm: --device: id=vmm is taken\n"


def test_dry_run_prints_the_plan_and_starts_nothing(
    binary: str, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ["--binary", binary, "--entry", "0x10000", "--device", "rng", "--dry-run"]

    assert cli.main(options) == 0

    text = capfd.readouterr().out
    assert "entry: 0x10000" in text
    assert "rng0" in text
    assert "at 0xa03000, GSI 10" in text
    assert "memory map the guest is given:" in text


def test_what_the_vmm_keeps_of_the_dead_has_room_too(monkeypatch: pytest.MonkeyPatch) -> None:
    # Measured, of a VMM whose 8 disks of 16 queues, a console and entropy have died five times.
    most = 675
    monkeypatch.setattr(resource, "getrlimit", lambda _: (most, most))

    with pytest.raises(HostError, match=f"{most} are allowed"):
        plan.check_descriptors(10, 8 * 14)
    plan.check_descriptors(10, 0)
