"""Model-specific registers: only what KVM offers is set."""

from __future__ import annotations

import pytest

from protocol.errors import HostError
from tests.support.bare import bare_machine
from vmm.hypervisor.kvm import msrs

pytestmark = pytest.mark.kvm

KERNEL_GS_BASE, LSTAR = 0xC000_0102, 0xC000_0082
NOBODYS = 0x4242_4242


def test_msrs_keep_what_is_set() -> None:
    values = {KERNEL_GS_BASE: 0xFFFF_8000_1234_5678, LSTAR: 0xFFFF_8000_0000_1000}
    with bare_machine("f4") as machine:
        machine.vcpu.set_msrs(values)

        assert machine.vcpu.get_msrs(list(values)) == values


def test_an_msr_that_kvm_has_not_is_refused_by_its_number() -> None:
    with bare_machine("f4") as machine:
        with pytest.raises(HostError, match=r"KVM refuses 0x1 for MSR 0x42424242"):
            machine.vcpu.set_msrs({LSTAR: 0, NOBODYS: 1})
        with pytest.raises(HostError, match=r"cannot read MSR 0x42424242"):
            machine.vcpu.get_msrs([NOBODYS])


def test_memory_is_write_back_and_strings_are_fast_where_the_host_offers_it() -> None:
    with bare_machine("f4") as machine:
        fd, leaves = machine.vcpu.fd, machine.vm._cpuid[0]
        wanted = msrs.firmware(fd, machine.vm._msr_indices, leaves)

        assert machine.vcpu.get_msrs(list(wanted)) == wanted


def test_nothing_is_set_that_the_host_does_not_offer() -> None:
    with bare_machine("f4") as machine:
        assert msrs.firmware(machine.vcpu.fd, frozenset(), leaves=[]) == {}
