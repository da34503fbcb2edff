"""The guests that try the processor print, on every backend, what stands beside their sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.bare import require_kvm
from tests.support.guest import KERNELS, GuestMachine, build
from tests.support.vibevmm import vibevmm
from vmm.hypervisor.detect import kvm_is_software as is_software
from vmm.memory_map import MIB
from vmm.platform.power import Reason

NAMES = ("faults", "traps", "rings", "strings", "mmio", "selfmod", "pit", "apic")

# What software KVM makes of the others.
SOFTWARE_LACKS = {
    "traps": "software KVM cannot emulate INT3 and INT n",
    "rings": "software KVM does not come back from a bare guest's ring 3",
}


# The lab's processor is QEMU's translator, KVM or not. Of these it makes, in a few lines, what no
# processor does: an error code of vector * 16 + 2, #GP for #SS, a reserved bit that is none.
TRANSLATOR_DIFFERS = ("faults", "traps", "rings")

# Lines in which Unicorn's processor is not one of silicon (each checked: it has to be so).
UNICORN_DIFFERS = {
    "faults": {
        "the same by the stack's segment: vector 12 error 0 ring 0 stack same": (
            "the same by the stack's segment: vector 13 error 0 ring 0 stack same"
        ),
    },
    # It lets programs use ports, of which the backend makes that nothing happens.
    "rings": {"out: vector 13 error 0 ring 3 stack rsp0\n  at +0": "out: nothing"},
    # It keeps CR8 for itself; the local APIC does not see it.
    "apic": {"without, from 2: 21": "without, from 0: 2"},
}


@pytest.fixture(autouse=True)
def _kernels() -> None:
    build()


def test_every_guest_is_listed_here() -> None:
    assert {path.stem for path in (KERNELS / "cpu").glob("*.txt")} == set(NAMES)


def wanted(name: str) -> str:
    return (KERNELS / "cpu" / f"{name}.txt").read_text()


@pytest.mark.kvm
@pytest.mark.parametrize("name", NAMES)
def test_guest_prints_what_it_should_and_powers_off(name: str) -> None:
    require_kvm()
    if name in SOFTWARE_LACKS and is_software():
        pytest.skip(SOFTWARE_LACKS[name])
    if name in TRANSLATOR_DIFFERS and "TCG" in Path("/proc/cpuinfo").read_text():
        pytest.skip("this host's processor is QEMU's translator, which differs from silicon here")
    with GuestMachine(KERNELS / f"x86_64_{name}.raw", memory_size=64 * MIB) as machine:
        reason = machine.run()

        assert machine.printed.decode() == wanted(name)
        assert reason is Reason.POWER_OFF


@pytest.mark.parametrize("name", NAMES)
def test_guest_prints_the_same_on_the_software_cpu(name: str) -> None:
    expected = wanted(name)
    for silicon, unicorn in UNICORN_DIFFERS.get(name, {}).items():
        assert silicon in expected
        expected = expected.replace(silicon, unicorn)
    image = KERNELS / f"x86_64_{name}.raw"

    done = vibevmm(
        *("--hypervisor", "software", "--binary", str(image), "--entry", "0x100000"),
        *("--mem", "64M"),
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == expected
