"""A device for tests: says what it is told in capitals. Copies of it stand for changes."""

from __future__ import annotations

from dataclasses import dataclass

from devices.runtime.device import Device, virtqueue
from protocol.ring import Chain
from protocol.virtio import DeviceId


@dataclass(frozen=True, slots=True)
class Config:
    """How it shouts."""

    mark: str = "!"
    """What stands behind."""


class Shout(Device[Config]):
    """Answers each request with its text in capitals."""

    device_id = DeviceId.NULL

    @virtqueue(0, size=64)
    def requestq(self, chain: Chain) -> int:
        """Return the number of bytes written."""
        text = chain.readable.read(60).decode("ascii", "replace")
        return chain.writable.write((text.upper() + self.config.mark).encode())
