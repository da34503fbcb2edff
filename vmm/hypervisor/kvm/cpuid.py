"""CPUID: what KVM supports, made to describe one processor of our machine.

One package of single-threaded cores, APIC ids counting from 0. Leaves and bits as in the Intel
SDM, volume 2A, CPUID, and the AMD APM, volume 3, appendix E. What KVM does not support is never
added, but for the TSC deadline timer, which it reports through a capability instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from protocol.errors import HostError
from vmm.hypervisor.kvm._kvm import ffi, lib
from vmm.hypervisor.kvm.ioctl import call

# Room for the answer; the kernel's own limit (KVM_MAX_CPUID_ENTRIES) is 256.
_MAX_ENTRIES = 256

_INDEXED: int = lib.KVM_CPUID_FLAG_SIGNIFCANT_INDEX

TSC_DEADLINE = 1 << 24  # leaf 1 ECX
HYPERVISOR = 1 << 31  # leaf 1 ECX
HTT = 1 << 28  # leaf 1 EDX: more than one processor in the package
CMP_LEGACY = 1 << 1  # leaf 0x8000_0001 ECX: those are cores, not threads

# Leaf 0xB ECX bits 15:8.
_LEVEL_INVALID, _LEVEL_THREAD, _LEVEL_CORE = 0, 1, 2

# Topologies that this machine does not have: Intel's V2 leaf and AMD's extended one. Left out,
# they read as zeros, which sends the guest to leaf 0xB.
_DROPPED = (0x1F, 0x8000_0026)


@dataclass(frozen=True, slots=True)
class Leaf:
    """One answer of the CPUID instruction; ``index`` counts only where ``flags`` says so."""

    function: int
    index: int
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int


def filtered(supported: Iterable[Leaf], apic_id: int, cpus: int, deadline: bool) -> list[Leaf]:
    """The leaves of processor ``apic_id`` of ``cpus``, out of what KVM supports.

    ``deadline``: the local APIC has the TSC deadline timer.
    """
    leaves = []
    has_extended_topology = False
    for leaf in supported:
        if leaf.function in _DROPPED:
            continue
        if leaf.function == 0xB:
            has_extended_topology = True
            continue
        leaves.append(_of_processor(leaf, apic_id, cpus, deadline))
    if has_extended_topology:
        leaves += _extended_topology(apic_id, cpus)
    return leaves


def _of_processor(leaf: Leaf, apic_id: int, cpus: int, deadline: bool) -> Leaf:
    match leaf.function:
        case 1:
            # EBX: brand index and CLFLUSH size stay; then logical processors, APIC id.
            ebx = leaf.ebx & 0xFFFF | _id_space(cpus) << 16 | apic_id << 24
            ecx = leaf.ecx & ~TSC_DEADLINE | HYPERVISOR | (TSC_DEADLINE if deadline else 0)
            return replace(leaf, ebx=ebx, ecx=ecx, edx=_with(leaf.edx, HTT, cpus > 1))
        case 4 if leaf.eax & 0x1F:  # a cache of some type; type 0 ends the list
            cores = (_id_space(cpus) - 1) << 26
            return replace(leaf, eax=leaf.eax & 0x3FFF | _sharing(leaf, cpus) | cores)
        case 0x8000_0001:
            return replace(leaf, ecx=_with(leaf.ecx, CMP_LEGACY, cpus > 1))
        case 0x8000_0008:
            # ECX: 7:0 cores - 1, 15:12 bits of an APIC id that number a core.
            size = (cpus - 1).bit_length() << 12 | cpus - 1
            return replace(leaf, ecx=leaf.ecx & ~0xF0FF | size)
        case 0x8000_001D if leaf.eax & 0x1F:
            return replace(leaf, eax=leaf.eax & ~(0xFFF << 14) | _sharing(leaf, cpus))
        case 0x8000_001E:
            # Extended APIC id; core id with one thread a core; node 0 of 1.
            return replace(leaf, eax=apic_id, ebx=apic_id, ecx=0)
    return leaf


def _with(register: int, bit: int, on: bool) -> int:
    return register | bit if on else register & ~bit


def _id_space(cpus: int) -> int:
    """APIC ids that ``cpus`` processors take up: a power of two."""
    return 1 << (cpus - 1).bit_length()


def _sharing(leaf: Leaf, cpus: int) -> int:
    # Bits 25:14: processors that share the cache, less one. Levels 1 and 2 belong to a core.
    level = leaf.eax >> 5 & 7
    return (_id_space(cpus) - 1) << 14 if level > 2 else 0


def _extended_topology(apic_id: int, cpus: int) -> list[Leaf]:
    # EAX: bits to shift an APIC id by for the id of the next level. EBX: processors at this one.
    levels = (
        (_LEVEL_THREAD, 0, 1),
        (_LEVEL_CORE, (cpus - 1).bit_length(), cpus),
        (_LEVEL_INVALID, 0, 0),
    )
    return [
        Leaf(0xB, index, _INDEXED, shift, count, level << 8 | index, apic_id)
        for index, (level, shift, count) in enumerate(levels)
    ]


def read_supported(kvm_fd: int) -> list[Leaf]:
    """KVM_GET_SUPPORTED_CPUID: what the processor, and KVM, can show to a guest."""
    table = ffi.new("struct kvm_cpuid2 *", {"entries": _MAX_ENTRIES})
    table.nent = _MAX_ENTRIES
    call(kvm_fd, "KVM_GET_SUPPORTED_CPUID", table)
    return [
        Leaf(entry.function, entry.index, entry.flags, entry.eax, entry.ebx, entry.ecx, entry.edx)
        for entry in table.entries[0 : table.nent]
    ]


def write(vcpu_fd: int, leaves: Sequence[Leaf]) -> None:
    """KVM_SET_CPUID2: what CPUID answers on this vCPU."""
    table: Any = ffi.new("struct kvm_cpuid2 *", {"entries": len(leaves)})
    table.nent = len(leaves)
    for entry, leaf in zip(table.entries[0 : len(leaves)], leaves, strict=True):
        entry.function, entry.index, entry.flags = leaf.function, leaf.index, leaf.flags
        entry.eax, entry.ebx, entry.ecx, entry.edx = leaf.eax, leaf.ebx, leaf.ecx, leaf.edx
    try:
        call(vcpu_fd, "KVM_SET_CPUID2", table)
    except HostError as error:
        raise HostError(f"{error}; KVM refuses the processor that it said it supports") from error
