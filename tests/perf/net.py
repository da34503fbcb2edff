"""Packets through a network interface and its tap, both ways, against the tap without virtio.

The guest is a loop in C in this process; the device is the real process, in its real jail. The
taps are in a network namespace, whose kernel drops what the guest sends: of a type that nobody
knows. What the guest receives is sent there by a third party, a packet socket, as fast as it can:
received are those that found room. Both take turns.
"""

from __future__ import annotations

import os
import socket
import statistics
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from devices import net
from devices.runtime import tap
from protocol.messages import Done, QueueSetup, Start
from protocol.virtio import Feature, bit
from tests.perf import driver
from tests.support.device_host import DeviceHost
from tests.support.netns import Namespace, NamespaceHost
from vmm.mediation import lay_out

# Arbitrary: a turn takes some tenths of a second.
ROUNDS, PACKETS = 9, 100_000
SIZES = (64, 1500)

_QUEUE_SIZE, _STRIDE = 256, 2048
_RING, _BUFFERS, _QUEUE_STRIDE = 0x10_0000, 0x20_0000, 0x10_0000
_WRITE = 2
# <linux/socket.h>, <linux/if_packet.h>.
_SOL_PACKET, _QDISC_BYPASS = 263, 20

LOOPS = """
struct vring_avail;
struct vring_used;
struct queue {
    struct vring_avail *avail;
    struct vring_used *used;
    uint32_t size;
    int kick, call;
    bool receives;
    uint16_t seen;
    bool is_filled;
};
uint64_t bench_queue(struct queue *queue, uint64_t total);
uint64_t bench_feed(int wire, uint8_t *packet, uint32_t size, volatile int *goes);
uint64_t bench_write(int tap, uint8_t *packet, uint32_t size, uint64_t total);
uint64_t bench_read(int tap, uint64_t total);
"""

_Run = Callable[[], int]


def measure() -> dict[str, object]:
    """Packets per second by way and size, ratios, CPU time of the device."""
    if os.geteuid():
        return {"not measured": "only root makes taps"}
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as name, Namespace() as host, ExitStack() as stack:
        library = driver.compiled("net", Path(name), LOOPS)
        bare = host.call(tap.open_tap, "bare0")
        stack.callback(os.close, bare)
        host.call(tap.up, "bare0", 0)
        for size in SIZES:
            with guest(host, Path(name), size) as made:
                ways = {
                    "sent": (
                        lambda: made.send(library),
                        lambda: write(library, bare, made.packet),
                    ),
                    "received": (
                        lambda: made.receive(library),
                        lambda: read(library, bare, made.packet, host.wire("bare0")),
                    ),
                }
                for way, (ours, theirs) in ways.items():
                    found |= compare(f"{way}, {size} bytes", made, ours, theirs)
    return found


def compare(what: str, made: Guest, ours: _Run, theirs: _Run) -> dict[str, object]:
    """Both in turn, ``ours`` and the same without virtio; each returns nanoseconds."""
    rates: dict[str, list[float]] = {"device": [], "tap alone": []}
    busy = []
    for turn in range(ROUNDS):
        for name, run in (("device", ours), ("tap alone", theirs))[:: 1 if turn % 2 else -1]:
            before = driver.cpu_seconds(made.host.process.pid)
            elapsed = run()
            assert elapsed, made.host.log()
            rates[name].append(PACKETS / (elapsed / 1e9))
            if name == "device":
                busy.append((driver.cpu_seconds(made.host.process.pid) - before) / PACKETS)
    return {
        f"{what}, packets/s": {name: round(statistics.median(r)) for name, r in rates.items()},
        f"{what}, device / tap alone [quartiles]": driver.ratios(*rates.values()),
        f"{what}, CPU of the device a packet, µs": round(statistics.median(busy) * 1e6, 2),
    }


class Guest:
    """An interface with its guest, all whose packets are ``packet``."""

    def __init__(self, host: DeviceHost, packet: bytes, wire: socket.socket) -> None:
        self.host, self.packet = host, packet
        self._wire = wire
        self._seen = {net.TRANSMITQ: 0, net.RECEIVEQ: 0}
        self._is_filled = {net.TRANSMITQ: False, net.RECEIVEQ: False}

    def send(self, library: tuple[Any, Any]) -> int:
        """Nanoseconds for PACKETS."""
        return self._run(library, net.TRANSMITQ)

    def receive(self, library: tuple[Any, Any]) -> int:
        """Nanoseconds for PACKETS, while more are sent."""
        with feeding(library, self._wire, self.packet):
            return self._run(library, net.RECEIVEQ)

    def _run(self, library: tuple[Any, Any], index: int) -> int:
        ffi, lib = library
        setup = ring(index)
        with ffi.from_buffer(self.host.memory.whole) as ram:
            queue = ffi.new("struct queue *")
            queue.avail = ffi.cast("struct vring_avail *", ram + setup.avail)
            queue.used = ffi.cast("struct vring_used *", ram + setup.used)
            queue.size, queue.kick, queue.call = _QUEUE_SIZE, self.host.kicks[index], self.host.call
            queue.receives = index == net.RECEIVEQ
            queue.seen, queue.is_filled = self._seen[index], self._is_filled[index]
            elapsed: int = lib.bench_queue(queue, PACKETS)
            self._seen[index], self._is_filled[index] = queue.seen, queue.is_filled
        return elapsed


def packet_of(size: int) -> bytes:
    """A packet to all, of a type that nobody knows."""
    return (b"\xff" * 6 + b"\2\0\0\0\0\1" + b"\x88\xb5").ljust(size, b"x")


@contextmanager
def guest(namespace: Namespace, folder: Path, size: int) -> Iterator[Guest]:
    """An interface on a tap, whose driver sends and takes packets of ``size`` bytes."""
    name = f"vibe{size}"
    packet = packet_of(size)
    place = folder / name
    place.mkdir()
    fake = NamespaceHost(namespace)
    with (
        DeviceHost("net", place, net.Config(tap=name), host=fake) as host,
        namespace.wire(name) as wire,
    ):
        setups = []
        for index in (net.RECEIVEQ, net.TRANSMITQ):
            setup = ring(index)
            for number in range(_QUEUE_SIZE):
                at = _BUFFERS + index * _QUEUE_STRIDE + number * _STRIDE
                whole = bytes(net.HEADER.size) + packet
                host.memory.write(at, whole)
                room, flags = (len(whole), 0) if index else (_STRIDE, _WRITE)
                descriptor = struct.pack("<QIHH", at, room, flags, 0)
                host.memory.write(setup.desc + 16 * number, descriptor)
            setups.append(setup)
        features = bit(Feature.VERSION_1) | bit(net.Feature.MRG_RXBUF)
        host.request(Start(features, tuple(setups)), Done)
        yield Guest(host, packet, wire)


def ring(index: int) -> QueueSetup:
    """Where it lies."""
    return lay_out(_RING + index * 0x1_0000, _QUEUE_SIZE, index)


def write(library: tuple[Any, Any], fd: int, packet: bytes) -> int:
    """The same without virtio: nanoseconds for PACKETS."""
    ffi, lib = library
    whole = bytes(net.HEADER.size) + packet
    return int(lib.bench_write(fd, ffi.from_buffer("uint8_t[]", whole), len(whole), PACKETS))


def read(library: tuple[Any, Any], fd: int, packet: bytes, wire: socket.socket) -> int:
    """Likewise of what comes."""
    with wire, feeding(library, wire, packet):
        return int(library[1].bench_read(fd, PACKETS))


@contextmanager
def feeding(library: tuple[Any, Any], wire: socket.socket, packet: bytes) -> Iterator[None]:
    """Meanwhile ``packet`` is sent over ``wire`` all the time, on the CPUs of this thread."""
    ffi, lib = library
    wire.setblocking(False)
    wire.setsockopt(_SOL_PACKET, _QDISC_BYPASS, 1)
    goes = ffi.new("int *", 1)
    data = ffi.from_buffer("uint8_t[]", packet)
    thread = threading.Thread(target=lib.bench_feed, args=(wire.fileno(), data, len(packet), goes))
    thread.start()
    try:
        yield
    finally:
        goes[0] = 0
        thread.join()
