"""A device process as a seat sees it, which does and says what a test wants."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from protocol import journal
from protocol.errors import DeviceGone
from protocol.lifecycle import State
from protocol.messages import QueueSetup
from protocol.specs import DeviceSlot
from vmm.remote import RemoteDevice
from vmm.seat import Seat

SLOT = DeviceSlot("rng0", "rng", 4, 3, 11, (64, 16), (0,), 1, "/nowhere/rng0.1")
QUEUES = (QueueSetup(0, 64, 0x1000, 0x2000, 0x3000), QueueSetup(1, 16, 0x4000, 0x5000, 0x6000))


def stand_in() -> tuple[subprocess.Popen[bytes], int]:
    """A process in the place of a device's, that does nothing, and the writing end of the pipe that
    it reads. It ends with the test, however that does."""
    alive, ended = os.pipe()
    nothing = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    process = subprocess.Popen(nothing, stdin=subprocess.PIPE, pass_fds=[alive])
    os.close(alive)
    return process, ended


def at_work(ended: int) -> int:
    """What the kernel has open for the process at the other end of that pipe, dead or alive, while
    it is at work for it."""
    return os.open(f"/proc/self/fd/{ended}", os.O_RDONLY)


def waits_for(work: int, action: Callable[[], object], seconds: float) -> bool:
    """Whether ``action`` has not returned after so many ``seconds``, while ``work`` is open, which
    is closed then."""
    actor = threading.Thread(target=action)
    actor.start()
    actor.join(seconds)
    found = actor.is_alive()
    os.close(work)
    actor.join()
    return found


class FakeRemote:
    """``calls`` are what was asked of it. A test may put a reason into ``refuses``, or the name of
    a call into ``dies_in``; of one that ``lingers`` then something goes on."""

    def __init__(self, name: str = "rng0", *, features: int = 7, config: bytes = b"") -> None:
        self.name = name
        self.features = features
        self.queue_sizes = SLOT.queues
        self.config = config
        self.by_hand = self.is_silent = False
        self.died_at: float | None = None
        self.bells: Mapping[str, int] = {"call": id(self)}
        self.calls: list[object] = []
        self.refuses: str | None = None
        self.dies_in = ""
        self.lingers = False
        self.fenced = ""
        self.leaves = b""
        self.counted: Future[Any] = Future()
        self.before: Callable[[str], None] = lambda call: None
        self.on_config: Callable[[bytes], None] = lambda config: None
        self.on_broken: Callable[[str], None] = lambda reason: None
        self.life = type("Life", (), {"state": State.RUNNING})()

    def _called(self, name: str, *what: object) -> None:
        self.calls.append((name, *what) if what else name)
        self.before(name)
        if self.fenced or self.dies_in == name:
            raise DeviceGone(f"{self.name} is gone")

    def start(self, features: int, queues: tuple[QueueSetup, ...], state: bytes) -> str | None:
        assert queues is not None
        self._called("start", [queue.index for queue in queues], state)
        return self.refuses

    def stop(self) -> None:
        self._called("stop")

    def stop_queue(self, index: int) -> None:
        self._called("stop_queue", index)

    def quiesce(self) -> bytes:
        self._called("quiesce")
        return self.leaves

    def end(self) -> None:
        self._called("end")

    def write_config(self, offset: int, data: bytes) -> bytes:
        self._called("write_config", offset, data)
        self.config = data
        return data

    def has_ended(self) -> bool:
        return not self.lingers

    def ask(self, request: object) -> Future[Any]:
        self.calls.append(type(request).__name__)
        return Future()

    def ask_counters(self) -> Future[Any]:
        self.calls.append("ask_counters")
        return self.counted

    counters = staticmethod(RemoteDevice.counters)

    def fence(self, why: str, *, hung: bool = False) -> None:
        self.fenced = self.fenced or why


class FakeWires:
    """Remembers whose doorbells lead to the guest."""

    def __init__(self) -> None:
        self.connected: list[Mapping[str, int]] = []
        self.halted = 0

    def connect(self, bells: Mapping[str, int]) -> None:
        self.connected.append(bells)

    def halt(self) -> None:
        self.halted += 1


class Place:
    """A seat with what it told the transport."""

    def __init__(self, seat: Seat, kept: journal.Journal) -> None:
        self.seat = seat
        self.journal = kept
        self.wires = FakeWires()
        self.configs: list[bytes] = []
        self.broken: list[str] = []
        seat.on_config = self.configs.append
        seat.on_broken = self.broken.append

    def sit(self, remote: FakeRemote, *, running: bool = True) -> FakeRemote:
        """``remote`` is the first here, and the driver has started it."""
        self.seat.take(remote)  # type: ignore[arg-type]
        self.seat.connect(self.wires)
        if running:
            assert self.seat.start(7, QUEUES) is None
        remote.calls.clear()
        return remote

    def note(self) -> None:
        """Something is in flight."""
        for index in (0, 1):
            self.journal.queue(index).region[0] = 1

    @property
    def noted(self) -> list[int]:
        """Of each queue, whether its journal has something."""
        return [self.journal.queue(index).region[0] for index in (0, 1)]


@contextmanager
def place() -> Iterator[Place]:
    """An empty one."""
    import os

    fd = journal.create("seat", SLOT.queues)
    try:
        with journal.Journal(fd, SLOT.queues) as kept:
            yield Place(Seat(SLOT, kept), kept)
    finally:
        os.close(fd)
