"""Every attack, at every level of isolation, comes to what the table says: each is shown to succeed
where nothing is to contain it, or what tells would tell nothing."""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path

import pytest

from devices.hostile import KEYCTL_READ_SESSION
from launcher.attack.machine import AT_ONCE, attacked
from launcher.attack.table import ATTACKS, Attack, Outcome
from protocol.specs import LEVELS
from tests.support import guest, ordinary_user
from tests.support.bare import require_kvm

pytestmark = pytest.mark.slow

# Those that are about what lies between guest and device, which is not the same on KVM.
BETWEEN = ("read-canary", "write-canary", "write-given-back", "corrupt-used")
GUESTS = tuple(name for name, attack in ATTACKS.items() if attack.by == "guest")
DEVICES = tuple(name for name, attack in ATTACKS.items() if attack.by == "device")

# As many as one machine has room for: a machine a test.
MACHINES = [DEVICES[first : first + AT_ONCE] for first in range(0, len(DEVICES), AT_ONCE)]
MACHINES.append(GUESTS)

# What is another matter for an ordinary user's device than for root's, which has a user of its own.
USERS = (
    *("read-file", "early-read-file", "early-connect-tcp", "early-connect-abstract"),
    *("connect-control", "trace-neighbour", "trace-vmm", "signal-launcher", "fork-bomb"),
    *("execute", "exhaust-memory"),
)


def impossible() -> set[str]:
    """Attacks that this host keeps everybody from, so that no level has to."""
    found = set()
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        found.add("open-kvm")
    if read("/proc/sys/kernel/io_uring_disabled") not in ("", "0"):
        found.add("io-uring")
    if ctypes.CDLL(None).syscall(*KEYCTL_READ_SESSION, None, 0, 0) < 0:
        found.add("early-read-keyring")
    if read("/proc/sys/kernel/yama/ptrace_scope") not in ("", "0"):
        found |= {"trace-neighbour", "trace-vmm"}
    return found


def read(path: str) -> str:
    return Path(path).read_text().strip() if os.path.exists(path) else ""


def differences(
    attacks: list[Attack], level: str, found: dict[str, Outcome], *, mediated: bool
) -> dict[str, str]:
    return {
        attack.name: f"{found[attack.name]}, and not {expected}"
        for attack in attacks
        if (expected := attack.expects(level, mediated=mediated)) != found[attack.name].verdict
        and not (expected == "succeeded" and attack.name in impossible())
    }


def first(names: tuple[str, ...]) -> str:
    """The name of a test."""
    return f"{names[0]} and others"


@pytest.mark.parametrize("names", MACHINES, ids=first)
@pytest.mark.parametrize("level", LEVELS)
def test_every_attack_comes_to_what_its_level_makes_of_it(
    level: str, names: tuple[str, ...]
) -> None:
    guest.build()
    attacks = [ATTACKS[name] for name in names]

    found = attacked(attacks, level, "software")

    assert differences(attacks, level, found, mediated=True) == {}
    assert all(outcome.evidence for outcome in found.values())


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("level", "names"), [("jail", BETWEEN), ("jail", GUESTS), ("bounce", BETWEEN)]
)
def test_so_it_does_where_the_device_works_on_the_guests_own_rings(
    level: str, names: tuple[str, ...]
) -> None:
    require_kvm()
    guest.build()
    attacks = [ATTACKS[name] for name in names]

    assert differences(attacks, level, attacked(attacks, level, "kvm"), mediated=False) == {}


@pytest.mark.root
@pytest.mark.parametrize("level", LEVELS)
def test_so_it_does_where_an_ordinary_user_runs_the_machine(level: str) -> None:
    guest.build()
    attacks = [ATTACKS[name] for name in USERS]
    assert len(attacks) <= AT_ONCE

    done = ordinary_user.vibevmm(
        *("attack", *USERS, "--level", level, "--hypervisor", "software", "--json")
    )

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["attacks"]
    found = {
        name: Outcome(told[name][level]["verdict"], told[name][level]["evidence"]) for name in USERS
    }
    assert differences(attacks, level, found, mediated=True) == {}


def test_a_neighbour_in_the_same_process_is_at_the_mercy_of_a_device() -> None:
    guest.build()

    found = attacked([ATTACKS["read-neighbour"]], "jail", "software", "shared")["read-neighbour"]

    assert found.verdict == ATTACKS["read-neighbour"].expects("jail", shared=True)
    assert "Rng, which holds memory" in found.evidence
