"""The buses: who answers a port or an MMIO address, and what happens where nobody does.

An access that lies within one device goes to it in one look-up. One that straddles the edge
of a device is taken apart into bytes, each for whoever claims it. Where nobody does, a read
gives ones and a write is dropped, as on an empty bus; the address is logged once, with a hint,
and only so many addresses are remembered, for the guest chooses them.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_right
from itertools import pairwise
from typing import Protocol

from vmm import memory_map

log = logging.getLogger(__name__)

# How many distinct unclaimed addresses are logged. Arbitrary: more than a stock kernel probes.
MAX_LOGGED = 64


class Device(Protocol):
    """What sits on a bus. Offsets are from the device's base, sizes 1 to 8 bytes, values
    little-endian and not wider than the access, which lies wholly within the device."""

    def read(self, offset: int, size: int) -> int:
        """The ``size`` bytes at ``offset``."""

    def write(self, offset: int, size: int, value: int) -> None:
        """Store the ``size`` bytes of ``value`` at ``offset``."""


class _Nobody:
    # Claims the empty range that stands before the first device, so that a look-up never fails.
    def read(self, offset: int, size: int) -> int:
        raise AssertionError("an empty range was read")

    def write(self, offset: int, size: int, value: int) -> None:
        raise AssertionError("an empty range was written")


# A device, its first address, and the first address behind it.
_Range = tuple[Device, int, int]
_NOTHING: _Range = (_Nobody(), 0, 0)


class Bus:
    """Both address spaces of the machine; answers the exits of every vCPU, from any thread.

    Devices may be added while vCPUs run. ValueError if two devices overlap.
    """

    def __init__(self) -> None:
        self._ports: dict[int, _Range] = {}
        # Bases in order, and one range more: ranges[i] is what bases[i - 1] begins. Replaced as
        # one tuple, so that a vCPU never sees the two disagree.
        self._mmio: tuple[list[int], list[_Range]] = ([], [_NOTHING])
        self._logged: set[tuple[str, int]] = set()
        self._lock = threading.Lock()

    def add_pio(self, base: int, length: int, device: Device) -> None:
        """Give ``device`` the ``length`` ports from ``base``."""
        ports = range(base, base + length)
        with self._lock:
            taken = [port for port in ports if port in self._ports]
            if taken:
                raise ValueError(f"port {taken[0]:#x} is taken already")
            self._ports.update(dict.fromkeys(ports, (device, base, base + length)))

    def add_mmio(self, base: int, length: int, device: Device) -> None:
        """Give ``device`` the ``length`` bytes of guest physical addresses from ``base``."""
        with self._lock:
            ranges = [*self._mmio[1], (device, base, base + length)]
            ranges.sort(key=lambda entry: entry[1:])
            for (_, _, end), (_, start, _) in pairwise(ranges):
                if start < end:
                    raise ValueError(f"address {start:#x} is taken already")
            self._mmio = ([start for _, start, _ in ranges[1:]], ranges)

    def ports(self) -> frozenset[int]:
        """Every port that somebody claims."""
        return frozenset(self._ports)

    def pio_read(self, port: int, size: int) -> int:
        """The guest reads ``size`` bytes from ``port``."""
        device, base, end = self._ports.get(port, _NOTHING)
        if port + size <= end:
            return device.read(port - base, size)
        return self._odd_read("port", port, size)

    def pio_write(self, port: int, size: int, value: int) -> None:
        """The guest writes ``size`` bytes to ``port``."""
        device, base, end = self._ports.get(port, _NOTHING)
        if port + size <= end:
            device.write(port - base, size, value)
        else:
            self._odd_write("port", port, size, value)

    def mmio_read(self, address: int, size: int) -> int:
        """The guest reads ``size`` bytes at ``address``, which is not RAM."""
        bases, ranges = self._mmio
        device, base, end = ranges[bisect_right(bases, address)]
        if address + size <= end:
            return device.read(address - base, size)
        return self._odd_read("MMIO", address, size)

    def mmio_write(self, address: int, size: int, value: int) -> None:
        """The guest writes ``size`` bytes at ``address``, which is not RAM."""
        bases, ranges = self._mmio
        device, base, end = ranges[bisect_right(bases, address)]
        if address + size <= end:
            device.write(address - base, size, value)
        else:
            self._odd_write("MMIO", address, size, value)

    def _odd_read(self, space: str, address: int, size: int) -> int:
        # What lies in no single device: byte by byte if some device has a part of it.
        if self._is_empty(space, address, size):
            self._note(space, address, "read")
            return (1 << 8 * size) - 1
        read = self.pio_read if space == "port" else self.mmio_read
        return int.from_bytes(bytes(read(address + i, 1) for i in range(size)), "little")

    def _odd_write(self, space: str, address: int, size: int, value: int) -> None:
        if self._is_empty(space, address, size):
            self._note(space, address, "write")
            return
        write = self.pio_write if space == "port" else self.mmio_write
        for i, byte in enumerate(value.to_bytes(size, "little")):
            write(address + i, 1, byte)

    def _is_empty(self, space: str, address: int, size: int) -> bool:
        if space == "port":
            return not any(address + i in self._ports for i in range(size))
        return not any(
            start < address + size and address < end for _, start, end in self._mmio[1][1:]
        )

    def _note(self, space: str, address: int, verb: str) -> None:
        with self._lock:
            if (space, address) in self._logged or len(self._logged) >= MAX_LOGGED:
                return
            self._logged.add((space, address))
            is_last = len(self._logged) == MAX_LOGGED
        # Kernels read ports and virtio slots to see what is there. The rest is mostly a mistake.
        if space == "port":
            log.info("%s of port %#x: no device there; harmless in a probe", verb, address)
        else:
            level = logging.INFO if verb == "read" and _slot(address) >= 0 else logging.WARNING
            log.log(level, "MMIO %s of unmapped address %#x: %s", verb, address, _hint(address))
        if is_last:
            log.warning("%d unclaimed addresses; no further ones are logged", MAX_LOGGED)


def _slot(address: int) -> int:
    # The virtio slot that the address lies in, or -1.
    slot = (address - memory_map.VIRTIO_WINDOW) // memory_map.VIRTIO_SLOT_SIZE
    return slot if 0 <= slot < memory_map.MAX_VIRTIO_DEVICES else -1


def _hint(address: int) -> str:
    if _slot(address) >= 0:
        return f"no device in virtio slot {_slot(address)}; attach one with --device"
    if address < memory_map.LOW_RAM_END or address >= memory_map.HIGH_RAM:
        return "no memory there; the guest may need a larger --mem"
    return "no device there; check the address against the memory map (--dry-run prints it)"
