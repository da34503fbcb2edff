"""What a process is told when it starts: frozen data, sent in its first handover."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from protocol.memory import Region


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """One device process.

    ``kind`` is its name in the table of kinds, ``config`` its options (msgpack of its Config
    dataclass), ``endpoint`` the path of its control channel, ``log`` a level from 0 to 4.
    With it come the descriptors ``memory``, ``kick0`` … ``kickN``, ``call``, those that the
    kind opened for itself, and ``trace`` if there is one.
    """

    name: str
    kind: str
    config: bytes
    generation: int
    endpoint: str
    regions: tuple[Region, ...]
    log: int


@dataclass(frozen=True, slots=True)
class DeviceSlot:
    """A device as the VMM sees it: where its registers lie and which line it pulls.

    With the VMM's spec come, for each, ``NAME.kick0`` … ``NAME.kickN`` and ``NAME.call``.
    """

    name: str
    kind: str
    device_id: int
    slot: int
    gsi: int
    queues: int
    generation: int
    endpoint: str


@dataclass(frozen=True, slots=True)
class BootSpec:
    """What to run. ``entry`` and ``load`` are set for a raw binary only.

    With it come the descriptors ``kernel`` and, if there is one, ``initrd``.
    """

    binary: bool
    cmdline: str
    entry: int | None
    load: int | None


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """The VMM process: the machine it makes, and where it talks.

    ``cleanup`` names files and directories that it removes should the launcher die first.
    With it come ``memory``, ``serial`` (a stream socket to the launcher: console output
    and input) and ``trace`` if there is one, beside those of BootSpec and DeviceSlot; and,
    where ``termios`` is not empty, ``terminal``, to which protocol.terminal.restore puts it
    back should the launcher die first.
    """

    name: str
    hypervisor: Literal["kvm", "software"]
    memory_size: int
    cpus: int
    boot: BootSpec
    devices: tuple[DeviceSlot, ...]
    endpoint: str
    stats: bool
    log: int
    cleanup: tuple[str, ...]
    termios: bytes = b""


@dataclass(frozen=True, slots=True)
class Forked:
    """The answer of the zygote: the processes that it made, in the order in which they were named.

    It was sent, for each, ``NAME.handover`` and ``NAME.log``.
    """

    pids: tuple[int, ...]
