"""As much of the machine as boot has to know to describe it to the guest."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.memory import Region
from vmm import memory_map


@dataclass(frozen=True, slots=True)
class VirtioMmio:
    """A virtio-mmio device as the guest has to find it: its slot, from 0, and its line."""

    slot: int
    gsi: int

    @property
    def address(self) -> int:
        """Guest address of its register page."""
        return memory_map.slot_address(self.slot)


@dataclass(frozen=True, slots=True)
class Hardware:
    """RAM in bytes, CPUs (1 to 8), virtio devices, and whether there are APICs."""

    memory_size: int
    cpus: int = 1
    devices: tuple[VirtioMmio, ...] = ()
    irqchip: bool = True

    @property
    def regions(self) -> tuple[Region, ...]:
        """RAM, in order of address."""
        return memory_map.regions(self.memory_size)
