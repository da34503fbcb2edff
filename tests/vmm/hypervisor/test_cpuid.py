"""CPUID as the guest sees it: what KVM supports, with our topology in it."""

from __future__ import annotations

import pytest

from tests.support.bare import CODE, bare_machine
from vmm.hypervisor.kvm.cpuid import CMP_LEGACY, HTT, HYPERVISOR, TSC_DEADLINE, Leaf, filtered

# What a processor could support: topology leaves with the host's numbers in them.
SUPPORTED = [
    Leaf(0x0, 0, 0, 0x1F, 0x756E6547, 0x6C65746E, 0x49656E69),
    Leaf(0x1, 0, 0, 0xC06F2, 0x07_40_08_00, 0x0120_2000, 0x0F8B_FBFF),
    Leaf(0x4, 0, 1, 0xFFFF_F121, 0x02C0_003F, 0x3F, 0),
    Leaf(0x4, 3, 1, 0xFFFF_F163, 0x03C0_003F, 0x7FF, 0),
    Leaf(0x4, 4, 1, 0, 0, 0, 0),
    Leaf(0x7, 0, 1, 2, 0x0180_2852, 0x1A01_0104, 0x2001_0000),
    Leaf(0xB, 0, 1, 1, 2, 0x100, 7),
    Leaf(0xB, 1, 1, 6, 64, 0x201, 7),
    Leaf(0x1F, 0, 1, 1, 2, 0x100, 7),
    Leaf(0x4000_0000, 0, 0, 0x4000_0001, 0x4B4D_564B, 0x564B_4D56, 0x4D),
    Leaf(0x4000_0001, 0, 0, 0x0100_7EFB, 0, 0, 0),
    Leaf(0x8000_0001, 0, 0, 0, 0, 0x101, 0x2010_0800),
    Leaf(0x8000_0008, 0, 0, 0x3930, 0x1234, 0x0001_603F, 0),
    Leaf(0x8000_001D, 3, 1, 0x03FF_C163, 0x03C0_003F, 0x7FF, 0),
    Leaf(0x8000_001E, 0, 0, 0x55, 0x0155, 0x0101, 0),
    Leaf(0x8000_0026, 0, 1, 1, 2, 0x100, 7),
]


def leaves(apic_id: int = 0, cpus: int = 1, deadline: bool = False) -> dict[tuple[int, int], Leaf]:
    result = filtered(SUPPORTED, apic_id, cpus, deadline)
    by_number = {(leaf.function, leaf.index): leaf for leaf in result}
    assert len(by_number) == len(result), "a leaf is there twice"
    return by_number


@pytest.mark.parametrize(("apic_id", "cpus", "ids"), [(0, 1, 1), (1, 2, 2), (4, 5, 8), (7, 8, 8)])
def test_leaf_1_has_the_apic_id_and_the_count(apic_id: int, cpus: int, ids: int) -> None:
    leaf = leaves(apic_id, cpus)[1, 0]

    assert leaf.ebx >> 24 == apic_id
    assert leaf.ebx >> 16 & 0xFF == ids
    assert leaf.ebx & 0xFFFF == 0x0800  # the size of a cache line, as it was
    assert bool(leaf.edx & HTT) is (cpus > 1)


def test_leaf_1_always_says_that_this_is_a_guest() -> None:
    assert leaves()[1, 0].ecx & HYPERVISOR


@pytest.mark.parametrize("deadline", [True, False])
def test_deadline_timer_is_there_exactly_when_the_capability_is(deadline: bool) -> None:
    assert bool(leaves(deadline=deadline)[1, 0].ecx & TSC_DEADLINE) is deadline


def test_small_caches_belong_to_one_core_and_the_large_one_to_all() -> None:
    first, third, end = (leaves(cpus=6)[4, index] for index in (0, 3, 4))

    assert (first.eax >> 14 & 0xFFF, third.eax >> 14 & 0xFFF) == (0, 7)
    assert first.eax >> 26 == third.eax >> 26 == 7  # ids of cores in the package, less one
    assert (first.eax & 0x3FFF, third.eax & 0x3FFF) == (0x3121, 0x3163)
    assert end.eax == 0


@pytest.mark.parametrize(("cpus", "shift"), [(1, 0), (2, 1), (5, 3), (8, 3)])
def test_leaf_b_describes_one_package_of_single_threaded_cores(cpus: int, shift: int) -> None:
    last = cpus - 1
    found = leaves(last, cpus)

    assert found[0xB, 0] == Leaf(0xB, 0, 1, 0, 1, 0x100, last)
    assert found[0xB, 1] == Leaf(0xB, 1, 1, shift, cpus, 0x201, last)
    assert found[0xB, 2] == Leaf(0xB, 2, 1, 0, 0, 0x002, last)


def test_leaf_b_is_not_invented() -> None:
    without = [leaf for leaf in SUPPORTED if leaf.function != 0xB]

    assert all(leaf.function != 0xB for leaf in filtered(without, 0, 2, deadline=False))


def test_amd_leaves_say_the_same() -> None:
    found = leaves(3, 4)

    assert found[0x8000_0001, 0].ecx & CMP_LEGACY
    assert found[0x8000_0008, 0].ecx == 0x0001_2003  # 2 bits of core number, 3 more cores
    assert found[0x8000_001D, 3].eax == 3 << 14 | 0x163
    assert found[0x8000_001E, 0] == Leaf(0x8000_001E, 0, 0, 3, 3, 0, 0)


def test_topologies_that_this_machine_has_not_are_left_out() -> None:
    assert not {(0x1F, 0), (0x8000_0026, 0)} & leaves().keys()


def test_what_is_not_topology_stays_as_kvm_gave_it() -> None:
    found = leaves(1, 2)

    for leaf in SUPPORTED:
        if leaf.function in (0x0, 0x7, 0x4000_0000, 0x4000_0001):
            assert found[leaf.function, leaf.index] == leaf


@pytest.mark.kvm
def test_the_guest_reads_kvms_signature() -> None:
    code = """
        0f a2  # cpuid
        f4     # hlt
    """
    with bare_machine(code) as machine:
        machine.start_at(CODE, rax=0x4000_0000)

        machine.run()

        regs = machine.vcpu.get_regs()
        words = (regs.rbx, regs.rcx, regs.rdx)
        assert b"".join(word.to_bytes(4, "little") for word in words) == b"KVMKVMKVM\0\0\0"
