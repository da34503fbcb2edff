"""What a queue counts, and all counters of a device in one flat table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass


@dataclass(slots=True)
class QueueStats:
    """Of one queue, since the process started. ``kicks`` are wake-ups: the kernel folds
    notifications that arrive before the device looks into one. ``errors`` are chains that the
    driver got wrong; bytes are the device's view: read from the guest, written to it."""

    chains: int = 0
    batches: int = 0
    errors: int = 0
    kicks: int = 0
    interrupts: int = 0
    bytes_read: int = 0
    bytes_written: int = 0


def flat(queues: Iterable[tuple[str, QueueStats]], own: Mapping[str, int]) -> dict[str, int]:
    """Counters by name: ``QUEUE.COUNTER`` for the queues, summed over those of the same name; the
    device's ``own`` as they are."""
    counters: Counter[str] = Counter()
    for name, stats in queues:
        for counter, value in asdict(stats).items():
            counters[f"{name}.{counter}"] += value
    return dict(counters) | dict(own)
