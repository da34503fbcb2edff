"""A driver and a ring engine on the two sides of one queue in a guest memory with a hole."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from protocol.journal import QueueJournal
from protocol.memory import GuestMemory, Region, create_memfd
from protocol.ring import Ring
from tests.support.driver import Driver

# Two pieces of RAM with a hole between them; their order in the file is not that of their
# addresses, so that an offset taken for an address shows.
LOW = Region(0, 0x20_0000, 0x10_0000)
HIGH = Region(0x40_0000, 0x10_0000, 0)


@contextmanager
def guest_memory(regions: Sequence[Region] = (LOW, HIGH)) -> Iterator[GuestMemory]:
    """RAM in ``regions``, gone at the end."""
    fd = create_memfd("test", max(region.offset + region.size for region in regions))
    try:
        with GuestMemory(fd, regions) as memory:
            yield memory
    finally:
        os.close(fd)


@contextmanager
def ring_pair(
    size: int = 16, *, event_idx: bool = False, indirect: bool = True, start: int = 0
) -> Iterator[tuple[Driver, Ring]]:
    """Both halves of a queue of ``size``, whose indices begin at ``start``."""
    with guest_memory() as memory:
        driver = Driver(memory, size, event_idx=event_idx, start=start)
        with attach(driver, indirect=indirect) as ring:
            yield driver, ring


def attach(
    driver: Driver,
    *,
    indirect: bool = True,
    journal: QueueJournal | None = None,
    position: int = 0,
    kind: type[Ring] = Ring,
) -> Ring:
    """The device's half of the queue that ``driver`` laid out."""
    return kind(
        driver.memory,
        driver.size,
        driver.desc,
        driver.avail,
        driver.used,
        event_idx=driver.event_idx,
        indirect=indirect,
        journal=journal,
        position=position,
    )
