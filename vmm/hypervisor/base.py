"""What a hypervisor backend is to the rest of the machine: four small interfaces.

A vCPU runs until the guest does something that only the machine can answer, calls the
:class:`ExitHandler`, and goes on. The shape is that of the narrowest backend: an exit is a call
that returns its answer, never an event to be picked up later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from vmm.hypervisor.state import Regs, Sregs


class ExitHandler(Protocol):
    """Answers what the guest asks of ports and of addresses without memory.

    Called on the vCPU's own thread, several vCPUs at once. ``size`` is in bytes: 1, 2 or 4 for
    ports, 1 to 8 for MMIO (odd sizes are the parts of an access that crosses a page). Values are
    little-endian numbers; of what a read returns, the low ``size`` bytes count.
    An exception ends :meth:`Vcpu.run` with it.
    """

    def pio_read(self, port: int, size: int) -> int: ...

    def pio_write(self, port: int, size: int, value: int) -> None: ...

    def mmio_read(self, address: int, size: int) -> int: ...

    def mmio_write(self, address: int, size: int, value: int) -> None: ...


class Stop(Enum):
    """Why :meth:`Vcpu.run` returned."""

    KICKED = "kicked"
    """Somebody called :meth:`Vcpu.kick`; one return answers every kick so far."""
    HALTED = "halted"
    """HLT, on a machine whose interrupt controller is not in the backend."""
    POWERED_OFF = "powered off"
    """The guest asked the hypervisor itself to power off."""
    RESET = "reset"
    """The guest asked the hypervisor itself for a reset."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend offers on this host."""

    irqchip: bool
    """Interrupt controllers and timer live in the backend: PICs, IOAPIC, local APICs, PIT."""
    ioeventfd: bool
    """A guest's write can signal an eventfd without an exit."""
    irqfd: bool
    """An eventfd can raise an interrupt line, and hear that the guest has acknowledged it."""
    read_only_slots: bool
    """Memory that the guest reads without an exit and writes with one."""
    immediate_exit: bool
    """A vCPU can be stopped between two instructions without a race."""
    max_cpus: int
    coherent: bool
    """Others may work on guest memory while the guest runs, as on a processor. If not, nobody but
    the vCPU's thread touches a ring, between two runs (:class:`MediatedVm`, vmm.mediation)."""
    translated: bool
    """The guest's code is translated in software: what the host can do for it is done here."""
    software: bool
    """Kernel code is interpreted, incompletely: small guests run, stock kernels do not."""


class Vcpu(Protocol):
    """One virtual CPU. Everything but :meth:`kick` belongs to one thread at a time."""

    index: int
    """Its number, from 0, which is also its APIC id. Number 0 boots; on a machine with an
    interrupt controller the others wait for INIT and SIPI inside :meth:`run`."""

    @property
    def run_returns(self) -> int:
        """How many times the guest was left for user space: what the data path must not raise."""
        ...

    def run(self, handler: ExitHandler) -> Stop:
        """Run the guest on the calling thread, answering its exits, until it stops.

        GuestDied, with registers and instruction bytes, if it cannot go on.
        """
        ...

    def kick(self) -> None:
        """Make :meth:`run` return ``Stop.KICKED``: now, or at once when it is next called.

        Any thread may call it, the handler too; an access already answered is completed first. A
        backend may finish the straight run of instructions that the guest is in.
        """
        ...

    def get_regs(self) -> Regs: ...

    def set_regs(self, regs: Regs) -> None: ...

    def get_sregs(self) -> Sregs: ...

    def set_sregs(self, sregs: Sregs) -> None: ...


class Vm(Protocol):
    """One virtual machine: memory, vCPUs, and wires between eventfds and the guest.

    What the host refuses raises HostError with the name of the call.
    """

    @property
    def vcpus(self) -> Sequence[Vcpu]: ...

    def map_ram(self, slot: int, gpa: int, memory: memoryview, read_only: bool = False) -> None:
        """Show ``memory`` (page-aligned, whole pages, and kept mapped until :meth:`unmap` or
        :meth:`close`) to the guest at ``gpa``.

        ``slot`` is a free number below the host's limit (at least 32). Guest writes to a
        ``read_only`` slot go to the exit handler as MMIO.
        """
        ...

    def unmap(self, slot: int) -> None:
        """Take the memory of ``slot`` away: its addresses are MMIO from now on."""
        ...

    def read(self, gpa: int, size: int) -> bytes:
        """The bytes that the guest has at ``gpa``, up to ``size``, fewer where memory ends."""
        ...

    def create_vcpu(self, index: int) -> Vcpu:
        """vCPU number ``index``, in the state after a processor's reset."""
        ...

    def add_ioeventfd(
        self, fd: int, address: int, size: int, value: int | None = None, *, pio: bool = False
    ) -> None:
        """Signal eventfd ``fd`` when the guest writes ``size`` bytes at ``address``, instead of
        an exit. Where ``value`` is given, other values still exit. Size 0: any, without a value.
        """
        ...

    def remove_ioeventfd(
        self, fd: int, address: int, size: int, value: int | None = None, *, pio: bool = False
    ) -> None:
        """Undo :meth:`add_ioeventfd`, called with the same arguments."""
        ...

    def add_irqfd(self, fd: int, gsi: int, resample_fd: int | None = None) -> None:
        """Raise interrupt ``gsi`` whenever eventfd ``fd`` is signalled: an edge; or, with
        ``resample_fd``, a level that drops at the guest's end-of-interrupt, which is told there.
        """
        ...

    def remove_irqfd(self, fd: int, gsi: int) -> None: ...

    def set_irq(self, gsi: int, level: bool) -> None:
        """Set the level of interrupt line ``gsi``."""
        ...

    def close(self) -> None:
        """Release the VM and its vCPUs, none of which may be running."""
        ...


class MediatedVm(Vm, Protocol):
    """What a VM can besides, on a backend that is not coherent."""

    def on_write(self, address: int, size: int, value: int, callback: Callable[[], None]) -> None:
        """Call ``callback``, on the vCPU's thread, instead of an exit for that write."""
        ...

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call ``callback``, on the vCPU's thread and between two runs, whenever ``fd`` was
        signalled since the last time."""
        ...

    def forget(self, fd: int) -> None:
        """Undo :meth:`watch`; a call that is under way may still end later."""
        ...

    def written_hook(self) -> tuple[int, int]:
        """The addresses of a C function ``void (*)(void *context, uint64_t gpa, uint64_t length)``,
        to be called for guest memory that others have written, and of its context."""
        ...


class Hypervisor(Protocol):
    """A backend on this host."""

    capabilities: Capabilities

    def create_vm(self, cpus: int = 1, *, irqchip: bool = True) -> Vm:
        """An empty machine that will have ``cpus`` vCPUs; ``irqchip`` False leaves out interrupt
        controllers and timer, and makes HLT a stop."""
        ...

    def close(self) -> None: ...
