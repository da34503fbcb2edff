"""The guests that try the processor print, on KVM, what stands beside their sources."""

from __future__ import annotations

import pytest

from tests.support.bare import require_kvm
from tests.support.guest import KERNELS, GuestMachine, build
from vmm.hypervisor.kvm.system import is_software
from vmm.memory_map import MIB
from vmm.platform.power import Reason

pytestmark = pytest.mark.kvm

NAMES = ("faults", "traps", "rings", "strings", "mmio", "selfmod", "pit", "apic")

# What software KVM makes of the others.
SOFTWARE_LACKS = {
    "traps": "software KVM cannot emulate INT3 and INT n",
    "rings": "software KVM does not come back from a bare guest's ring 3",
}


@pytest.fixture(autouse=True)
def _kernels() -> None:
    require_kvm()
    build()


def test_every_guest_is_listed_here() -> None:
    assert {path.stem for path in (KERNELS / "cpu").glob("*.txt")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_guest_prints_what_it_should_and_powers_off(name: str) -> None:
    if name in SOFTWARE_LACKS and is_software():
        pytest.skip(SOFTWARE_LACKS[name])
    with GuestMachine(KERNELS / f"x86_64_{name}.raw", memory_size=64 * MIB) as machine:
        reason = machine.run()

        assert machine.printed.decode() == (KERNELS / "cpu" / f"{name}.txt").read_text()
        assert reason is Reason.POWER_OFF
