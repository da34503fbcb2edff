"""virtio-net: a network interface (virtio 1.2, section 5.1), with one pair of queues.

Outside is one descriptor, of which each read and each write is a packet: a tap, with virtio's
header before each, or one end of a socket pair, without. So the kernel does for a tap what virtio
can leave to the device: checksums, and cutting what TCP has to send into packets. A crash loses, or
repeats, the packets that were in flight, as networks do::

    transmitq   chain ──► write(2), a packet ─────────────────────────► tap, or socket
    receiveq    chains ◄── copied into as many as it takes ◄── read(2)

Both are served in C (``devices/lanes/net.c``); here is the same once more, for a device that is
traced or fails on purpose, and what is rare.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import select
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal

from devices.lanes import PLAIN, Build, Lane
from devices.runtime import tap
from devices.runtime.device import Device, Host, Jail, Offer, Runtime, virtqueue
from devices.runtime.limits import Limit
from protocol import stream
from protocol.link import Link
from protocol.ring import Chain
from protocol.virtio import DeviceId, bit

_logger = logging.getLogger(__name__)


class Feature(IntEnum):
    """Feature bits (5.1.3)."""

    CSUM = 0
    GUEST_CSUM = 1
    MTU = 3
    MAC = 5
    GUEST_TSO4 = 7
    GUEST_TSO6 = 8
    GUEST_ECN = 9
    HOST_TSO4 = 11
    HOST_TSO6 = 12
    HOST_ECN = 13
    MRG_RXBUF = 15
    STATUS = 16


# What a tap does for a driver that asks for it, and what the driver does for it: by feature, what
# the kernel calls it.
_SENDING = (Feature.CSUM, Feature.HOST_TSO4, Feature.HOST_TSO6, Feature.HOST_ECN)
_RECEIVING = {
    Feature.GUEST_CSUM: tap.CHECKSUM,
    Feature.GUEST_TSO4: tap.TSO4,
    Feature.GUEST_TSO6: tap.TSO6,
    Feature.GUEST_ECN: tap.ECN,
}

# gso_type of a packet that TCP is to cut, and its bit for ECN; flags of one without a checksum
# (5.1.6).
_GSO = {1: Feature.GUEST_TSO4, 4: Feature.GUEST_TSO6}
_GSO_ECN, _NEEDS_CSUM = 0x80, 1

# struct virtio_net_config up to mtu (5.1.4): mac, status, max_virtqueue_pairs, mtu.
_CONFIG = struct.Struct("<6sHHH")
_LINK_UP = 1

# struct virtio_net_hdr_v1 (5.1.6): flags, gso_type, hdr_len, gso_size, csum_start, csum_offset,
# num_buffers.
HEADER = struct.Struct("<BBHHHHH")

# With an Ethernet header; and that with a VLAN tag, before the largest packet of IP (net.h).
_LEAST, _MOST = HEADER.size + 14, HEADER.size + 18 + 65535

# virtqueues (5.1.2).
RECEIVEQ, TRANSMITQ = 0, 1

# Entries: what QEMU has.
_QUEUE_SIZE = 256

# Of IPv4 (RFC 791), and what a header's 16 bits can say.
_MIN_MTU, _MAX_MTU = 68, 65535

# The largest packet is let through within a second: else it would look like a hang.
_MIN_BW = 64 * 1024

# Milliseconds that a reader may take before a packet is dropped, where Python sends (arbitrary).
_PATIENCE = 10

_MAC = re.compile(r"[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5}")

# IFNAMSIZ, with its end (<linux/if.h>); the kernel takes no slash, colon or space, and counts at %.
_TAP = re.compile(r"(?!\.\.?\Z)[^/:%\s\0]{1,15}")


def _any_mac() -> str:
    # Administered locally, of one station (IEEE 802).
    return bytes([0x02, *os.urandom(5)]).hex(":")


@dataclass(frozen=True, slots=True)
class Config:
    """A network interface: of user, tap= and join= one says what it is connected to."""

    backend: Literal["user"] | None = None
    """user: the host's network, by passt, without root: the guest gets its address by DHCP, and
    connects to where the host does."""
    tap: str = ""
    """A tap of the host, by its name. One that is not there is made, by root, and brought up."""
    join: str = ""
    """A folder, made if it is not there: all machines that name it are on one Ethernet."""
    forward: str = ""
    """With user: ports of the host that lead into the guest: tcp:8080:80, or with the address that
    is listened at (default: 127.0.0.1) tcp:0.0.0.0:8080:80; udp likewise; + between several."""
    mac: str = field(default_factory=_any_mac)
    """The address that the guest has, such as 02:00:00:00:00:01; by chance if not given."""
    mtu: int = 0
    """The largest packet that the guest is to send, 68 to 65535; 0: the guest decides."""
    pps: int = 0
    """The most packets in a second, each way; 0: as many as it can."""
    bw: int = 0
    """The most bytes in a second, each way, 64K or more; 0: as many as it can."""

    def __post_init__(self) -> None:
        wanted = [self.backend, self.tap, self.join]
        if sum(map(bool, wanted)) != 1:
            raise ValueError("connected to what? One of user, tap=NAME and join=FOLDER")
        if self.tap and not _TAP.fullmatch(self.tap):
            raise ValueError(f"tap: {self.tap!r} is no name of an interface")
        if not _MAC.fullmatch(self.mac) or set(self.mac) == {"0", ":"}:
            raise ValueError(f"mac: {self.mac!r} is no address such as 02:00:00:00:00:01")
        if int(self.mac[:2], 16) & 1:
            raise ValueError(f"mac: {self.mac} is the address of a group (its first byte is odd)")
        if self.mtu and not _MIN_MTU <= self.mtu <= _MAX_MTU:
            raise ValueError(f"mtu: {self.mtu} is not {_MIN_MTU} to {_MAX_MTU}")
        if self.forward and self.backend != "user":
            raise ValueError("forward: goes with user")
        if self.bw and self.bw < _MIN_BW:
            raise ValueError(f"bw: {self.bw} bytes in a second are fewer than {_MIN_BW}")


class Net(Device[Config]):
    """Moves packets between two queues and one descriptor, and says whether there is a link."""

    device_id = DeviceId.NET
    jail = Jail(frozenset({"writev"}), frozenset({tap.SET_OFFLOADS}))
    lanes = PLAIN

    @classmethod
    def open(cls, config: Config, host: Host) -> dict[str, int]:
        """What it is connected to, as ``packets``, and its link."""
        if config.tap:
            return host.network("tap", config.tap, config.mtu)
        if config.join:
            return host.network("join", config.join, config.mtu)
        return host.network("user", config.forward, config.mtu)

    def __init__(self, config: Config, fds: Mapping[str, int], runtime: Runtime) -> None:
        super().__init__(config, fds, runtime)
        self._packets = fds["packets"]
        self._wake = fds["wake"]
        self._link = Link(fds["link"])
        self._is_up = self._link.is_up
        self._features = 0
        self._native: Any = None  # the lanes' struct net
        self._is_lost = False
        self._waiting = b""
        self._waited_with = -1  # so many buffers, where too few were there

    @property
    def features(self) -> int:
        """A tap's offloads, which a socket has not: who is at its other end gets whole packets."""
        offered = [Feature.MAC, Feature.MRG_RXBUF, Feature.STATUS]
        if self.config.tap:
            offered += [*_SENDING, *_RECEIVING]
        if self.config.mtu:
            offered.append(Feature.MTU)
        return sum(bit(feature) for feature in offered)

    def config_space(self) -> bytes:
        """struct virtio_net_config."""
        status = _LINK_UP if self._is_up else 0
        return _CONFIG.pack(
            bytes.fromhex(self.config.mac.replace(":", "")), status, 1, self.config.mtu
        )

    def start(self, features: int) -> None:
        """Take from the tap what the driver takes, and nothing that was meant for the last one."""
        self._features = features
        self._waiting = b""
        if self.config.tap:
            wanted = [kind for feature, kind in _RECEIVING.items() if features & bit(feature)]
            tap.set_offloads(self._packets, sum(wanted))
        self.watch(self._wake, self._look)
        if (native := self._native) is None:
            self.watch(self._packets, self._pump)
            return
        native.merges = bool(features & bit(Feature.MRG_RXBUF))
        native.checksums = bool(features & bit(Feature.GUEST_CSUM))
        native.segments = sum(1 << gso for gso, feature in _GSO.items() if features & bit(feature))
        native.congestion = bool(features & bit(Feature.GUEST_ECN))
        native.down = not self._is_up
        native.waiting = 0

    def _look(self) -> None:
        # The launcher has changed the link, or may have.
        stream.drain(self._wake)
        is_up = self._link.is_up
        if is_up == self._is_up:
            return
        self._is_up = is_up
        if self._native is not None:
            self._native.down = not is_up
        self.config_changed()

    def limit(self, index: int) -> Limit | None:
        """As the options say, each way."""
        if not self.config.pps and not self.config.bw:
            return None
        return Limit(self.config.pps, self.config.bw)

    def fail(self, index: int, chain: Chain) -> int | None:
        """Sent to nowhere. To receive nothing would be no error, so what comes is received."""
        return 0 if index == TRANSMITQ else None

    @classmethod
    def why_unfit(cls, ours: Offer, theirs: Offer) -> str | None:
        """A driver reads the address and the size of packets once."""
        if len(theirs.config) < _CONFIG.size:
            return f"a configuration of {len(theirs.config)} bytes"
        now, then = _CONFIG.unpack_from(ours.config), _CONFIG.unpack_from(theirs.config)
        if now[0] != then[0]:
            return f"its address is {then[0].hex(':')}, and this one's {now[0].hex(':')}"
        if now[3] != then[3]:
            return f"its mtu is {then[3]}, and this one's {now[3]}"
        return None

    def lane(self, index: int, build: Build) -> Lane | None:
        """Both ways in C; not where faults are asked for, which strike chain by chain."""
        if build is not PLAIN:
            return None
        if self._native is None:
            self._native = build.ffi.new("struct net *")
            self._native.packets = self._packets
            self._native.has_headers = bool(self.config.tap)
        lib, native, counters, source = build.lib, self._native, self.counters, self._packets
        if index == TRANSMITQ:
            counted = ("sent", "dropped")
            return Lane(build, lib.net_send, native, counters, counted, source=source)
        counted, turn = ("received", "refused"), lib.net_receive
        return Lane(
            build, None, native, counters, counted, turn=turn, source=source, spent=self._look_out
        )

    def _look_out(self) -> None:
        if self._native.lost:
            self._lost()

    def _lost(self) -> None:
        if not self._is_lost:
            self._is_lost = True
            _logger.warning("%s is gone: packets go nowhere", self.config.tap or "the uplink")

    # Neither queue owes anything: nobody may send, and who reads at the other end may be slow.

    @virtqueue(RECEIVEQ, size=_QUEUE_SIZE, owes=False)
    def receiveq(self, chain: Chain) -> int | None:
        """A buffer for packets; kept until there is one."""
        if chain.readable.size or chain.writable.size < HEADER.size:
            self._refuse(f"a buffer of {chain.writable.size} bytes")
            return 0
        if self._native is None:
            self.soon(self._pump)
        return None

    @virtqueue(TRANSMITQ, size=_QUEUE_SIZE, owes=False)
    def transmitq(self, chain: Chain) -> int:
        """A packet, sent or dropped."""
        packet = chain.readable
        if chain.writable.size or not _LEAST <= packet.size <= _MOST:
            self._refuse(f"a packet of {packet.size} bytes, with room for {chain.writable.size}")
            return 0
        if not self.config.tap:
            packet.advance(HEADER.size)
        self.counters["sent" if self._is_up and self._send(packet.buffers()) else "dropped"] += 1
        return 0

    def _refuse(self, what: str) -> None:
        self.counters["refused"] += 1
        _logger.warning("refused: %s", what)

    def _send(self, views: list[memoryview]) -> bool:
        for _ in range(2):
            try:
                os.writev(self._packets, views)
                return True
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    return False
                room = select.poll()
                room.register(self._packets, select.POLLOUT)
                room.poll(_PATIENCE)
        return False

    def _pump(self) -> None:
        # Until there is nothing more, or no room for it: no edge is missed.
        while self._waiting or self._receive():
            if self._waiting and not self._deliver():
                return

    def _receive(self) -> bool:
        # Whether something came, and maybe waits now.
        try:
            packet = os.read(self._packets, _MOST + 1)
        except BlockingIOError:
            return False
        except OSError:
            self._lost()
            return False
        if packet and not self.config.tap:
            packet = bytes(HEADER.size) + packet
        if not self._is_up or not _LEAST <= len(packet) <= _MOST:
            self.counters["dropped"] += bool(packet)
            return bool(packet)
        flags, gso, *rest = HEADER.unpack_from(packet)
        takes_checksums = self._has(Feature.GUEST_CSUM)
        if (flags & _NEEDS_CSUM and not takes_checksums) or not self._takes(gso):
            self.counters["dropped"] += 1
            return True
        header = HEADER.pack(flags if takes_checksums else 0, gso, *rest)
        self._waiting, self._waited_with = header + packet[HEADER.size :], -1
        return True

    def _has(self, feature: Feature) -> bool:
        return bool(self._features & bit(feature))

    def _takes(self, gso: int) -> bool:
        if gso & _GSO_ECN and not self._has(Feature.GUEST_ECN):
            return False
        kind = gso & ~_GSO_ECN
        return not kind or (kind in _GSO and self._has(_GSO[kind]))

    def _deliver(self) -> bool:
        # False if it waits for buffers yet.
        merges = self._has(Feature.MRG_RXBUF)
        taken, room = list[Chain](), 0
        for chain in self.kept(RECEIVEQ):
            taken.append(chain)
            room += chain.writable.size
            if room >= len(self._waiting) or not merges:
                break
        # More have come, and were too few: there may never be enough.
        is_hopeless = 0 <= self._waited_with < len(taken)
        if room < len(self._waiting) and (merges or not taken) and not is_hopeless:
            self._waited_with = len(taken)
            return False
        packet, self._waiting = self._waiting, b""
        if room < len(packet):
            self.counters["dropped"] += 1
            return True
        header = HEADER.pack(*HEADER.unpack_from(packet)[:-1], len(taken))
        left = memoryview(header + packet[HEADER.size :])
        for chain in taken:
            left = left[chain.writable.write(left) :]
            self.complete(RECEIVEQ, chain, chain.writable.written)
        self.counters["received"] += 1
        return True
