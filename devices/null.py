"""A device that does nothing, for measuring what everything around a device costs.

It is no virtio device: no driver binds to its number, and guests of our own drive it.
"""

from __future__ import annotations

from dataclasses import dataclass

from devices.runtime.device import Device, virtqueue
from protocol.ring import Chain
from protocol.virtio import DeviceId


@dataclass(frozen=True, slots=True)
class Config:
    """Nothing to choose."""


class Null(Device[Config]):
    """Completes every chain at once, having read and written nothing."""

    device_id = DeviceId.NULL

    @virtqueue(0, size=256)
    def requestq(self, chain: Chain) -> int:
        """Return it as it came."""
        return 0
