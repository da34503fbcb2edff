"""Packets between DPDK's testpmd and a tap, through our interface and through testpmd's own.

The driver is testpmd with virtio_user, a vhost-user front-end that nobody here wrote; the peer is a
second one with net_vhost, which forwards to net_tap, as testpmd does by itself: it looks out all
the time. Drivers have one CPU, and those who serve them another. The taps are in a network
namespace, whose kernel drops what comes; what is received is sent there by a packet socket, on the
drivers' CPU, as fast as it can.

What is counted as sent the tap has had, and what is received the driver has had. CPU time is that
of who serves; for the driver it is all there is.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from protocol.errors import HostError
from tests.perf import driver, net
from tests.support import testpmd
from tests.support.netns import Namespace
from tests.support.peers import Served
from tests.support.testpmd import Testpmd

# Arbitrary: enough turns for quartiles, each of some hundred thousand packets.
ROUNDS, SECONDS = 9, 0.4

OURS, PEER = "ours", "net_vhost, net_tap"

# Both directions of a queue pair are as long as the device's are.
_DRIVER = "net_virtio_user0,path={},queues=1,queue_size=256"


class Side:
    """A driver, who serves it from the process ``pid``, and the tap behind."""

    def __init__(self, host: Namespace, tap: str, guest: Testpmd, pid: int) -> None:
        self.host, self.tap, self.guest, self.pid = host, tap, guest, pid

    def serve(self, command: str) -> None:
        """``start`` or ``stop`` whoever does not sleep when there is nothing to do."""

    def run(self, seconds: float, count: Callable[[Side], int]) -> Turn:
        """One turn, of which ``count`` tells how many there were."""
        self.serve("start")
        self.guest.ask("start")
        time.sleep(seconds / 4)
        packets, busy, begin = count(self), driver.cpu_seconds(self.pid), time.monotonic()
        time.sleep(seconds)
        packets, busy = count(self) - packets, driver.cpu_seconds(self.pid) - busy
        elapsed = time.monotonic() - begin
        self.guest.ask("stop")
        self.serve("stop")
        assert packets, f"{self.tap}: nothing came"
        return Turn(packets / elapsed, busy / packets * 1e6)


class PeerSide(Side):
    """Served by testpmd."""

    def __init__(self, host: Namespace, tap: str, guest: Testpmd, peer: Testpmd) -> None:
        super().__init__(host, tap, guest, peer.process.pid)
        self._peer = peer

    def serve(self, command: str) -> None:
        self._peer.ask(command)


class Turn(NamedTuple):
    """Packets per second, and CPU time of the one that serves a packet, µs."""

    rate: float
    cpu: float


def sent(side: Side) -> int:
    """Packets that came to the tap."""
    devices = side.host.call(lambda: Path("/proc/thread-self/net/dev").read_text())
    (counters,) = (line.split() for line in devices.splitlines() if f" {side.tap}:" in f" {line}")
    return int(counters[2])


def received(side: Side) -> int:
    """Packets that came to the driver."""
    return side.guest.received()


def measure(rounds: int = ROUNDS, seconds: float = SECONDS) -> dict[str, object]:
    """Packets per second by way and size, ratios, and CPU time of who serves."""
    if os.geteuid():
        return {"not measured": "only root makes taps"}
    try:
        testpmd.tree()
    except HostError as error:
        return {"not measured": str(error)}
    found: dict[str, object] = {}
    cpus = os.sched_getaffinity(0)
    drivers, servers = min(cpus), max(cpus)
    with tempfile.TemporaryDirectory() as name, Namespace() as host, ExitStack() as stack:
        library = driver.compiled("net", Path(name), net.LOOPS)
        folder = Path(name)
        sides = {
            OURS: stack.enter_context(_ours(host, folder, drivers, servers)),
            PEER: stack.enter_context(_peer(host, folder, drivers, servers)),
        }
        # That is where those are who send what is received.
        stack.callback(os.sched_setaffinity, 0, cpus)
        os.sched_setaffinity(0, {drivers})
        for size in net.SIZES:
            packet = net.packet_of(size)
            for side in sides.values():
                side.guest.ask(f"set txpkts {size}")

            def send(side: Side) -> Turn:
                side.guest.ask("set fwd txonly")
                return side.run(seconds, sent)

            def receive(side: Side, packet: bytes = packet) -> Turn:
                side.guest.ask("set fwd rxonly")
                with host.wire(side.tap) as wire, net.feeding(library, wire, packet):
                    return side.run(seconds, received)

            for way, run in (("sent", send), ("received", receive)):
                turns: dict[str, list[Turn]] = {side: [] for side in sides}
                for turn in range(rounds):
                    for side in driver.in_turn(tuple(sides), turn):
                        turns[side].append(run(sides[side]))
                found |= _told(f"{way}, {size} bytes", turns)
    return found


def _told(what: str, turns: dict[str, list[Turn]]) -> dict[str, object]:
    rates = {side: [turn.rate for turn in each] for side, each in turns.items()}
    return {
        f"{what}, packets/s": {side: round(statistics.median(r)) for side, r in rates.items()},
        f"{what}, CPU of who serves a packet, µs": {
            side: round(statistics.median(turn.cpu for turn in each), 2)
            for side, each in turns.items()
        },
        f"{what}, ours / net_vhost [quartiles]": driver.ratios(rates[OURS], rates[PEER]),
    }


@contextmanager
def _ours(host: Namespace, folder: Path, drivers: int, servers: int) -> Iterator[Side]:
    path, tap = folder / "ours", "ours0"
    with host.call(Served, path, "net", f"tap={tap}", "id=bench") as served:
        host.ip(f"link set {tap} up")
        with Testpmd(host, drivers, "txonly", _DRIVER.format(path)) as guest:
            pid = served.device("bench")
            for task in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(task), {servers})
            yield Side(host, tap, guest, pid)


@contextmanager
def _peer(host: Namespace, folder: Path, drivers: int, servers: int) -> Iterator[Side]:
    path, tap = folder / "theirs", "theirs0"
    ports = (f"net_vhost0,iface={path},queues=1", f"net_tap0,iface={tap}")
    with (
        Testpmd(host, servers, "io", *ports) as peer,
        Testpmd(host, drivers, "txonly", _DRIVER.format(path)) as guest,
    ):
        yield PeerSide(host, tap, guest, peer)
