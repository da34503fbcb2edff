"""Counting and tracing stand before the bus, and change nothing of what it answers."""

from __future__ import annotations

import os
from pathlib import Path

from protocol.trace import Trace
from vmm.exits import OTHER_ADDRESS, CountingHandler, Counts, Place, TracingHandler, report


class Recorder:
    """A bus that answers 7 and remembers."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []

    def pio_read(self, port: int, size: int) -> int:
        self.asked.append(("in", port, size))
        return 7

    def pio_write(self, port: int, size: int, value: int) -> None:
        self.asked.append(("out", port, size, value))

    def mmio_read(self, address: int, size: int) -> int:
        self.asked.append(("load", address, size))
        return 7

    def mmio_write(self, address: int, size: int, value: int) -> None:
        self.asked.append(("store", address, size, value))


ALL_FOUR = [("in", 1, 2), ("out", 3, 1, 4), ("load", 5, 8), ("store", 6, 4, 9)]


def use(handler: CountingHandler | TracingHandler) -> list[int]:
    read = handler.pio_read(1, 2)
    handler.pio_write(3, 1, 4)
    loaded = handler.mmio_read(5, 8)
    handler.mmio_write(6, 4, 9)
    return [read, loaded]


def test_counting_passes_everything_on() -> None:
    bus = Recorder()

    assert use(CountingHandler(bus, Counts())) == [7, 7]
    assert bus.asked == ALL_FOUR


def test_counts_of_all_cpus_are_added_and_named_after_their_place() -> None:
    first, second = Counts(), Counts()
    use(CountingHandler(Recorder(), first))
    use(CountingHandler(Recorder(), first))  # another life of the same vCPU
    use(CountingHandler(Recorder(), second))

    rows = report([first, second], [Place("port", 3, 1, "serial"), Place("mmio", 0, 8, "console")])

    found = {(row.kind, row.address): (row.device, row.count) for row in rows}
    assert found == {
        ("port read", 1): ("nobody", 3),
        ("port write", 3): ("serial", 3),
        ("mmio read", 5): ("console", 3),
        ("mmio write", 6): ("console", 3),
    }
    assert all(row.nanoseconds > 0 for row in rows)


def test_a_report_begins_with_the_most_frequent() -> None:
    counts = Counts()
    handler = CountingHandler(Recorder(), counts)
    for _ in range(3):
        handler.pio_read(2, 1)
    handler.pio_read(1, 1)

    assert [row.address for row in report([counts], [])] == [2, 1]


def test_a_guest_that_touches_everything_fills_no_memory() -> None:
    counts = Counts()
    handler = CountingHandler(Recorder(), counts)
    for address in range(10_000):
        handler.mmio_read(address, 1)

    found = dict(counts.items())
    assert len(found) < 1000
    assert sum(count for count, _ in found.values()) == 10_000
    assert found["mmio read", OTHER_ADDRESS][0] > 9000


def test_tracing_passes_everything_on_and_writes_a_line_each(tmp_path: Path) -> None:
    bus = Recorder()
    fd = os.open(tmp_path / "trace", os.O_WRONLY | os.O_CREAT)
    trace = Trace(fd, "vmm")

    assert use(TracingHandler(bus, trace, 2)) == [7, 7]

    trace.flush()
    os.close(fd)
    assert bus.asked == ALL_FOUR
    lines = [line.split("\t") for line in (tmp_path / "trace").read_text().splitlines()]
    assert [line[2:] for line in lines] == [
        ["vmm", "exit", "cpu2 port 0x1 read 2 = 0x7"],
        ["vmm", "exit", "cpu2 port 0x3 write 1 = 0x4"],
        ["vmm", "exit", "cpu2 mmio 0x5 read 8 = 0x7"],
        ["vmm", "exit", "cpu2 mmio 0x6 write 4 = 0x9"],
    ]
    assert all(int(start) > 0 and int(duration) >= 0 for start, duration, *_ in lines)
