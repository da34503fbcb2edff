"""What leads from the doorbells of a device process to the guest, and can be moved to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from protocol import doorbell
from protocol.virtio import Mmio
from vmm.hypervisor.base import MediatedVm, Vm
from vmm.mediation.device import OnVcpu
from vmm.mediation.pump import Pump


class DirectWires:
    """Between device and guest: KVM, and none of ours rings or drains a doorbell. ``gpa`` is where
    the registers are, ``interrupt`` an edge on line ``gsi``."""

    def __init__(
        self, vm: Vm, gpa: int, gsi: int, queues: int, interrupt: Callable[[], None]
    ) -> None:
        self._vm = vm
        self._notify = gpa + Mmio.QUEUE_NOTIFY
        self._gsi = gsi
        self._queues = queues
        self._interrupt = interrupt
        self._bells: Mapping[str, int] | None = None

    def connect(self, bells: Mapping[str, int]) -> None:
        """Lead ``bells`` to the guest (vmm.seat.Wires)."""
        # A notification of the guest's between the two is an exit, and is dropped: whoever
        # comes looks at its rings when it starts, which is later.
        if (old := self._bells) is not None:
            for queue in range(self._queues):
                self._vm.remove_ioeventfd(old[f"kick{queue}"], self._notify, 4, queue)
            self._vm.remove_irqfd(old["call"], self._gsi)
        self._bells = bells
        for queue in range(self._queues):
            self._vm.add_ioeventfd(bells[f"kick{queue}"], self._notify, 4, queue)
        self._vm.add_irqfd(bells["call"], self._gsi)
        if old is not None:
            # For what the one before published and did not live to tell.
            self._interrupt()

    def halt(self) -> None:
        """Nothing: who sits there leaves what is in flight in its journal (vmm.seat.Wires)."""


class PumpedWires:
    """Between device and guest: ``pump``, whose doorbells are KVM's for good."""

    def __init__(self, vm: Vm, gpa: int, gsi: int, pump: Pump) -> None:
        self._pump = pump
        for queue, kick in enumerate(pump.kicks):
            vm.add_ioeventfd(kick, gpa + Mmio.QUEUE_NOTIFY, 4, queue)
        vm.add_irqfd(pump.line, gsi)

    def connect(self, bells: Mapping[str, int]) -> None:
        """Lead ``bells`` to the guest (vmm.seat.Wires)."""
        doorbell.steady(bells.values())
        self._pump.connect(bells)

    def halt(self) -> None:
        """Move no chains (vmm.seat.Wires)."""
        self._pump.halt()


class MediatedWires:
    """Between device and guest: mediators on the vCPU's thread."""

    def __init__(self, vm: MediatedVm, gpa: int, device: OnVcpu, queues: int) -> None:
        self._vm = vm
        self._device = device
        self._call: int | None = None
        for queue in range(queues):
            vm.on_write(gpa + Mmio.QUEUE_NOTIFY, 4, queue, partial(device.kick, queue))

    def connect(self, bells: Mapping[str, int]) -> None:
        """Lead ``bells`` to the guest (vmm.seat.Wires)."""
        doorbell.steady(bells.values())
        old, self._call = self._call, bells["call"]
        if old is not None:
            self._vm.forget(old)
        self._device.connect(bells)
        self._vm.watch(bells["call"], self._device.complete)
        if old is not None:
            doorbell.ring(bells["call"])

    def halt(self) -> None:
        """Move no chains (vmm.seat.Wires)."""
        self._device.halt()
