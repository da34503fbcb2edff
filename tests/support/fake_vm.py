"""A hypervisor VM that only notes what is asked of it, for tests of what stands on one."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class FakeVm:
    """Memory slots and interrupt lines, as lists of what happened."""

    slots: dict[int, tuple[int, memoryview]] = field(default_factory=dict)
    events: list[tuple[object, ...]] = field(default_factory=list)

    def map_ram(self, slot: int, gpa: int, memory: memoryview, read_only: bool = False) -> None:
        assert slot not in self.slots
        self.slots[slot] = (gpa, memory)
        self.events.append(("map", slot, read_only))

    def unmap(self, slot: int) -> None:
        del self.slots[slot]
        self.events.append(("unmap", slot))

    def set_irq(self, gsi: int, level: bool) -> None:
        self.events.append(("irq", gsi, level))
