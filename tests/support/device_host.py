"""A VMM and a launcher for one real device process: everything but a guest and vCPUs.

It starts the process as the launcher does, speaks the VMM's half of the protocol over a real
channel, and plays the driver with the driver half of ``tests/support/driver.py``.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Self, TypeVar

import zmq

from devices import kinds
from devices.runtime.device import AnyDevice
from launcher.locks import Locks
from launcher.networks import Networks
from launcher.streams import LogEnd
from protocol import codec, doorbell, fds, journal
from protocol.channel import Channel
from protocol.memory import GuestMemory, Region, create_memfd
from protocol.messages import (
    FROM_DEVICE,
    PROTOCOL_VERSION,
    STATE_VERSION,
    DeviceStats,
    Done,
    GetStats,
    Hello,
    QueueSetup,
    Quit,
    Sealed,
    Start,
    Stop,
    Welcome,
)
from protocol.specs import DeviceSpec, Level
from protocol.virtio import Feature, bit
from tests.support.driver import Driver
from tests.support.driving import DEADLINE, Driving

M = TypeVar("M")

ROOT = Path(__file__).parents[2]

MIB = 1 << 20
# Low memory, a hole, and more: as in a real machine, and small.
REGIONS = (Region(0, 10 * MIB, 0), Region(11 * MIB, 5 * MIB, 11 * MIB))

# Guest memory that each queue's driver owns: its rings and its buffers.
DRIVER_ROOM = 4 * MIB


class FakeHost:
    """What the launcher offers to ``Device.open``, remembered."""

    def __init__(self, name: str = "device0") -> None:
        self.name = name
        self._locks = Locks()
        self.streams: list[LogEnd] = []
        """The launcher's ends of streams, wherever they were to lead."""
        self.networks = Networks(lambda path: None)
        """What interfaces are connected to; nobody is at the far end of what is no tap."""

    def stream(self, backend: str, path: str = "") -> dict[str, int]:
        self.streams.append(LogEnd(self.name))
        return self.streams[-1].fds

    def network(self, kind: str, where: str, mtu: int) -> dict[str, int]:
        return self.networks.descriptors(self.name, kind, where, mtu)

    def lock(self, fd: int, *, shared: bool, name: str = "") -> bool:
        taken = self._locks.take(self.name, fd, shared=shared, name=name)
        self._locks.name(self.name, "")
        self._locks.settle(self.name)
        return taken

    def close(self) -> None:
        self._locks.close()
        self.networks.close()
        for stream in self.streams:
            stream.close()


def spawn(
    code: str, handover: socket.socket, log: IO[bytes], *inherited: int
) -> subprocess.Popen[bytes]:
    """A device process of :func:`program`'s ``code``, with its end of ``handover``."""
    return subprocess.Popen(
        [sys.executable, "-c", code, str(handover.fileno())],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=[handover.fileno(), *inherited],
        start_new_session=True,
    )


class DeviceHost(Driving):
    """One device process of ``kind`` with ``config``, from its start to its end.

    ``register`` adds a kind that is not in the table (``module:Class``); ``inherit`` are
    descriptors that the process gets and should not; ``faults`` is its board. With
    ``start=False`` it is up to the test to call :meth:`hand_over` and :meth:`greet`. A process at
    ``level`` none has no seal.
    """

    def __init__(
        self,
        kind: str,
        folder: Path,
        config: object = None,
        *,
        register: str = "",
        host: FakeHost | None = None,
        trace: int | None = None,
        faults: int | None = None,
        inherit: Sequence[int] = (),
        start: bool = True,
        level: Level = "jail",
    ) -> None:
        self.kind = kind
        self.type = find_kind(kind, register)
        self.config = self.type.config_type() if config is None else config
        self.type = self.type.fitting(self.config)
        self.host = host or FakeHost()
        self.given = self.type.open(self.config, self.host)
        self.hello: Hello | None = None
        self.sealed: Sealed | None = None
        self.events: list[object] = []
        self.drivers: dict[int, Driver] = {}
        self._folder = folder
        self._sequence = 0
        self._closed = False

        self._memfd = create_memfd("vibevmm-test", REGIONS[-1].offset + REGIONS[-1].size)
        self.memory = GuestMemory(self._memfd, REGIONS)
        self.queues = self.type.virtqueues(self.config)
        sizes = tuple(queue.size for queue in self.queues)
        self._journal_fd = journal.create("test-journal", sizes)
        self.journal = journal.Journal(self._journal_fd, sizes)
        self.kicks = {queue.index: doorbell.create() for queue in self.queues}
        self.call = doorbell.create()
        self._trace = {} if trace is None else {"trace": trace}
        self._faults = {} if faults is None else {"faults": faults}
        self._context = zmq.Context()
        self.channel = Channel(self._context, FROM_DEVICE, 1)
        self.endpoint = str(folder / "channel")
        self.channel.bind(self.endpoint)
        self.handover, theirs = fds.handover_pair()
        self._log = (folder / "log").open("w+b")
        with theirs:
            self.process = spawn(program(kind, register, level), theirs, self._log, *inherit)
        if start:
            try:
                self.hand_over()
                self.greet()
            except BaseException:
                self.close()
                raise

    # The launcher.

    def hand_over(self, *, memory: int | None = None, **changes: Any) -> None:
        """Send the spec and the descriptors; ``changes`` to fields of the spec. ``memory`` is
        another than the guest's."""
        fields: dict[str, Any] = {
            "name": self.host.name,
            "kind": self.kind,
            "config": codec.pack(codec.to_plain(self.config)),
            "generation": 1,
            "endpoint": self.endpoint,
            "regions": REGIONS,
            "journal": tuple(queue.size for queue in self.queues),
            "failing": False,
            "log": 4,
        }
        spec = DeviceSpec(**(fields | changes))
        memory = self._memfd if memory is None else memory
        alive, ended = os.pipe()
        handed = {"memory": memory, "journal": self._journal_fd, "alive": alive, "call": self.call}
        handed |= {**self.given, **self._trace, **self._faults}
        handed |= {f"kick{index}": fd for index, fd in self.kicks.items()}
        fds.send(self.handover, codec.pack(codec.to_plain(spec)), handed)
        fds.close_all((alive, ended))
        self.handed = set(handed)
        if self.type.connects:
            fds.close_all(self.given.values())
            self.given = {}

    def greet(self) -> None:
        """Hello, Welcome, Sealed."""
        self.hello = self.expect(Hello)
        self.channel.send(Welcome(PROTOCOL_VERSION, STATE_VERSION))
        self.sealed = self.expect(Sealed)

    def log(self) -> str:
        """What the process has written to stderr so far."""
        return Path(self._log.name).read_text()

    def wait(self) -> int:
        """The exit status of a process that ends by itself."""
        return self.process.wait(DEADLINE)

    # The VMM.

    def expect(self, wanted: type[M]) -> M:
        """The next message, which must be a ``wanted``."""
        envelope = self.channel.wait(DEADLINE)
        if envelope is None:
            raise AssertionError(f"no {wanted.__name__}; the device says: {self.log()}")
        if not isinstance(envelope.message, wanted):
            raise AssertionError(f"{envelope.message} instead of {wanted.__name__}")
        return envelope.message

    def request(self, message: object, expect: type[M]) -> M:
        """Send a request; its reply must be an ``expect``. Events on the way are kept."""
        self._sequence += 1
        self.channel.send(message, self._sequence)
        while True:
            envelope = self.channel.wait(DEADLINE)
            if envelope is None:
                raise AssertionError(f"no answer to {message}; the device says: {self.log()}")
            if envelope.sequence == 0:
                self.events.append(envelope.message)
                continue
            assert envelope.sequence == self._sequence
            if not isinstance(envelope.message, expect):
                raise AssertionError(f"{envelope.message} instead of {expect.__name__}")
            return envelope.message

    def counters(self) -> dict[str, int]:
        """The device's statistics."""
        return self.request(GetStats(), DeviceStats).counters

    def quit(self) -> int:
        """End it in order; its exit status."""
        self.request(Quit(), Done)
        return self.wait()

    # The driver.

    def start(
        self,
        *features: int,
        size: int = 16,
        state: bytes = b"",
        expect: type[M] = Done,  # type: ignore[assignment]
    ) -> M:
        """Lay out every queue anew, DRIVER_OK with VERSION_1 and ``features``, and a
        predecessor's ``state``."""
        self.drivers = {
            index: Driver(
                self.memory,
                size,
                base=0x10_0000 + index * DRIVER_ROOM,
                length=DRIVER_ROOM,
                event_idx=Feature.EVENT_IDX in features,
            )
            for index in self.kicks
        }
        self.journal.clear()
        doorbell.drain(self.call)  # what it still had to say to the last driver
        negotiated = sum(bit(feature) for feature in {*features, Feature.VERSION_1})
        return self.request(Start(negotiated, self.setups(), state), expect)

    def setups(self) -> tuple[QueueSetup, ...]:
        """Where the drivers have laid their queues."""
        return tuple(
            QueueSetup(index, driver.size, driver.desc, driver.avail, driver.used)
            for index, driver in self.drivers.items()
        )

    def stop(self) -> None:
        """Reset."""
        self.request(Stop(), Done)

    def _kick(self, index: int) -> int:
        return self.kicks[index]

    def _call(self, index: int) -> int:
        return self.call

    # The end.

    def close(self) -> None:
        """Kill what still lives and close everything."""
        if self._closed:
            return
        self._closed = True
        self.process.kill()
        self.process.wait()
        self._log.close()
        self.handover.close()
        self.channel.close()
        self._context.term()
        self.host.close()
        self.memory.close()
        self.journal.close()
        fds.close_all(
            [self._memfd, self._journal_fd, self.call, *self.kicks.values(), *self.given.values()]
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def find_kind(kind: str, register: str) -> type[AnyDevice]:
    """The class of ``kind``, or what is to ``register`` under that word."""
    if not register:
        return kinds.find(kind)
    kinds.KINDS[kind] = register
    try:
        return kinds.find(kind)
    finally:
        del kinds.KINDS[kind]


def program(kind: str, register: str, level: Level) -> str:
    """What a process runs to be it, its handover socket being the descriptor in its argument."""
    table = f"devices.kinds.KINDS[{kind!r}] = {register!r}" if register else ""
    cell = "None" if level == "none" else "jail.Cell()"
    return f"""
import sys
import devices.kinds
from protocol import jail
{table}
from devices.runtime.entry import main
main(int(sys.argv[1]), {cell})
"""
