"""A virtual machine: memory slots, vCPUs, and eventfds wired to the guest."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vmm.hypervisor.kvm import cpuid, msrs
from vmm.hypervisor.kvm._kvm import ffi, lib
from vmm.hypervisor.kvm.ioctl import call
from vmm.hypervisor.kvm.vcpu import KvmVcpu

# Intel processors keep a page table and a task state segment in guest memory for real mode: four
# pages that must not be RAM. The addresses are arbitrary; here, between the local APICs and
# 4 GiB, the memory map has nothing.
_IDENTITY_MAP = 0xFFFB_C000
_TSS = 0xFFFB_D000


@dataclass(frozen=True, slots=True)
class _Slot:
    gpa: int
    memory: memoryview
    # Holds the buffer: whoever closes a mapping that the guest still has gets a BufferError.
    pointer: Any
    flags: int


class KvmVm:
    """One VM (hypervisor.base.Vm); made by Kvm.create_vm. ``fd`` is its descriptor, which it owns.

    ``cpuid`` has the leaves of each vCPU, by index.
    """

    def __init__(
        self,
        fd: int,
        *,
        run_size: int,
        cpuid: Sequence[Sequence[cpuid.Leaf]],
        msr_indices: frozenset[int],
        irqchip: bool,
        software: bool,
    ) -> None:
        self.fd = fd
        self.vcpus: list[KvmVcpu] = []
        self._run_size = run_size
        self._cpuid = cpuid
        self._msr_indices = msr_indices
        self._irqchip = irqchip
        self._software = software
        self._slots: dict[int, _Slot] = {}
        try:
            call(fd, "KVM_SET_IDENTITY_MAP_ADDR", ffi.new("uint64_t *", _IDENTITY_MAP))
            call(fd, "KVM_SET_TSS_ADDR", _TSS)
            if irqchip:
                call(fd, "KVM_CREATE_IRQCHIP")
                # Port 0x61 with it: its bits that gate and read the timer belong to the timer.
                pit = ffi.new("struct kvm_pit_config *", {"flags": lib.KVM_PIT_SPEAKER_DUMMY})
                call(fd, "KVM_CREATE_PIT2", pit)
        except BaseException:
            self.close()
            raise

    def map_ram(self, slot: int, gpa: int, memory: memoryview, read_only: bool = False) -> None:
        """Show ``memory`` to the guest at ``gpa`` (hypervisor.base.Vm.map_ram)."""
        if slot in self._slots:
            raise ValueError(f"slot {slot} is in use")
        pointer = ffi.from_buffer(memory, require_writable=not read_only)
        flags = lib.KVM_MEM_READONLY if read_only else 0
        self._set_slot(slot, _Slot(gpa, memory, pointer, flags), memory.nbytes)

    def unmap(self, slot: int) -> None:
        """Take the memory of ``slot`` away (hypervisor.base.Vm.unmap)."""
        # The kernel removes a slot that is given the size 0.
        self._set_slot(slot, self._slots[slot], 0)

    def _set_slot(self, number: int, slot: _Slot, size: int) -> None:
        # The pointer stays valid while the kernel knows it: the slot is kept until it is removed.
        region = ffi.new("struct kvm_userspace_memory_region *")
        region.slot, region.flags = number, slot.flags
        region.guest_phys_addr, region.memory_size = slot.gpa, size
        region.userspace_addr = int(ffi.cast("uintptr_t", slot.pointer))
        call(self.fd, "KVM_SET_USER_MEMORY_REGION", region)
        if size:
            self._slots[number] = slot
        else:
            del self._slots[number]

    def read(self, gpa: int, size: int) -> bytes:
        """The bytes the guest has at ``gpa``, fewer than ``size`` where its slot ends."""
        for slot in self._slots.values():
            start = gpa - slot.gpa
            if 0 <= start < slot.memory.nbytes:
                return bytes(slot.memory[start : start + size])
        return b""

    def create_vcpu(self, index: int) -> KvmVcpu:
        """vCPU number ``index`` (hypervisor.base.Vm.create_vcpu)."""
        leaves = self._cpuid[index]
        fd = call(self.fd, "KVM_CREATE_VCPU", index)
        vcpu = KvmVcpu(fd, index, self._run_size, self.read, self._software)
        try:
            vcpu.set_cpuid(leaves)
            vcpu.set_msrs(msrs.firmware(fd, self._msr_indices, leaves))
            # The others lose what is set here to the INIT that starts them.
            if self._irqchip and index == 0:
                vcpu.wire_interrupt_pins()
        except BaseException:
            vcpu.close()
            raise
        self.vcpus.append(vcpu)
        return vcpu

    def add_ioeventfd(
        self, fd: int, address: int, size: int, value: int | None = None, *, pio: bool = False
    ) -> None:
        """Signal ``fd`` instead of an exit (hypervisor.base.Vm.add_ioeventfd)."""
        self._ioeventfd(0, fd, address, size, value, pio)

    def remove_ioeventfd(
        self, fd: int, address: int, size: int, value: int | None = None, *, pio: bool = False
    ) -> None:
        """Undo add_ioeventfd, called with the same arguments."""
        self._ioeventfd(lib.KVM_IOEVENTFD_FLAG_DEASSIGN, fd, address, size, value, pio)

    def _ioeventfd(
        self, flags: int, fd: int, address: int, size: int, value: int | None, pio: bool
    ) -> None:
        if value is not None:
            flags |= lib.KVM_IOEVENTFD_FLAG_DATAMATCH
        if pio:
            flags |= lib.KVM_IOEVENTFD_FLAG_PIO
        wire = ffi.new("struct kvm_ioeventfd *")
        wire.addr, wire.len, wire.fd, wire.flags = address, size, fd, flags
        wire.datamatch = value or 0
        call(self.fd, "KVM_IOEVENTFD", wire)

    def add_irqfd(self, fd: int, gsi: int, resample_fd: int | None = None) -> None:
        """Raise ``gsi`` whenever ``fd`` is signalled (hypervisor.base.Vm.add_irqfd)."""
        wire = ffi.new("struct kvm_irqfd *", {"fd": fd, "gsi": gsi})
        if resample_fd is not None:
            wire.flags, wire.resamplefd = lib.KVM_IRQFD_FLAG_RESAMPLE, resample_fd
        call(self.fd, "KVM_IRQFD", wire)

    def remove_irqfd(self, fd: int, gsi: int) -> None:
        """Undo add_irqfd; done when it returns."""
        wire = ffi.new("struct kvm_irqfd *", {"fd": fd, "gsi": gsi})
        wire.flags = lib.KVM_IRQFD_FLAG_DEASSIGN
        call(self.fd, "KVM_IRQFD", wire)

    def set_irq(self, gsi: int, level: bool) -> None:
        """Set the level of interrupt line ``gsi``."""
        call(self.fd, "KVM_IRQ_LINE", ffi.new("struct kvm_irq_level *", [gsi, level]))

    def close(self) -> None:
        """Release the vCPUs, none of which may be running, and the VM."""
        for vcpu in self.vcpus:
            vcpu.close()
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1
        self._slots.clear()

    def __enter__(self) -> KvmVm:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()
