"""The KVM backend for x86-64 hosts (kernel documentation: virt/kvm/api.rst)."""

from vmm.hypervisor.kvm.system import Kvm

__all__ = ["Kvm"]
