"""The KVM backend for x86-64 hosts (kernel documentation: virt/kvm/api.rst)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmm.hypervisor.kvm.system import Kvm

__all__ = ["Kvm"]


def __getattr__(name: str) -> Any:
    # Not at import: build.py is in this package too, and runs before the extension is there.
    if name == "Kvm":
        from vmm.hypervisor.kvm.system import Kvm

        return Kvm
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
