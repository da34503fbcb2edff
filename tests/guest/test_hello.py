"""The smallest guests say hello and power off, at whatever address they are loaded."""

from __future__ import annotations

import pytest

from tests.support.bare import require_kvm
from tests.support.guest import KERNELS, GuestMachine, build
from vmm.platform.power import Reason

# Slow in the lab, where test_sameness.py runs these guests.
pytestmark = [pytest.mark.kvm, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _kernels() -> None:
    require_kvm()
    build()


@pytest.mark.parametrize("entry", [0x10_0000, 0x1_0000, 0xB0_1000])
@pytest.mark.parametrize("name", ["x86_64_hello_serial", "x86_64_hello_mmio"])
def test_hello_is_printed_and_the_machine_powers_off(name: str, entry: int) -> None:
    with GuestMachine(KERNELS / f"{name}.raw", entry) as machine:
        reason = machine.run()

        assert (machine.printed, reason) == (b"Hello World\n", Reason.POWER_OFF)
