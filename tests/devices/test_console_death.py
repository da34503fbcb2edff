"""A console that dies before any of its lines, and its successor: no byte is lost or repeated.

The device runs in this process, on memory, journal and stream that outlive it. A trace function
kills it by an exception in front of the line whose turn it is; what it had in its own memory is
forgotten, and a successor is made of what is shared. The deaths inside one call of the ring engine
are in tests/protocol/test_journal.py.
"""

from __future__ import annotations

import gc
import itertools
import select
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import devices.console
import devices.runtime.queue
import devices.runtime.worker
import protocol.stream
from devices.console import Config, Console
from devices.runtime.loop import Loop
from devices.runtime.worker import Worker
from launcher.streams import LogEnd
from protocol import doorbell, fds, journal
from protocol.errors import ProtocolError
from protocol.memory import GuestMemory, Region, create_memfd
from protocol.messages import QueueSetup
from protocol.virtio import Feature, bit
from tests.support.driver import Driver

pytestmark = pytest.mark.slow  # processes by the dozen

RECEIVEQ, TRANSMITQ = 0, 1


@dataclass(frozen=True)
class Scenario:
    """What the guest prints, chain by chain; what is typed, ``at_once`` bytes of it at most; and
    the sizes of the buffers for that."""

    printed: tuple[bytes, ...]
    typed: bytes
    at_once: int
    room: tuple[int, ...]


# Chains that fill the stream more than once, and keys one after the other.
TALK = Scenario(
    (b"one ", b"two " * 25_000, b"three ", b"four " * 2_000, b"five"),
    b"".join(b"%06d" % number for number in range(40)),
    50,
    (1, 64, 7, 100, 3, 128),
)
# Input that fills the stream, and is taken by one buffer.
PASTE = Scenario((), b"".join(b"%06d" % number for number in range(30_000)), 1 << 20, (1 << 16,))

MIB = 1 << 20
FILES = {
    module.__file__
    for module in (devices.console, devices.runtime.queue, devices.runtime.worker, protocol.stream)
}


@pytest.fixture(autouse=True)
def _no_dead(_no_leaks: None) -> Iterator[None]:
    """The dead, which refer to themselves in circles, let go of what they had mapped."""
    yield
    gc.collect()


class Killed(BaseException):
    """In front of some line."""


class Machine:
    """Driver and launcher, which live, and one device after the other."""

    def __init__(self, scenario: Scenario, stack: ExitStack) -> None:
        self._scenario = scenario
        memfd = create_memfd("test", 4 * MIB)
        self.memory = stack.enter_context(GuestMemory(memfd, [Region(0, 4 * MIB, 0)]))
        self.end = LogEnd("console0")
        stack.callback(self.end.close)
        self.journal = journal.create("test", [64, 64])
        doorbells = {name: doorbell.create() for name in ("kick0", "kick1", "call")}
        self.fds = {"journal": self.journal, **self.end.fds, **doorbells}
        stack.callback(fds.close_all, [memfd, *self.fds.values()])
        self.drivers = [
            Driver(self.memory, 16, base=0x1000 + index * 2 * MIB, length=MIB) for index in (0, 1)
        ]
        self.lines = 0
        self.deaths: Iterator[int] = iter(())
        self._die_at: int | None = None
        self._worker: Worker | None = None
        self._loop = Loop()
        self.given = b""
        self.shown = b""
        self._typed = 0
        self._has_more = True

    def run(self, deaths: list[int]) -> None:
        """Have everything printed and typed; the device dies in front of each of these lines,
        which are counted from the birth of the process that dies."""
        self.deaths = iter(deaths)
        self._die_at = next(self.deaths, None)
        self.lines = 0
        printed, received = self.drivers[TRANSMITQ], self.drivers[RECEIVEQ]
        for data in self._scenario.printed:
            printed.add([data])
        all_printed, typed = b"".join(self._scenario.printed), self._scenario.typed
        room = itertools.cycle(self._scenario.room)
        turn = 0
        while self.given != typed or self.shown != all_printed or printed.pending:
            turn += 1
            assert turn < 200, f"{len(self.given)} bytes given, {len(self.shown)} shown"
            while received.pending < 4:
                received.add([], [next(room)])
            for index, driver in enumerate(self.drivers):
                if driver.publish():
                    doorbell.ring(self.fds[f"kick{index}"])
            self._turn_device()
            self._turn_launcher()
            printed.collect()
            self.given += b"".join(used.data for used in received.collect())
            assert typed.startswith(self.given)
            assert all_printed.startswith(self.shown)

    def _turn_launcher(self) -> None:
        # It looks when it is woken, and shows a part of what there is, as to a reader that is slow.
        if not (self._has_more or select.select([self.end], [], [], 0)[0]):
            return
        self.end.drain()
        views = self.end.peek()
        size = min(sum(map(len, views)), 30_000)
        self.shown += b"".join(views)[:size]
        self.end.take(size)
        self._has_more = size == 30_000
        typed = self._scenario.typed[self._typed :]
        self._typed += self.end.send(typed[: self._scenario.at_once])

    def _turn_device(self) -> None:
        sys.settrace(self._enter)
        try:
            if self._worker is None:
                self.start()
            for _ in range(3):
                self._loop._stopped = False
                self._loop.soon(self._loop.stop)
                self._loop.run()
        except Killed:
            sys.settrace(None)
            self.bury()
        finally:
            sys.settrace(None)

    def start(self) -> Worker:
        """A device that goes on from what is shared."""
        config = Config(cols=1, rows=1)
        kept = journal.Journal(self.journal, [64, 64])
        worker = Worker(Console, config, self.fds, self.memory, kept, self._loop, None)
        self._worker = worker
        setups = [
            QueueSetup(index, driver.size, driver.desc, driver.avail, driver.used)
            for index, driver in enumerate(self.drivers)
        ]
        worker.start(bit(Feature.VERSION_1), setups)
        return worker

    def _enter(self, frame: FrameType, event: str, _argument: Any) -> Any:
        # Not while it handles an exception, for the interpreter forgets to let go of that one: in
        # these two lines of their own there is nothing to be killed between.
        code = frame.f_code
        is_ours = code.co_filename in FILES and code.co_name not in {"wake", "drain"}
        return self._line if is_ours else None

    def _line(self, _frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "line":
            self.lines += 1
            if self.lines == self._die_at:
                self.lines = 0
                self._die_at = next(self.deaths, None)
                raise Killed
        return self._line

    def bury(self) -> None:
        """The device is dead."""
        self.close()
        self._loop = Loop()

    def close(self) -> None:
        """What the kernel does when a process ends: it unmaps and closes, and stores nothing."""
        if self._worker is not None:
            for queue in self._worker.queues:
                if queue._ring is not None:
                    queue._ring.close()
        self._worker = None
        self._loop.close()


def run(scenario: Scenario, deaths: list[int]) -> int:
    """How many lines the last device ran."""
    with ExitStack() as stack:
        machine = Machine(scenario, stack)
        stack.callback(machine.close)
        machine.run(deaths)
        return machine.lines


def test_a_journal_that_is_ahead_of_its_stream_is_refused_until_the_reset() -> None:
    with ExitStack() as stack:
        machine = Machine(TALK, stack)
        stack.callback(machine.close)
        machine.run([])
        machine.bury()
        # Somebody lied, or something was lost.
        machine.end._stream.input[:128] = bytes(128)

        with pytest.raises(ProtocolError, match="a log cannot be consumed up to 240"):
            machine.start()
        assert machine._worker is not None
        assert not machine._worker._running
        with journal.Journal(machine.journal, [64, 64]) as kept:
            kept.clear()
        worker = machine.start()

        assert worker.position(RECEIVEQ) == 0


@pytest.mark.slow
@pytest.mark.parametrize("scenario", [TALK, PASTE], ids=["talk", "paste"])
def test_one_death_before_any_line_goes_unnoticed(scenario: Scenario) -> None:
    lines = run(scenario, [])
    assert lines > 200

    for line in range(1, lines + 1):
        run(scenario, [line])


@pytest.mark.parametrize("scenario", [TALK, PASTE], ids=["talk", "paste"])
@given(st.lists(st.integers(1, 600), max_size=8))
@settings(deadline=None, max_examples=50)
def test_many_deaths_go_unnoticed(scenario: Scenario, deaths: list[int]) -> None:
    run(scenario, deaths)


@pytest.mark.parametrize("line", range(1, 120, 7))
def test_a_successor_that_dies_while_it_takes_over_goes_unnoticed(line: int) -> None:
    run(TALK, [400, line, line + 1, line + 2, line + 3])
