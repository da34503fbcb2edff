"""The network interface: packets both ways, as they are, through C and through Python."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from devices.net import HEADER, RECEIVEQ, TRANSMITQ, Config, Feature, Net
from devices.runtime import tap
from devices.runtime.device import Offer
from protocol import fds
from protocol.messages import ConfigChanged
from protocol.virtio import Feature as RingFeature
from tests.support.device_host import DeviceHost, FakeHost
from tests.support.driving import DEADLINE
from tests.support.netns import Namespace, NamespaceHost, needs_root

pytestmark = pytest.mark.slow  # processes by the dozen

Boot = Callable[..., DeviceHost]

# linux/socket.h, linux/if_packet.h: packets have virtio's header before them.
SOL_PACKET, PACKET_VNET_HDR = 263, 15

MAC, HOST_MAC = "02:00:00:00:00:01", "02:00:00:00:00:99"
NO_HEADER = bytes(HEADER.size)

# A used length counts the header; what a driver gets says how many buffers there are.
ALONE = HEADER.pack(0, 0, 0, 0, 0, 0, 1)


def packet(text: bytes = b"hello", size: int = 60) -> bytes:
    """One from the guest: to everybody, of a type that nobody knows (IEEE 802: for experiments)."""
    addresses = b"\xff" * 6 + bytes.fromhex(MAC.replace(":", ""))
    return (addresses + b"\x88\xb5" + text).ljust(size, b"\0")


@pytest.fixture(params=["C", "Python"])
def options(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What makes a device be served by the one or the other: of a trace Python tells."""
    if request.param == "C":
        yield {}
        return
    with (tmp_path / "trace").open("wb") as file:
        yield {"trace": file.fileno()}


@pytest.fixture
def net(boot: Boot, options: dict[str, Any], tmp_path: Path) -> DeviceHost:
    """An interface whose packets come out of a socket, with a driver that takes several buffers."""
    host = boot("net", Config(join=str(tmp_path / "lan"), mac=MAC), **options)
    host.start(Feature.MRG_RXBUF, Feature.STATUS, RingFeature.EVENT_IDX)
    return host


@pytest.fixture
def far(net: DeviceHost) -> Iterator[socket.socket]:
    """The other end."""
    with far_end(net) as end:
        yield end


@contextmanager
def far_end(host: DeviceHost) -> Iterator[socket.socket]:
    given = host.host.networks.by_device[host.host.name].uplink["packets"]
    with socket.socket(fileno=os.dup(given)) as end:
        end.settimeout(DEADLINE)
        yield end


def unread(end: socket.socket) -> int:
    """Bytes that it has sent, and that nobody has received."""
    return int.from_bytes(fcntl.ioctl(end, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def give_room(host: DeviceHost, *sizes: int) -> None:
    """Offer buffers."""
    for size in sizes:
        host.drivers[RECEIVEQ].add([], [size])
    host.publish(RECEIVEQ)


def send(host: DeviceHost, *pieces: bytes) -> None:
    """Send one packet, in so many pieces, and see it used."""
    host.drivers[TRANSMITQ].add(pieces)
    host.publish(TRANSMITQ)
    assert [used.written for used in host.collect(1, TRANSMITQ)] == [0]


def test_it_has_an_address_a_link_and_what_a_socket_can_do(net: DeviceHost) -> None:
    assert net.hello is not None

    assert net.hello.config == bytes.fromhex("020000000001") + struct.pack("<HHH", 1, 1, 0)
    own = net.hello.features & (1 << 24) - 1
    assert own == 1 << Feature.MAC | 1 << Feature.MRG_RXBUF | 1 << Feature.STATUS


def test_a_packet_goes_out_without_its_header_wherever_it_is_cut(
    net: DeviceHost, far: socket.socket
) -> None:
    whole = NO_HEADER + packet()

    for cut in (HEADER.size, 1, 5, HEADER.size + 3):
        send(net, whole[:cut], whole[cut:])
        assert far.recv(1 << 16) == packet()

    send(net, *(whole[at : at + 8] for at in range(0, len(whole), 8)))
    assert far.recv(1 << 16) == packet()
    assert net.counters()["sent"] == 5


def test_packets_go_out_in_order_however_many(net: DeviceHost, far: socket.socket) -> None:
    texts = [b"%04d" % number for number in range(50)]
    for text in texts:
        send(net, NO_HEADER + packet(text))
        assert far.recv(1 << 16) == packet(text)


def test_who_is_slow_holds_the_guest_up_and_loses_nothing_in_c(boot: Boot, tmp_path: Path) -> None:
    host = boot("net", Config(join=str(tmp_path / "lan"), mac=MAC))
    host.start(RingFeature.EVENT_IDX, size=256)
    sizes = [9000] * 64  # more than a socket holds
    for number, size in enumerate(sizes):
        host.drivers[TRANSMITQ].add([NO_HEADER, packet(b"%d " % number, size)])
    host.publish(TRANSMITQ)
    host.counters()  # it has done what it could, and is waiting

    with far_end(host) as far:
        for number, size in enumerate(sizes):
            assert far.recv(1 << 16) == packet(b"%d " % number, size)
        assert len(host.collect(64, TRANSMITQ)) == 64


def test_a_packet_comes_in_with_a_header_that_says_nothing(
    net: DeviceHost, far: socket.socket
) -> None:
    give_room(net, 1526)

    far.send(packet())

    (used,) = net.collect(1, RECEIVEQ)
    assert used.data == ALONE + packet()


def test_one_that_finds_no_room_waits_for_it(net: DeviceHost, far: socket.socket) -> None:
    for text in (b"one", b"two"):
        far.send(packet(text))
    net.counters()
    give_room(net, 1526)
    assert net.collect(1, RECEIVEQ)[0].data == ALONE + packet(b"one")

    give_room(net, 1526)

    assert net.collect(1, RECEIVEQ)[0].data == ALONE + packet(b"two")


def test_a_large_one_takes_several_buffers_which_are_used_together(
    net: DeviceHost, far: socket.socket
) -> None:
    big = packet(bytes(range(250)) * 19, 5000)
    give_room(net, 1024, 100, 2000)
    far.send(big)
    net.counters()
    assert net.drivers[RECEIVEQ].collect() == []  # it does not fit yet

    give_room(net, 4096, 1526)
    far.send(packet(b"next"))

    used = net.collect(5, RECEIVEQ)
    assert [one.written for one in used] == [1024, 100, 2000, 12 + 5000 - 3124, 12 + 60]
    whole = b"".join(one.data for one in used[:4])
    assert whole == HEADER.pack(0, 0, 0, 0, 0, 0, 4) + big
    assert used[4].data == ALONE + packet(b"next")


def test_one_that_does_not_fit_when_there_are_more_buffers_holds_up_nobody(
    net: DeviceHost, far: socket.socket
) -> None:
    give_room(net, 100, 100)
    far.send(packet(b"large", 4000))
    while unread(far):
        net.counters()

    give_room(net, 100, 100)
    far.send(packet(b"small"))

    assert net.collect(1, RECEIVEQ)[0].data == ALONE + packet(b"small")
    assert net.counters()["dropped"] == 1


def test_without_that_one_which_does_not_fit_is_dropped(
    boot: Boot, options: dict[str, Any], tmp_path: Path
) -> None:
    host = boot("net", Config(join=str(tmp_path / "lan"), mac=MAC), **options)
    host.start()
    with far_end(host) as far:
        give_room(host, 200, 200)

        far.send(packet(b"large", 200))
        far.send(packet(b"small"))

        assert host.collect(1, RECEIVEQ)[0].data == ALONE + packet(b"small")
        assert host.counters()["dropped"] == 1


def test_the_largest_packet_there_can_be_comes_and_goes(
    net: DeviceHost, far: socket.socket
) -> None:
    largest = packet(b"l", 18 + 65535)
    give_room(net, *[8192] * 9)

    far.send(largest)
    send(net, NO_HEADER, largest)

    used = net.collect(9, RECEIVEQ)
    assert b"".join(one.data for one in used)[HEADER.size :] == largest
    assert far.recv(1 << 17) == largest


NO_PACKETS: list[tuple[list[bytes], list[int]]] = [
    ([NO_HEADER + bytes(13)], []),  # no Ethernet header
    ([b"short"], []),
    ([], [60]),
    ([NO_HEADER + packet()], [1]),
    ([NO_HEADER + packet(b"", 18 + 65536)], []),
]


def test_what_is_no_packet_is_refused_and_the_next_one_goes(
    net: DeviceHost, far: socket.socket
) -> None:
    for readable, writable in NO_PACKETS:
        assert net.send(readable, writable, TRANSMITQ).written == 0
        send(net, NO_HEADER + packet())
        assert far.recv(1 << 17) == packet()

    counters = net.counters()
    assert (counters["refused"], counters["sent"]) == (len(NO_PACKETS), len(NO_PACKETS))


def test_buffers_that_no_packet_goes_into_are_given_back(
    net: DeviceHost, far: socket.socket
) -> None:
    give_room(net, 11)  # hazard 16: less than the header
    net.drivers[RECEIVEQ].add([b"readable"], [1526])
    give_room(net, 1526)
    far.send(packet())

    used = net.collect(3, RECEIVEQ)

    assert sorted(one.written for one in used) == [0, 0, 72]
    assert net.counters()["refused"] == 2


def test_packets_that_are_none_do_not_come_in(net: DeviceHost, far: socket.socket) -> None:
    give_room(net, *[8192] * 10)
    far.send(bytes(13))
    far.send(packet(b"", 18 + 65536))

    far.send(packet())

    assert net.collect(1, RECEIVEQ)[0].data == ALONE + packet()
    assert net.counters()["dropped"] == 2


def link(host: DeviceHost, *, up: bool) -> ConfigChanged:
    """Take it up or down, and see that the driver is told."""
    host.host.networks.by_device[host.host.name].link.set(wanted=up)
    while not host.events:
        host.counters()
    (event,) = host.events
    host.events.clear()
    assert isinstance(event, ConfigChanged)
    return event


def test_the_driver_is_told_of_its_link_and_nothing_passes_while_it_is_down(
    net: DeviceHost, far: socket.socket
) -> None:
    give_room(net, 1526)

    assert link(net, up=False).config[6:8] == b"\0\0"
    far.send(packet(b"lost"))
    send(net, NO_HEADER + packet(b"lost"))
    net.counters()
    assert link(net, up=True).config[6:8] == b"\1\0"

    far.send(packet(b"here"))
    assert net.collect(1, RECEIVEQ)[0].data == ALONE + packet(b"here")
    send(net, NO_HEADER + packet(b"there"))
    assert far.recv(1 << 16) == packet(b"there")
    assert net.counters()["dropped"] == 2


def test_a_link_that_is_down_before_the_driver_comes_is_down(boot: Boot, tmp_path: Path) -> None:
    fake = FakeHost()
    fds.close_all(fake.network("join", str(tmp_path / "lan"), 0).values())
    fake.networks.by_device[fake.name].link.set(wanted=False)

    host = boot("net", Config(join=str(tmp_path / "lan"), mac=MAC), host=fake)

    assert host.hello is not None
    assert host.hello.config[6:8] == b"\0\0"
    host.start()
    send(host, NO_HEADER + packet(b"lost"))
    assert host.counters()["dropped"] == 1


def test_after_a_reset_nothing_comes_into_the_old_buffers(
    net: DeviceHost, far: socket.socket
) -> None:
    give_room(net, 100)
    far.send(packet(b"", 4000))
    while unread(far):
        net.counters()  # it waits for more room
    net.stop()
    net.start(Feature.MRG_RXBUF)
    give_room(net, 1526, 1526, 1526)  # enough for the old one, too

    far.send(packet(b"new"))

    assert net.collect(1, RECEIVEQ)[0].data == ALONE + packet(b"new")


@pytest.mark.parametrize("limit", [{"pps": 3}, {"bw": 64 * 1024}])
def test_limits_hold_each_way_and_lose_nothing(
    boot: Boot, tmp_path: Path, limit: dict[str, int]
) -> None:
    host = boot("net", Config(join=str(tmp_path / "lan"), mac=MAC, **limit))  # type: ignore[arg-type]
    host.start()
    with far_end(host) as far:
        give_room(host, *[33_000] * 5)
        for number in range(5):
            far.send(packet(b"%d" % number, 32_000))
            host.drivers[TRANSMITQ].add([NO_HEADER, packet(b"%d" % number, 32_000)])
        host.publish(TRANSMITQ)

        counters = host.counters()
        assert (counters["sent"], counters["received"]) == (3, 3)  # of what there is at the start
        assert [far.recv(1 << 16)[14:15] for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
        assert len(host.collect(5, RECEIVEQ)) == 5


def test_one_that_is_to_fail_sends_nothing_and_goes_on_to_receive(
    boot: Boot, tmp_path: Path
) -> None:
    host = boot("net", Config(join=str(tmp_path / "lan"), mac=MAC), start=False)
    host.hand_over(failing=True)
    host.greet()
    host.start()
    with far_end(host) as far:
        give_room(host, 1526)
        far.send(packet())

        send(host, NO_HEADER + packet())

        far.setblocking(False)
        with pytest.raises(BlockingIOError):
            far.recv(1 << 16)
        assert host.collect(1, RECEIVEQ)[0].data == ALONE + packet()


# ── a tap ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace() as made:
        # The kernel's own neighbours are not heard.
        made.run("sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6")
        yield made


ALL = [feature for feature in Feature if feature not in (Feature.MTU, Feature.STATUS, Feature.MAC)]


def tapped(boot: Boot, namespace: Namespace, *features: int, **options: Any) -> DeviceHost:
    """An interface on a tap that is made for it, with an address and a neighbour."""
    config = Config(tap="vibe0", mac=MAC, mtu=1400)
    host = boot("net", config, host=NamespaceHost(namespace), **options)
    namespace.ip("address add 10.9.0.1/24 dev vibe0")
    namespace.ip(f"neighbour add 10.9.0.2 lladdr {MAC} dev vibe0")
    host.start(*features)
    return host


@needs_root
def test_a_tap_is_made_runs_and_can_do_more(boot: Boot, namespace: Namespace) -> None:
    host = tapped(boot, namespace)

    assert host.hello is not None
    assert host.hello.config[10:12] == struct.pack("<H", 1400)
    assert all(host.hello.features >> feature & 1 for feature in Feature)
    shown = namespace.run("ip", "link", "show", "vibe0").stdout
    assert "mtu 1400" in shown
    assert ",UP" in shown


@needs_root
def test_packets_reach_a_tap_and_come_from_there(
    boot: Boot, namespace: Namespace, options: dict[str, Any]
) -> None:
    host = tapped(boot, namespace, Feature.MRG_RXBUF, **options)
    give_room(host, 2000)
    with namespace.wire("vibe0") as wire:
        send(host, NO_HEADER + packet(b"up"))
        assert wire.recv(1 << 16) == packet(b"up")
        wire.send(packet(b"down"))

    assert host.collect(1, RECEIVEQ)[0].data == ALONE + packet(b"down")


@needs_root
@pytest.mark.parametrize("features", [[], ALL])
def test_the_host_leaves_to_the_driver_what_that_has_agreed_to(
    boot: Boot, namespace: Namespace, options: dict[str, Any], features: list[int]
) -> None:
    host = tapped(boot, namespace, *features, **options)
    give_room(host, *[4096] * 15)

    def talk() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.sendto(b"datagram", ("10.9.0.2", 7))

    namespace.call(talk)

    data = host.collect(1, RECEIVEQ)[0].data
    flags, _, _, _, start, offset, _ = HEADER.unpack_from(data)
    assert data.endswith(b"datagram")
    # The checksum is the driver's to fill in, or it is right.
    datagram = data[HEADER.size + 34 :]
    if features:
        assert (flags, start, offset) == (1, 34, 6)
        assert datagram[2:4] == b"\0\7"
    else:
        assert flags == 0
        assert checksum(data[HEADER.size :]) == 0


def tcp(gso: int) -> bytes:
    """A packet with a header as the host has it: 2000 bytes of TCP, of which the checksum is to be
    filled in, and which are to be cut into two (RFC 791, RFC 9293)."""
    body = struct.pack("!HHIIBBHHH", 1, 2, 0, 0, 5 << 4, 0x10, 0, 0, 0) + bytes(2000)
    ends = socket.inet_aton("10.9.0.1") + socket.inet_aton("10.9.0.2")
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, socket.IPPROTO_TCP, 0)
    addresses = bytes.fromhex((MAC + HOST_MAC).replace(":", ""))
    return (
        HEADER.pack(1, gso, 54, 1000, 34, 16, 0)[:10] + addresses + b"\x08\0" + head + ends + body
    )


@needs_root
@pytest.mark.parametrize(
    ("agreed", "gso", "arrives"),
    [
        ([Feature.GUEST_CSUM, Feature.GUEST_TSO4, Feature.GUEST_ECN], 0x81, True),
        ([Feature.GUEST_CSUM, Feature.GUEST_TSO4], 0x81, False),
        ([Feature.GUEST_CSUM, Feature.GUEST_TSO4], 1, True),
        ([Feature.GUEST_CSUM], 1, False),
        ([Feature.GUEST_CSUM], 0, True),
        ([], 0, False),
    ],
)
def test_a_packet_that_the_driver_could_not_understand_is_never_delivered(
    boot: Boot,
    namespace: Namespace,
    options: dict[str, Any],
    agreed: list[int],
    gso: int,
    arrives: bool,
) -> None:
    host = tapped(boot, namespace, *agreed, **options)
    namespace.ip("link set vibe0 mtu 4000")
    give_room(host, *[4096] * 8)
    # As a tap that has not listened would.
    tap.set_offloads(host.given["packets"], tap.CHECKSUM | tap.TSO4 | tap.ECN)
    with namespace.wire("vibe0") as wire:
        wire.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        wire.send(tcp(gso))
        wire.send(bytes(10) + packet(b"next"))

        first = host.collect(1 + arrives, RECEIVEQ)[0].data

    assert HEADER.unpack_from(first)[:2] == ((1, gso) if arrives else (0, 0))
    assert host.counters().get("dropped", 0) == (not arrives)


def checksum(frame: bytes) -> int:
    """Of a UDP packet with its pseudo header (RFC 768); 0 if it is right."""
    datagram = frame[34:]
    pseudo = frame[26:34] + struct.pack("!BBH", 0, 17, len(datagram))
    whole = pseudo + datagram + bytes(len(datagram) % 2)
    total = sum(struct.unpack(f"!{len(whole) // 2}H", whole))
    return 0xFFFF - (total % 0xFFFF or 0xFFFF)


@needs_root
def test_a_tap_that_is_gone_costs_its_packets_and_not_the_device(
    boot: Boot, namespace: Namespace, options: dict[str, Any]
) -> None:
    host = tapped(boot, namespace, **options)
    give_room(host, 2000)

    namespace.ip("link delete vibe0")
    send(host, NO_HEADER + packet())

    assert host.counters()["dropped"] == 1
    assert host.quit() == 0
    assert host.log().count("vibe0 is gone") == 1


# ── options and successors ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({}, "connected to what"),
        ({"tap": "a", "join": "b"}, "connected to what"),
        ({"backend": "user", "tap": "a"}, "connected to what"),
        ({"tap": "sixteen-letters!"}, "tap: 'sixteen-letters!' is no name"),
        ({"tap": "a/b"}, "tap: 'a/b' is no name"),
        ({"tap": ".."}, "tap: '..' is no name"),
        ({"tap": "tap%d"}, "tap: 'tap%d' is no name"),
        ({"tap": "a", "mac": "02:00:00:00:00"}, "mac: '02:00:00:00:00' is no address"),
        ({"tap": "a", "mac": "02-00-00-00-00-01"}, "mac: "),
        ({"tap": "a", "mac": "00:00:00:00:00:00"}, "mac: "),
        ({"tap": "a", "mac": "01:00:00:00:00:01"}, "address of a group"),
        ({"tap": "a", "mtu": 67}, "mtu: 67 is not 68 to 65535"),
        ({"tap": "a", "mtu": 65536}, "mtu: 65536 is not"),
        ({"tap": "a", "bw": 65535}, "bw: 65535 bytes in a second are fewer"),
        ({"tap": "a", "forward": "tcp:1:1"}, "forward: goes with user"),
    ],
)
def test_options_that_make_no_interface_are_refused(
    options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        Config(**options)


def test_every_interface_has_an_address_of_its_own() -> None:
    made = {Config(tap="a").mac for _ in range(100)}

    assert len(made) == 100
    assert {int(mac[:2], 16) & 3 for mac in made} == {2}


def test_neither_queue_owes_progress() -> None:
    # Nobody may send anything for hours, and who is at the other end may take none.
    assert [queue.owes for queue in Net.queues] == [False, False]


def test_a_successor_has_the_same_address_and_size_of_packets() -> None:
    space = bytes.fromhex("020000000001") + struct.pack("<HHH", 1, 1, 1500)
    ours = Offer(0, space)

    assert Net.why_unfit(ours, Offer(0, space[:6] + b"\0\0" + space[8:])) is None
    assert "02:00:00:00:00:02" in str(Net.why_unfit(ours, Offer(0, space[:5] + b"\2" + space[6:])))
    assert "mtu is 1400" in str(Net.why_unfit(ours, Offer(0, space[:10] + struct.pack("<H", 1400))))
    assert "configuration of 3 bytes" in str(Net.why_unfit(ours, Offer(0, b"abc")))
