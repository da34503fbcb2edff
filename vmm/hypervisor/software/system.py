"""The software backend as a whole: what it can do, and where its machines come from."""

from __future__ import annotations

from protocol.errors import HostError
from protocol.specs import Architecture
from vmm.hypervisor.base import Capabilities
from vmm.hypervisor.software import unicorn
from vmm.hypervisor.software.vm import SoftwareVm

CAPABILITIES = Capabilities(
    irqchip=True,
    ioeventfd=True,
    irqfd=True,
    read_only_slots=False,
    immediate_exit=True,
    coherent=False,
    translated=True,
    max_cpus=1,
    software=False,
)


class Software:
    """The engine, there, for machines of one architecture.

    HostError, with the command that installs it, if it is not.
    """

    def __init__(self, architecture: Architecture = "x86_64") -> None:
        unicorn.library()
        self._architecture = architecture
        self.capabilities = CAPABILITIES

    def create_vm(self, cpus: int = 1, *, irqchip: bool = True) -> SoftwareVm:
        """An empty machine of one CPU (Hypervisor.create_vm)."""
        if cpus != 1:
            raise HostError(f"{cpus} CPUs: the software CPU is one; two would not see each other")
        if self._architecture == "arm64":
            # With much that a PC does not need.
            from vmm.hypervisor.software.arm64 import Arm64Vm

            return Arm64Vm(irqchip=irqchip)
        return SoftwareVm(irqchip=irqchip)

    def close(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> Software:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()
