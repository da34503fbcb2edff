"""Exits, counted and traced: handlers that stand before the bus when somebody asked for it.

Without ``--stats`` and ``--trace`` the vCPU calls the bus itself, and nothing here runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from time import monotonic_ns

from protocol.messages import ExitCount
from protocol.trace import Trace
from vmm.hypervisor.base import ExitHandler

# Addresses told apart by one vCPU; a guest that touches more has the rest counted under one.
# Arbitrary, above what a kernel touches; a report of all of them fits one message.
_MAX_ADDRESSES = 300
OTHER_ADDRESS = (1 << 64) - 1
"""Stands in a report for all addresses beyond the first few hundred."""


@dataclass(frozen=True, slots=True)
class Place:
    """A range of one address space (``port`` or ``mmio``) and who answers there."""

    space: str
    base: int
    length: int
    name: str


class Counts:
    """The exits of one vCPU so far, by kind and address, with the time their handling took."""

    def __init__(self) -> None:
        # (kind, address) to [count, nanoseconds]
        self._entries: dict[tuple[str, int], list[int]] = {}

    def note(self, kind: str, address: int, nanoseconds: int) -> None:
        """One more."""
        entry = self._entries.get((kind, address))
        if entry is None:
            if len(self._entries) >= _MAX_ADDRESSES:
                address = OTHER_ADDRESS
            entry = self._entries.setdefault((kind, address), [0, 0])
        entry[0] += 1
        entry[1] += nanoseconds

    def items(self) -> list[tuple[tuple[str, int], list[int]]]:
        """``(kind, address)``, and how many with how many nanoseconds. From any thread."""
        return list(self._entries.items())


class CountingHandler:
    """Counts every exit of one vCPU in ``counts``."""

    def __init__(self, inner: ExitHandler, counts: Counts) -> None:
        self._inner = inner
        self._note = counts.note

    def pio_read(self, port: int, size: int) -> int:
        start = monotonic_ns()
        value = self._inner.pio_read(port, size)
        self._note("port read", port, monotonic_ns() - start)
        return value

    def pio_write(self, port: int, size: int, value: int) -> None:
        start = monotonic_ns()
        self._inner.pio_write(port, size, value)
        self._note("port write", port, monotonic_ns() - start)

    def mmio_read(self, address: int, size: int) -> int:
        start = monotonic_ns()
        value = self._inner.mmio_read(address, size)
        self._note("mmio read", address, monotonic_ns() - start)
        return value

    def mmio_write(self, address: int, size: int, value: int) -> None:
        start = monotonic_ns()
        self._inner.mmio_write(address, size, value)
        self._note("mmio write", address, monotonic_ns() - start)


class TracingHandler:
    """Writes every exit of one vCPU to the trace."""

    def __init__(self, inner: ExitHandler, trace: Trace, cpu: int) -> None:
        self._inner = inner
        self._trace = trace
        self._cpu = cpu

    def pio_read(self, port: int, size: int) -> int:
        start = monotonic_ns()
        value = self._inner.pio_read(port, size)
        self._event(f"port {port:#x} read {size} = {value:#x}", start)
        return value

    def pio_write(self, port: int, size: int, value: int) -> None:
        start = monotonic_ns()
        self._inner.pio_write(port, size, value)
        self._event(f"port {port:#x} write {size} = {value:#x}", start)

    def mmio_read(self, address: int, size: int) -> int:
        start = monotonic_ns()
        value = self._inner.mmio_read(address, size)
        self._event(f"mmio {address:#x} read {size} = {value:#x}", start)
        return value

    def mmio_write(self, address: int, size: int, value: int) -> None:
        start = monotonic_ns()
        self._inner.mmio_write(address, size, value)
        self._event(f"mmio {address:#x} write {size} = {value:#x}", start)

    def _event(self, what: str, start: int) -> None:
        self._trace.event("exit", f"cpu{self._cpu} {what}", start)


def report(vcpus: Iterable[Counts], places: Iterable[Place]) -> tuple[ExitCount, ...]:
    """The counts of all vCPUs together, most frequent first, each with the device's name."""
    total: dict[tuple[str, int], list[int]] = {}
    for counts in vcpus:
        for key, (count, nanoseconds) in counts.items():
            entry = total.setdefault(key, [0, 0])
            entry[0] += count
            entry[1] += nanoseconds
    known = tuple(places)
    rows = (
        ExitCount(kind, address, _owner(kind, address, known), count, nanoseconds)
        for (kind, address), (count, nanoseconds) in total.items()
    )
    return tuple(sorted(rows, key=lambda row: row.count, reverse=True))[:_MAX_ADDRESSES]


def _owner(kind: str, address: int, places: Iterable[Place]) -> str:
    space = kind.split()[0]
    for place in places:
        if place.space == space and place.base <= address < place.base + place.length:
            return place.name
    return "nobody"
