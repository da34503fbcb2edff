"""Devices on threads of the test: the transport and the ring engine without any other process.

Wired as the machine wires device processes: register page in a read-only slot, kick and
acknowledgement by ioeventfd, interrupt by irqfd.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
import threading
from collections.abc import Callable, Iterator, Sequence

from protocol import doorbell
from protocol.memory import GuestMemory
from protocol.messages import QueueSetup
from protocol.ring import Chain, Ring
from protocol.virtio import DeviceId, Feature, Mmio, bit
from tests.support.guest import GuestMachine
from vmm import memory_map
from vmm.transport.mmio import MmioTransport
from vmm.transport.page import RegisterPage

Handler = Callable[[int, Chain], None]
"""Serves one chain of the queue with that number; what it writes is what gets completed."""

# The first of the memory slots for register pages: above those of RAM.
_FIRST_PAGE_SLOT = 8


class ThreadDevice:
    """A transport's backend: serves its queues with ``handler`` on a thread, from start to stop."""

    name = "thread"

    def __init__(
        self,
        memory: GuestMemory,
        device_id: int,
        queues: int,
        handler: Handler,
        features: int = 0,
    ) -> None:
        self.device_id = device_id
        self.features = features
        self.queue_sizes: Sequence[int] = (64,) * queues
        self.kicks = [doorbell.create() for _ in range(queues)]
        self.call = doorbell.create()
        self._memory = memory
        self._handler = handler
        self._stopping = doorbell.create()
        self._thread: threading.Thread | None = None

    def start(self, features: int, queues: tuple[QueueSetup, ...]) -> str | None:
        event_idx = bool(features & bit(Feature.EVENT_IDX))
        rings = {
            setup.index: Ring(
                self._memory, setup.size, setup.desc, setup.avail, setup.used, event_idx=event_idx
            )
            for setup in queues
        }
        self._thread = threading.Thread(target=self._serve, args=(rings,))
        self._thread.start()
        return None

    def _serve(self, rings: dict[int, Ring]) -> None:
        poller = select.poll()
        for fd in (self._stopping, *self.kicks):
            poller.register(fd, select.POLLIN)
        # Work that came before the thread did is looked for once.
        ready = set(self.kicks)
        try:
            while self._stopping not in ready:
                for index, ring in rings.items():
                    if self.kicks[index] in ready:
                        doorbell.drain(self.kicks[index])
                        self._drain(index, ring)
                ready = {fd for fd, _ in poller.poll()}
        finally:
            for ring in rings.values():
                ring.close()

    def _drain(self, index: int, ring: Ring) -> None:
        while True:
            done = []
            for chain in ring.pop():
                assert chain.error is None
                self._handler(index, chain)
                done.append((chain.head, chain.writable.written))
            if done and ring.push(done):
                doorbell.ring(self.call)
            if not done and not ring.enable_kicks():
                return

    def stop(self) -> None:
        if self._thread:
            doorbell.ring(self._stopping)
            self._thread.join()
            doorbell.drain(self._stopping)
            self._thread = None

    def forget(self) -> None:
        pass

    def stop_queue(self, index: int) -> None:
        raise AssertionError(f"no guest of these tests stops queue {index} alone")

    def write_config(self, offset: int, data: bytes) -> bytes:
        raise AssertionError(f"no guest of these tests writes configuration, at {offset}")

    def close(self) -> None:
        self.stop()
        for fd in (*self.kicks, self.call, self._stopping):
            os.close(fd)


class _Line:
    def __init__(self, machine: GuestMachine, gsi: int) -> None:
        self._machine, self._gsi = machine, gsi

    def pulse(self) -> None:
        self._machine.vm.set_irq(self._gsi, True)
        self._machine.vm.set_irq(self._gsi, False)


@contextlib.contextmanager
def plugged_in(
    machine: GuestMachine, slot: int, device: ThreadDevice, config: bytes = b""
) -> Iterator[MmioTransport]:
    """``device`` in virtio slot ``slot`` of ``machine``, until the block ends."""
    gpa, gsi = memory_map.slot_address(slot), memory_map.VIRTIO_GSIS[slot]
    page = RegisterPage(machine.vm, gpa, _FIRST_PAGE_SLOT + slot)
    transport = MmioTransport(page, device, _Line(machine, gsi), config)
    machine.bus.add_mmio(gpa, memory_map.VIRTIO_SLOT_SIZE, transport)
    ack = doorbell.create()
    for queue, kick in enumerate(device.kicks):
        machine.vm.add_ioeventfd(kick, gpa + Mmio.QUEUE_NOTIFY, 4, queue)
    machine.vm.add_ioeventfd(ack, gpa + Mmio.INTERRUPT_ACK, 4, 1)
    machine.vm.add_irqfd(device.call, gsi)
    try:
        yield transport
    finally:
        device.close()
        page.close()
        os.close(ack)


def disk(memory: GuestMemory, image: bytearray, *, features: int = 0) -> ThreadDevice:
    """A block device on ``image`` (virtio 1.2, 5.2.6): reads, writes, flushes."""

    def serve(_queue: int, chain: Chain) -> None:
        kind, _, sector = struct.unpack("<IIQ", chain.readable.read(16))
        start = sector * 512
        if kind == 0:
            chain.writable.write(bytes(image[start : start + chain.writable.size - 1]))
        elif kind == 1:
            data = chain.readable.read()
            image[start : start + len(data)] = data
        else:
            assert kind == 4
        chain.writable.write(b"\0")

    return ThreadDevice(memory, DeviceId.BLOCK, 1, serve, features)


def entropy(memory: GuestMemory, source: Callable[[int], bytes] = os.urandom) -> ThreadDevice:
    """An entropy device that gives what ``source`` does."""

    def serve(_queue: int, chain: Chain) -> None:
        chain.writable.write(source(chain.writable.size))

    return ThreadDevice(memory, DeviceId.ENTROPY, 1, serve)


def console(memory: GuestMemory, said: bytearray, typed: Sequence[bytes] = ()) -> ThreadDevice:
    """A console that collects what is said, and has each of ``typed`` to give."""
    rest = iter(typed)

    def serve(queue: int, chain: Chain) -> None:
        if queue == 1:
            said.extend(chain.readable.read())
        else:
            chain.writable.write(next(rest))

    return ThreadDevice(memory, DeviceId.CONSOLE, 2, serve)
