"""The map of memory that the guest is told (ACPI 6.4, 15: system address map interfaces)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from protocol.memory import Region
from vmm.boot.layout import BIOS_END, EBDA
from vmm.memory_map import (
    MMIO_CONSOLE,
    MMIO_CONSOLE_SIZE,
    VIRTIO_WINDOW,
    VIRTIO_WINDOW_SIZE,
)


class Kind(IntEnum):
    """What an address range is."""

    RAM = 1
    RESERVED = 2


@dataclass(frozen=True, slots=True)
class Entry:
    """``size`` bytes at guest address ``gpa``."""

    gpa: int
    size: int
    kind: Kind

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.gpa + self.size


def e820_map(regions: Iterable[Region]) -> tuple[Entry, ...]:
    """What the guest is told of RAM in ``regions``, in order of address.

    Reserved are what a PC has below 1 MiB, the virtio window (its register pages are the
    devices', not RAM) and the MMIO console, so that nothing else is put over them.
    """
    entries = [
        Entry(EBDA, BIOS_END - EBDA, Kind.RESERVED),
        Entry(VIRTIO_WINDOW, VIRTIO_WINDOW_SIZE, Kind.RESERVED),
        Entry(MMIO_CONSOLE, MMIO_CONSOLE_SIZE, Kind.RESERVED),
    ]
    for region in regions:
        if region.gpa < EBDA:
            entries.append(Entry(region.gpa, EBDA - region.gpa, Kind.RAM))
            entries.append(Entry(BIOS_END, region.end - BIOS_END, Kind.RAM))
        else:
            entries.append(Entry(region.gpa, region.size, Kind.RAM))
    return tuple(sorted(entries, key=lambda entry: entry.gpa))
