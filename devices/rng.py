"""virtio-rng: hands host entropy to the guest (virtio 1.2, section 5.4)."""

from __future__ import annotations

import os
from dataclasses import dataclass

from devices.runtime.device import Device, Jail, virtqueue
from protocol.ring import Chain
from protocol.virtio import DeviceId


@dataclass(frozen=True, slots=True)
class Config:
    """A source of entropy: /dev/hwrng to Linux."""

    # A chain may name one guest page many times over, and so ask for far more
    # than the guest owns. The spec allows short answers; we rely on that.
    max_bytes: int = 64 * 1024
    """The most that one request is answered with."""


class Rng(Device[Config]):
    """Answers every request with fresh bytes from the host kernel."""

    device_id = DeviceId.ENTROPY
    jail = Jail(syscalls=frozenset({"getrandom"}))

    @virtqueue(0, size=64)
    def requestq(self, chain: Chain) -> int:
        """Fill the guest's buffer; return the number of bytes written."""
        wanted = min(chain.writable.size, self.config.max_bytes)
        return chain.writable.write(os.urandom(wanted))
