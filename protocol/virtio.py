"""Constants of the virtio specification 1.2, under the specification's names."""

from __future__ import annotations

from enum import IntEnum, IntFlag


class DeviceId(IntEnum):
    """Device types (section 5). NULL is ours: from the end of the space, no driver binds to it."""

    NET = 1
    BLOCK = 2
    CONSOLE = 3
    ENTROPY = 4
    VSOCK = 19
    FS = 26
    NULL = 0xFFFF


class Status(IntFlag):
    """Device status field (section 2.1)."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    DEVICE_NEEDS_RESET = 64
    FAILED = 128


class Feature(IntEnum):
    """Bit numbers of the device-independent features (section 6)."""

    INDIRECT_DESC = 28
    EVENT_IDX = 29
    VERSION_1 = 32
    ACCESS_PLATFORM = 33
    RING_PACKED = 34


def bit(number: int) -> int:
    """The mask of feature bit ``number``."""
    return 1 << number


RING_FEATURES = bit(Feature.INDIRECT_DESC) | bit(Feature.EVENT_IDX) | bit(Feature.VERSION_1)
"""What the ring engine gives to every device."""

DEVICE_FEATURES = (1 << 24) - 1 | ((1 << 64) - 1) & ~((1 << 50) - 1)
"""Bits that each type of device has for itself: 0 to 23, and from 50 on (section 2.2)."""

MAX_QUEUE_SIZE = 32768
"""Of a split virtqueue (section 2.7)."""


class Mmio(IntEnum):
    """Register offsets of the MMIO transport, version 2 (section 4.2.2)."""

    MAGIC_VALUE = 0x000
    VERSION = 0x004
    DEVICE_ID = 0x008
    VENDOR_ID = 0x00C
    DEVICE_FEATURES = 0x010
    DEVICE_FEATURES_SEL = 0x014
    DRIVER_FEATURES = 0x020
    DRIVER_FEATURES_SEL = 0x024
    QUEUE_SEL = 0x030
    QUEUE_SIZE_MAX = 0x034
    QUEUE_SIZE = 0x038
    QUEUE_READY = 0x044
    QUEUE_NOTIFY = 0x050
    INTERRUPT_STATUS = 0x060
    INTERRUPT_ACK = 0x064
    STATUS = 0x070
    QUEUE_DESC_LOW = 0x080
    QUEUE_DESC_HIGH = 0x084
    QUEUE_DRIVER_LOW = 0x090
    QUEUE_DRIVER_HIGH = 0x094
    QUEUE_DEVICE_LOW = 0x0A0
    QUEUE_DEVICE_HIGH = 0x0A4
    SHM_SEL = 0x0AC
    SHM_LEN_LOW = 0x0B0
    SHM_LEN_HIGH = 0x0B4
    SHM_BASE_LOW = 0x0B8
    SHM_BASE_HIGH = 0x0BC
    QUEUE_RESET = 0x0C0
    CONFIG_GENERATION = 0x0FC
    CONFIG = 0x100


MMIO_MAGIC = 0x74726976
"""``virt``, little-endian."""

MMIO_VERSION = 2
INTERRUPT_USED_BUFFER = 1
INTERRUPT_CONFIG_CHANGE = 2
