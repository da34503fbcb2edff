"""What is made of what was seen: a machine that suffered is not taken for one that did not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from devices import hostile
from devices.kinds import KINDS, is_ours
from launcher.attack import machine
from launcher.attack.machine import _Bait, _of_device, _of_guest, _Seen, _understood
from launcher.attack.table import ATTACKS

DEVICE = "attack: slot={} end=answered lie=no canary=intact late=still victim=7"
GUEST = """hazard: case=loop end=reset status=255
hazard: name=descriptor-loop canary=intact victim=3 serves=yes wrong=no"""


def seen(folder: Path, said: dict[str, dict[str, str]], **other: Any) -> _Seen:
    fields: dict[str, Any] = {
        "cases": {},
        "logged": {},
        "status": 0,
        "is_over": True,
        "bait": _Bait(str(folder)),
        "secret": "5ec4e7",
    }
    return _Seen(said, **fields | other)


def test_every_deed_is_an_attack_and_every_attack_by_a_device_a_deed() -> None:
    by_devices = {name for name, attack in ATTACKS.items() if attack.by == "device"}

    assert by_devices == set(hostile.DEEDS) - {"change-config"}  # which a guest attacks


def test_nobody_gets_a_hostile_device_by_a_word_of_the_table_of_kinds() -> None:
    assert not any("hostile" in where for where in KINDS.values())
    assert not is_ours(machine._KIND)


def test_what_the_guest_said_belongs_to_the_device_in_that_slot() -> None:
    lines = "\n\n".join(DEVICE.format(slot) for slot in (4, 5))

    said, _ = _understood(lines, ["one", "two"])

    assert list(said) == ["one", "two"]
    assert said["two"]["victim"] == "7"


@pytest.mark.parametrize(
    ("changes", "other", "evidence"),
    [
        ({}, {"status": 1}, "did not survive"),
        ({}, {"is_over": False}, "did not survive"),
        ({"canary": "overwritten"}, {}, "canary"),
        ({"victim": "0"}, {}, "beside it"),
        ({}, {"logged": {"read-file": [f"{hostile.SUCCEEDED}the secret"]}}, ""),
    ],
)
def test_a_device_has_succeeded_where_others_suffered_or_it_has_proof(
    tmp_path: Path, changes: dict[str, str], other: dict[str, Any], evidence: str
) -> None:
    said, _ = _understood(DEVICE.format(4), ["read-file"])
    found = seen(tmp_path, {"read-file": said["read-file"] | changes}, **other)
    found.bait.secret = "the secret"

    outcome = _of_device(ATTACKS["read-file"], found)

    assert outcome.verdict == "succeeded"
    assert evidence in outcome.evidence


def test_a_claim_without_proof_is_none(tmp_path: Path) -> None:
    said, _ = _understood(DEVICE.format(4), ["read-file"])
    found = seen(tmp_path, said, logged={"read-file": [f"{hostile.SUCCEEDED}something else"]})

    assert _of_device(ATTACKS["read-file"], found).verdict == "contained"


def test_what_the_kernel_or_the_vmm_said_of_it_is_a_report(tmp_path: Path) -> None:
    said, _ = _understood(DEVICE.format(4), ["read-file"])
    line = "forbidden system call openat (257) at libc.so.6+0xf85d4"

    outcome = _of_device(ATTACKS["read-file"], seen(tmp_path, said, logged={"read-file": [line]}))

    assert (outcome.verdict, outcome.evidence) == ("reported", line.partition(" at ")[0])


@pytest.mark.parametrize(
    "changes", [{"canary": "overwritten"}, {"serves": "no"}, {"wrong": "yes"}, None]
)
def test_a_guest_has_succeeded_where_the_disk_or_the_machine_suffered(
    tmp_path: Path, changes: dict[str, str] | None
) -> None:
    said, cases = _understood(GUEST, [])
    attack = ATTACKS["descriptor-loop"]
    unharmed = seen(tmp_path, said, cases=cases)
    harmed = seen(tmp_path, {} if changes is None else {attack.name: said[attack.name] | changes})

    assert _of_guest(attack, unharmed).verdict == "contained"
    assert _of_guest(attack, unharmed).evidence == "loop reset 255"
    assert _of_guest(attack, harmed).verdict == "succeeded"


def test_a_log_that_was_flooded_is_seen(tmp_path: Path) -> None:
    said = {"many-errors": {"canary": "intact", "victim": "3", "serves": "yes", "wrong": "no"}}
    found = seen(tmp_path, said, cases={"many-errors": []}, logged={"disk": ["x"] * 2000})

    assert _of_guest(ATTACKS["many-errors"], found).verdict == "succeeded"


def test_a_report_of_something_else_is_none_of_the_attack(tmp_path: Path) -> None:
    said, _ = _understood(DEVICE.format(4), ["forge-reply"])
    late = ["forge-reply is killed: the VM ends, and it does not answer"]
    right = [*late, "forge-reply is killed: it broke the protocol: Done answers nothing"]

    found = seen(tmp_path, said, logged={"forge-reply": late})
    assert _of_device(ATTACKS["forge-reply"], found).verdict == "contained"
    found = seen(tmp_path, said, logged={"forge-reply": right})
    assert _of_device(ATTACKS["forge-reply"], found).verdict == "reported"


def test_what_no_level_permits_has_to_be_told_by_its_own_words() -> None:
    never = {
        name
        for name, attack in ATTACKS.items()
        if attack.by == "device" and "reported" in attack.expected["none"]
    }

    assert {name for name in never if not ATTACKS[name].told} == set()


def test_a_vmm_that_grows_has_kept_what_never_ends(tmp_path: Path) -> None:
    said, _ = _understood(DEVICE.format(4), ["send-unending"])

    outcome = _of_device(ATTACKS["send-unending"], seen(tmp_path, said, grown=62 << 20))

    assert outcome.verdict == "succeeded"
    assert outcome.evidence == "the VMM grew by 62 MiB"
