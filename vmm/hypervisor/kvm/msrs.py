"""Model-specific registers: which ones KVM offers, and the few that firmware would set.

Setting one that is not offered fails (measured: 0x10A, IA32_ARCH_CAPABILITIES, on software
KVM), so nothing is set that neither KVM_GET_MSR_INDEX_LIST nor CPUID offers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from protocol.errors import HostError
from vmm.hypervisor.kvm._kvm import ffi
from vmm.hypervisor.kvm.cpuid import Leaf
from vmm.hypervisor.kvm.ioctl import call

# Room for the answer; kernel 6.18 lists 41 here. KVM says so if it is ever too little.
_MAX_INDICES = 4096

# Intel SDM, volume 4, table 2-2.
IA32_MISC_ENABLE = 0x1A0
FAST_STRINGS = 1 << 0
IA32_MTRR_DEF_TYPE = 0x2FF
MTRR_ENABLE, MTRR_WRITE_BACK = 1 << 11, 6
CPUID_MTRR = 1 << 12  # leaf 1 EDX


def read_indices(kvm_fd: int) -> frozenset[int]:
    """KVM_GET_MSR_INDEX_LIST: the MSRs that may be read and set from here."""
    table = ffi.new("struct kvm_msr_list *", {"indices": _MAX_INDICES})
    table.nmsrs = _MAX_INDICES
    call(kvm_fd, "KVM_GET_MSR_INDEX_LIST", table)
    return frozenset(table.indices[0 : table.nmsrs])


def read(vcpu_fd: int, indices: Sequence[int]) -> dict[int, int]:
    """The values of ``indices``; HostError naming the first that KVM will not read."""
    table = ffi.new("struct kvm_msrs *", {"entries": len(indices)})
    table.nmsrs = len(indices)
    for entry, index in zip(table.entries[0 : len(indices)], indices, strict=True):
        entry.index = index
    done = call(vcpu_fd, "KVM_GET_MSRS", table)
    if done < len(indices):
        raise HostError(f"KVM_GET_MSRS: KVM cannot read MSR {indices[done]:#x}")
    return {entry.index: entry.data for entry in table.entries[0:done]}


def write(vcpu_fd: int, values: Mapping[int, int]) -> None:
    """Set MSRs by index; HostError naming the first that KVM refuses."""
    table = ffi.new("struct kvm_msrs *", {"entries": len(values)})
    table.nmsrs = len(values)
    for entry, (index, value) in zip(table.entries[0 : len(values)], values.items(), strict=True):
        entry.index, entry.data = index, value
    done = call(vcpu_fd, "KVM_SET_MSRS", table)
    if done < len(values):
        index, value = list(values.items())[done]
        raise HostError(f"KVM_SET_MSRS: KVM refuses {value:#x} for MSR {index:#x}")


def firmware(vcpu_fd: int, offered: Set[int], leaves: Sequence[Leaf]) -> dict[int, int]:
    """What firmware leaves behind and Linux looks for, as far as this host offers it.

    Without fast strings Linux does without ``rep movsb``; with the MTRRs disabled it takes all
    memory for uncached and does without PAT.
    """
    wanted = {}
    if IA32_MISC_ENABLE in offered:
        before = read(vcpu_fd, [IA32_MISC_ENABLE])[IA32_MISC_ENABLE]
        wanted[IA32_MISC_ENABLE] = before | FAST_STRINGS
    if any(leaf.function == 1 and leaf.edx & CPUID_MTRR for leaf in leaves):
        wanted[IA32_MTRR_DEF_TYPE] = MTRR_ENABLE | MTRR_WRITE_BACK
    return wanted
