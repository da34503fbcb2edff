"""A driver, a mediator, and a ring engine as the device on the other side of it.

The guest's RAM is that of ``ring_pair``. The shadow ring lies behind it in the same file, at an
address that only the device's memory knows, which is a mapping of its own, as in life.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from protocol.memory import GuestMemory, Region, create_memfd
from protocol.messages import QueueSetup
from protocol.ring import Ring
from tests.support.driver import Driver
from tests.support.ring_pair import HIGH, LOW
from vmm.mediation import Arena, Hook, Mediator, ShadowMemory, lay_out

SHADOW = Region(0x8000_0000, 0x10_0000, LOW.offset + LOW.size)

ARENA = SHADOW.gpa + 0x8_0000
"""Where an arena is, if there is one: behind every shadow ring of these tests."""


@dataclass
class Mediated:
    """``stale`` is what the hook was told, unless the test brought a hook of its own."""

    driver: Driver
    mediator: Mediator
    device: Ring
    device_memory: GuestMemory
    shadow: QueueSetup
    stale: list[tuple[int, int]] = field(default_factory=list)

    def serve(self, answer: bytes = b"") -> list[int]:
        """Let the device answer all that it has, in order; returns the heads it saw."""
        heads = []
        while chains := self.device.pop():
            for chain in chains:
                chain.writable.write(answer)
                heads.append(chain.head)
            self.device.push([(chain.head, chain.writable.written) for chain in chains])
        return heads


@contextmanager
def memories(*, bounced: bool = False) -> Iterator[tuple[GuestMemory, ShadowMemory, GuestMemory]]:
    """Guest RAM and shadow memory as the VMM maps them, and both as the device does; one that is
    ``bounced`` does without the guest's."""
    fd = create_memfd("mediated", SHADOW.offset + SHADOW.size)
    try:
        with (
            GuestMemory(fd, (LOW, HIGH)) as guest,
            GuestMemory(fd, (SHADOW,) if bounced else (LOW, HIGH, SHADOW)) as device,
            mmap.mmap(fd, SHADOW.size, offset=SHADOW.offset) as mapping,
            memoryview(mapping) as view,
        ):
            yield guest, ShadowMemory(SHADOW.gpa, view), device
    finally:
        os.close(fd)


@contextmanager
def mediated(
    size: int = 16,
    *,
    shadow_size: int = 0,
    event_idx: bool = False,
    indirect: bool = True,
    start: int = 0,
    hook: Hook | None = None,
    arena: int = 0,
) -> Iterator[Mediated]:
    """All three of a queue of ``size``, whose indices begin at ``start`` on the guest's side; with
    an ``arena`` of so many bytes, if any."""
    stale: list[tuple[int, int]] = []
    with memories(bounced=bool(arena)) as (guest, shadow_memory, device_memory):
        driver = Driver(guest, size, event_idx=event_idx, start=start)
        shadow = lay_out(SHADOW.gpa, shadow_size or size)
        told: Hook = hook or (lambda gpa, length: stale.append((gpa, length)))
        with (
            attach(driver, shadow, shadow_memory, told, indirect=indirect, arena=arena) as mediator,
            shadow_ring(device_memory, shadow) as device,
        ):
            yield Mediated(driver, mediator, device, device_memory, shadow, stale)


def attach(
    driver: Driver,
    shadow: QueueSetup,
    shadow_memory: ShadowMemory,
    hook: Hook | Callable[[int, int], None],
    *,
    indirect: bool = True,
    arena: int = 0,
) -> Mediator:
    """A mediator for the queue that ``driver`` laid out."""
    return Mediator(
        driver.memory,
        QueueSetup(0, driver.size, driver.desc, driver.avail, driver.used),
        shadow,
        shadow_memory,
        hook=hook,
        arena=Arena(ARENA, arena) if arena else None,
        event_idx=driver.event_idx,
        indirect=indirect,
    )


def shadow_ring(memory: GuestMemory, shadow: QueueSetup) -> Ring:
    """The device's half of the shadow ring."""
    return Ring(
        memory,
        shadow.size,
        shadow.desc,
        shadow.avail,
        shadow.used,
        event_idx=False,
        indirect=False,
    )
