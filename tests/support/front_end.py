"""A vhost-user front-end in plain Python: messages as a test wants them, and the driver's half of
each ring (tests/support/driver.py) in memory of which it owns the files.

Addresses are chosen so that none can be taken for another: the guest's, the front-end's own, and
where a region begins in its file.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Self

from protocol import doorbell, fds
from protocol.memory import GuestMemory, Region, create_memfd
from protocol.vhost_user import (
    F_PROTOCOL_FEATURES,
    FROM_BACK_END,
    U64,
    VRING_NOFD,
    ConfigSpace,
    Connection,
    HungUp,
    Inflight,
    MemoryRegion,
    Message,
    ProtocolFeature,
    Request,
    VringAddr,
    VringState,
    pack_region,
    pack_table,
)
from protocol.virtio import Feature, bit
from tests.support.driver import Driver
from tests.support.driving import DEADLINE, Driving

MIB = 1 << 20
# Low memory, a hole, and more; each region in a file of its own, but for its first megabytes.
REGIONS = (
    MemoryRegion(0, 8 * MIB, 0x7F00_0000_0000, 2 * MIB),
    MemoryRegion(1 << 32, 4 * MIB, 0x7E00_0000_0000, MIB),
)
# Guest memory that each queue's driver owns, and where the first of them begins.
_ROOM, _FIRST = 2 * MIB, MIB


class FrontEnd(Driving):
    """One that is connected over ``stream``, and has said nothing. Its memory is all of REGIONS."""

    def __init__(self, stream: socket.socket) -> None:
        self.connection = Connection(stream, FROM_BACK_END)
        self.files = [create_memfd("front-end", r.mmap_offset + r.size) for r in REGIONS]
        self.memory = GuestMemory.of_files(
            [
                (fd, Region(region.guest_address, region.size, region.mmap_offset))
                for fd, region in zip(self.files, REGIONS, strict=True)
            ]
        )
        self.drivers: dict[int, Driver] = {}
        self.bells: dict[str, int] = {}
        self.features = 0
        self.acknowledges = False

    @classmethod
    def at(cls, path: str) -> Self:
        """Connected to the socket at ``path``."""
        stream = socket.socket(socket.AF_UNIX)
        stream.connect(path)
        return cls(stream)

    # Messages.

    def ask(
        self, request: Request, payload: bytes = b"", descriptors: Sequence[int] = ()
    ) -> Message:
        """Send one that is replied to; the reply, whose descriptors are the caller's."""
        self.connection.send(request, payload, descriptors)
        return self._reply(request)

    def tell(self, request: Request, payload: bytes = b"", descriptors: Sequence[int] = ()) -> None:
        """Send one that is not; where it may, it asks whether all went well."""
        acknowledges = self.acknowledges
        self.connection.send(request, payload, descriptors, needs_reply=acknowledges)
        if acknowledges:
            assert self._reply(request).number == 0

    def _reply(self, request: Request) -> Message:
        reply = self.connection.wait(DEADLINE)
        assert reply.is_reply
        assert reply.request is request
        return reply

    def is_hung_up_on(self) -> bool:
        """Whether the other side hangs up, whatever it says before."""
        try:
            while True:
                self.connection.wait(DEADLINE).close()
        except HungUp:
            return True

    # A conversation as most have it.

    def negotiate(self, *without: ProtocolFeature, features: Sequence[Feature] = ()) -> None:
        """All protocol features that are offered, but ``without`` these; VERSION_1, and
        ``features``."""
        offered = self.ask(Request.GET_FEATURES).number
        protocol = self.ask(Request.GET_PROTOCOL_FEATURES).number
        protocol &= ~sum(bit(feature) for feature in without)
        self.tell(Request.SET_PROTOCOL_FEATURES, U64(protocol).pack())
        self.acknowledges = bool(protocol & bit(ProtocolFeature.REPLY_ACK))
        self.tell(Request.SET_OWNER)
        self.features = sum(bit(f) for f in {*features, Feature.VERSION_1})
        assert offered & self.features == self.features
        self.set_features()

    def set_features(self, *, protocol: bool = True) -> None:
        """Those that were negotiated, with the bit of protocol features or without."""
        extra = bit(F_PROTOCOL_FEATURES) if protocol else 0
        self.tell(Request.SET_FEATURES, U64(self.features | extra).pack())

    def set_table(self) -> None:
        """Memory by SET_MEM_TABLE."""
        self.tell(Request.SET_MEM_TABLE, pack_table(REGIONS), self.files)

    def add_regions(self) -> None:
        """Memory by ADD_MEM_REG."""
        for region, fd in zip(REGIONS, self.files, strict=True):
            self.tell(Request.ADD_MEM_REG, pack_region(region), [fd])

    def lay_out(self, index: int = 0, size: int = 16, region: int = 0) -> Driver:
        """A fresh ring in memory, and nothing said of it."""
        base = REGIONS[region].guest_address + _FIRST + index * _ROOM
        event_idx = bool(self.features & bit(Feature.EVENT_IDX))
        driver = Driver(self.memory, size, base=base, length=_ROOM, event_idx=event_idx)
        self.drivers[index] = driver
        return driver

    def set_ring(self, index: int = 0, base: int = 0) -> None:
        """Say where it is, and ring its doorbells from now on."""
        driver = self.drivers[index]
        self.tell(Request.SET_VRING_NUM, VringState(index, driver.size).pack())
        self.tell(Request.SET_VRING_BASE, VringState(index, base).pack())
        desc, avail, used = map(user_address, (driver.desc, driver.avail, driver.used))
        self.tell(Request.SET_VRING_ADDR, VringAddr(index, 0, desc, used, avail, 0).pack())
        self.set_bell(Request.SET_VRING_CALL, index)
        self.set_bell(Request.SET_VRING_KICK, index)

    def enable(self, index: int = 0, num: int = 1) -> None:
        """SET_VRING_ENABLE."""
        self.tell(Request.SET_VRING_ENABLE, VringState(index, num).pack())

    def start(self, index: int = 0, size: int = 16) -> None:
        """A fresh ring, at work."""
        self.lay_out(index, size)
        self.set_ring(index)
        self.enable(index)

    def stop(self, index: int = 0) -> int:
        """GET_VRING_BASE: where it stands."""
        reply = self.ask(Request.GET_VRING_BASE, VringState(index, 0).pack())
        state = VringState.unpack(reply.payload)
        assert state.index == index
        return state.num

    def set_bell(self, request: Request, index: int = 0) -> int:
        """A fresh doorbell; the one before is closed."""
        name = f"{request.name}{index}"
        if name in self.bells:
            os.close(self.bells.pop(name))
        self.bells[name] = doorbell.create()
        self.tell(request, U64(index).pack(), [self.bells[name]])
        return self.bells[name]

    def clear_bell(self, request: Request, index: int = 0) -> None:
        """There is none."""
        self.tell(request, U64(index | VRING_NOFD).pack())

    def config(self, size: int) -> bytes:
        """GET_CONFIG of so many bytes from offset 0."""
        reply = self.ask(Request.GET_CONFIG, ConfigSpace(0, 0, bytes(size)).pack())
        return ConfigSpace.unpack(reply.payload).data

    def get_inflight(
        self, queues: int = 1, size: int = 16, padding: int = 0
    ) -> tuple[Inflight, int]:
        """A fresh in-flight region, and its file, the caller's."""
        wanted = Inflight(0, 0, queues, size).pack() + bytes(padding)
        reply = self.ask(Request.GET_INFLIGHT_FD, wanted)
        assert len(reply.payload) == len(wanted)
        return Inflight.unpack(reply.payload), reply.take()

    # Rings.

    def _kick(self, index: int) -> int:
        return self.bells[f"SET_VRING_KICK{index}"]

    def _call(self, index: int) -> int:
        return self.bells[f"SET_VRING_CALL{index}"]

    def close(self) -> None:
        """Hang up, and close everything."""
        self.connection.close()
        self.memory.close()
        fds.close_all([*self.files, *self.bells.values()])
        self.files.clear()
        self.bells.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def user_address(guest_address: int) -> int:
    """Where the front-end has it."""
    for region in REGIONS:
        if 0 <= guest_address - region.guest_address < region.size:
            return region.user_address + guest_address - region.guest_address
    raise AssertionError(f"{guest_address:#x} is no guest memory")
