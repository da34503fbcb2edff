"""/dev/kvm: what this host's KVM can do, and where virtual machines come from."""

from __future__ import annotations

import os
from collections.abc import Callable

from protocol.errors import BadInput, HostError
from vmm.hypervisor import detect
from vmm.hypervisor.base import Capabilities
from vmm.hypervisor.kvm import cpuid, msrs
from vmm.hypervisor.kvm._kvm import lib
from vmm.hypervisor.kvm.ioctl import call
from vmm.hypervisor.kvm.vm import KvmVm

# What no machine of ours can do without, and since which kernel it is there (the newest decides:
# KVM_CAP_IMMEDIATE_EXIT came with 4.11).
_REQUIRED = (
    "KVM_CAP_USER_MEMORY",
    "KVM_CAP_DESTROY_MEMORY_REGION_WORKS",
    "KVM_CAP_EXT_CPUID",
    "KVM_CAP_SET_TSS_ADDR",
    "KVM_CAP_SET_IDENTITY_MAP_ADDR",
    "KVM_CAP_IMMEDIATE_EXIT",
    "KVM_CAP_MAX_VCPUS",
)


class Kvm:
    """An open /dev/kvm.

    BadInput when it may not be opened; HostError when it is not there, or is too old.
    """

    def __init__(self, path: str = "/dev/kvm") -> None:
        self._fd = _open(path)
        try:
            version = call(self._fd, "KVM_GET_API_VERSION")
            if version != lib.KVM_API_VERSION:
                raise HostError(f"{path} speaks API version {version}, not {lib.KVM_API_VERSION}")
            self.capabilities = read_capabilities(self._extension, detect.kvm_is_software())
        except BaseException:
            self.close()
            raise

    def _extension(self, name: str) -> int:
        return call(self._fd, "KVM_CHECK_EXTENSION", getattr(lib, name))

    def create_vm(self, cpus: int = 1, *, irqchip: bool = True) -> KvmVm:
        """An empty machine for ``cpus`` vCPUs (Hypervisor.create_vm)."""
        if not 1 <= cpus <= self.capabilities.max_cpus:
            raise HostError(f"{cpus} CPUs: this host's KVM has 1 to {self.capabilities.max_cpus}")
        if irqchip and not self.capabilities.irqchip:
            raise HostError("this host's KVM lacks KVM_CAP_IRQCHIP or KVM_CAP_PIT2")
        deadline_timer = irqchip and bool(self._extension("KVM_CAP_TSC_DEADLINE_TIMER"))
        return KvmVm(
            call(self._fd, "KVM_CREATE_VM"),
            run_size=call(self._fd, "KVM_GET_VCPU_MMAP_SIZE"),
            cpuid=[
                cpuid.filtered(cpuid.read_supported(self._fd), index, cpus, deadline_timer)
                for index in range(cpus)
            ],
            msr_indices=msrs.read_indices(self._fd),
            irqchip=irqchip,
            software=self.capabilities.software,
        )

    def close(self) -> None:
        """Close the descriptor; machines made from it live on."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> Kvm:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


# What runs guests without KVM.
_OR_ELSE = "or take the software CPU: pip install 'vibe-vmm[software]'"


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError as error:
        raise BadInput(
            path,
            "no permission to open it; join the group that owns it (usually: "
            f"`sudo usermod -aG kvm $USER`, then log in again), {_OR_ELSE}",
        ) from error
    except OSError as error:
        raise HostError(
            f"{path}: {error.strerror}; this needs a Linux host with KVM: load kvm_intel or "
            f"kvm_amd, switch virtualization on in the firmware, {_OR_ELSE}"
        ) from error


def read_capabilities(extension: Callable[[str], int], software: bool) -> Capabilities:
    """Capabilities from ``extension(name)``, the number that KVM_CHECK_EXTENSION gives.

    HostError naming every required one that is missing.
    """
    missing = [name for name in _REQUIRED if extension(name) <= 0]
    if missing:
        raise HostError(f"this host's KVM lacks {', '.join(missing)}; Linux 4.11 has all of them")
    return Capabilities(
        irqchip=extension("KVM_CAP_IRQCHIP") > 0 and extension("KVM_CAP_PIT2") > 0,
        ioeventfd=extension("KVM_CAP_IOEVENTFD") > 0,
        irqfd=extension("KVM_CAP_IRQFD") > 0 and extension("KVM_CAP_IRQFD_RESAMPLE") > 0,
        read_only_slots=extension("KVM_CAP_READONLY_MEM") > 0,
        immediate_exit=True,
        coherent=True,
        translated=False,
        max_cpus=extension("KVM_CAP_MAX_VCPUS"),
        software=software,
    )
