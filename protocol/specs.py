"""What a process is told when it starts: frozen data, sent in its first handover."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from protocol.memory import Region

Architecture = Literal["x86_64", "arm64"]
"""Of a guest; a kernel's own name of it, as in ``uname -m`` and in its ``arch/``."""

ARCHITECTURES: tuple[Architecture, ...] = ("x86_64", "arm64")

OnReboot = Literal["reset", "exit"]
"""What becomes of a guest that resets."""

ON_REBOOT: tuple[OnReboot, ...] = ("reset", "exit")

Level = Literal["none", "jail", "bounce"]
"""What a device process can reach: what its user can; all guest memory and its own descriptors,
in a jail; bounce memory instead of guest memory, in the same jail."""

LEVELS: tuple[Level, ...] = ("none", "jail", "bounce")

OnViolation = Literal["kill", "errno", "log"]
"""What a forbidden system call leads to: the end of the process, EPERM, or EPERM and a log line."""

ON_VIOLATION: tuple[OnViolation, ...] = ("kill", "errno", "log")


Part = Literal["user", "pid", "net", "ipc", "uts", "mount", "landlock", "cgroup"]
"""What a jail is made of that a host may lack: namespaces, by their names in /proc/PID/ns,
Landlock, and a cgroup, which the launcher makes."""

PARTS: tuple[Part, ...] = ("user", "pid", "net", "ipc", "uts", "mount", "landlock", "cgroup")


@dataclass(frozen=True, slots=True)
class Isolation:
    """The ``level`` of a device. One that is ``strict`` is refused where the host lacks a part of
    the jail, which else is left out."""

    level: Level = "jail"
    strict: bool = False

    def __str__(self) -> str:
        return f"{self.level}+strict" if self.strict else self.level


JAIL = Isolation()
"""How devices are held unless somebody says otherwise."""


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """One device process.

    ``kind`` is its name in the table of kinds, ``config`` its options (msgpack of its Config
    dataclass), ``endpoint`` the path of its control channel, ``log`` a level from 0 to 4;
    ``journal`` are the sizes of the queues that its journal is laid out for. One that is
    ``failing`` answers every request with an error (Device.fail). ``isolation`` is what it is to
    be held by, ``on_violation`` what breaking out leads to. A chain of more than ``largest_chain``
    bytes will not reach it; 0: of any size will. Its process is called ``process`` (empty: as the
    device) and serves ``sharing`` devices, for each of which there comes such a spec.
    With it come the descriptors ``memory``, ``journal``, ``kick0`` … ``kickN``, ``call``, those
    that the kind opened for itself, ``trace`` if there is one, and ``faults``, a protocol.faults
    Board, if faults may be injected.

    One with an empty ``endpoint`` is no machine's: with it come ``front-end``, a connection over
    which vhost-user is spoken, ``journal``, ``written`` (protocol.config_space), and what the kind
    opened.
    """

    name: str
    kind: str
    config: bytes
    generation: int
    endpoint: str
    regions: tuple[Region, ...]
    journal: tuple[int, ...]
    failing: bool
    log: int
    isolation: Isolation = JAIL
    on_violation: OnViolation = "kill"
    largest_chain: int = 0
    process: str = ""
    sharing: int = 1


@dataclass(frozen=True, slots=True)
class DeviceSlot:
    """A device as the VMM sees it: where its registers lie and which line it pulls.

    ``queues`` are the sizes that its journal is laid out for, ``owing`` the indices of those
    queues on which a chain is to be answered without anything else having to happen. With the
    VMM's spec come, for each device, ``NAME.journal``, ``NAME.pidfd``, ``NAME.kick0`` …
    ``NAME.kickN`` and ``NAME.call``; for one that is ``bounced``, that is, works on copies,
    ``NAME.bounce``, the memory for them. One that is ``mediated`` works on rings of its own on
    every backend: it keeps no journal.
    """

    name: str
    kind: str
    device_id: int
    slot: int
    gsi: int
    queues: tuple[int, ...]
    owing: tuple[int, ...]
    generation: int
    endpoint: str
    bounced: bool = False
    mediated: bool = False


@dataclass(frozen=True, slots=True)
class Successor:
    """For the VMM, in a later handover: a further process of device ``name``, now of ``kind``,
    which takes an empty place at once, or ``waits`` for Switch: the launcher looks first whether
    it fits.

    One that was started ``by_hand`` may sit at a breakpoint for as long as it likes.
    With it come ``pidfd``, ``kick0`` … ``kickN`` and ``call``: fresh ones, for the processes
    before it may still have theirs.
    """

    name: str
    kind: str
    generation: int
    endpoint: str
    waits: bool
    by_hand: bool = False


@dataclass(frozen=True, slots=True)
class Forward:
    """Port ``host_port`` of the host, at ``address``, leads to ``guest_port`` of the guest."""

    protocol: Literal["tcp", "udp"]
    address: str
    host_port: int
    guest_port: int


@dataclass(frozen=True, slots=True)
class UplinkSpec:
    """The process at the far end of a network interface (launcher.uplink): the host's network, by
    passt, whose ``program`` this is, with ``forwards``; or an Ethernet of machines. A guest that
    asks is told to send packets of up to ``mtu`` bytes, unless it is 0. It answers, with nothing,
    once it works.

    With it comes ``packets``, a socket; for an Ethernet, its ``folder``, and ``member``, the socket
    in there that is this one's.
    """

    kind: Literal["user", "join"]
    mtu: int
    program: str = ""
    forwards: tuple[Forward, ...] = ()


@dataclass(frozen=True, slots=True)
class BootSpec:
    """What to run, on a machine of which ``architecture``. ``entry`` and ``load`` are set for a raw
    binary only.

    With it come the descriptors ``kernel`` and, if there is one, ``initrd``.
    """

    binary: bool
    cmdline: str
    entry: int | None
    load: int | None
    architecture: Architecture = "x86_64"


@dataclass(frozen=True, slots=True)
class Groups:
    """Cgroups of a machine: ``machine``, a path, with a group for each jailed device, made in
    ``base``. The controllers ``enabled`` were not to be had below that before. With ``home`` the
    launcher was in ``base`` and is, with the processes that it starts, in a group of that name in
    ``machine`` (protocol.jail.cgroup)."""

    base: str
    machine: str
    enabled: tuple[str, ...] = ()
    home: bool = False


@dataclass(frozen=True, slots=True)
class Guard:
    """The first that the VMM process is told: what it does should the launcher die first.

    It removes ``cleanup``, files and directories, and, where ``termios`` is not empty, puts
    back ``terminal``, a descriptor that comes with this (protocol.terminal.restore).
    """

    cleanup: tuple[str, ...]
    termios: bytes = b""


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """The VMM process: the machine it makes, and where it talks.

    A guest that resets is booted again, or ends the machine: ``on_reboot``.
    A device that makes no progress for ``hang_after`` milliseconds is hung; 0: none ever is.
    One that is ``strict`` does not run where the host lacks a part of the VMM's own jail.
    With it come ``memory``, ``serial`` (a stream socket to the launcher: console output
    and input) and ``trace`` if there is one, beside those of BootSpec and DeviceSlot.
    """

    name: str
    hypervisor: Literal["kvm", "software"]
    memory_size: int
    cpus: int
    boot: BootSpec
    devices: tuple[DeviceSlot, ...]
    endpoint: str
    on_reboot: OnReboot
    hang_after: int
    stats: bool
    log: int
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Leftover:
    """The first that the zygote is told: should the launcher die first, it removes ``groups``."""

    groups: Groups | None


@dataclass(frozen=True, slots=True)
class Fork:
    """To the zygote: a process for each ``NAME.handover`` and ``NAME.log`` that comes with it, in
    namespaces of its own, but for those of the names that are ``free``."""

    free: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Forked:
    """Its answer: the processes that it made, in the order in which they were named."""

    pids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Volunteer:
    """To the launcher, from a process that was started by hand: it wants to be ``device``, as
    which it has an ``implementation`` of its own. If it ``holds`` the place, nobody else takes it
    when this process has ended, until somebody is told to."""

    device: str
    implementation: str
    holds: bool


@dataclass(frozen=True, slots=True)
class Wish:
    """To the launcher, from such a process, once it has its DeviceSpec: what ``Device.open`` asks
    of its host. A ``lock`` of the descriptor ``file`` that comes with this, which may be
    ``shared``, and is to be called ``path`` if it is new; a ``stream`` to ``backend`` at ``path``;
    or a ``network`` of that kind, with packets of up to ``mtu`` bytes."""

    what: Literal["lock", "stream", "network"]
    shared: bool = False
    backend: str = ""
    path: str = ""
    mtu: int = 0


@dataclass(frozen=True, slots=True)
class Granted:
    """The answer to Wish: whether it could be, or the key at fault (``where``) and ``why``. With
    it come the descriptors of a stream, or a network."""

    granted: bool
    where: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """To such a process: that it ``serves`` now; or, if it does not, ``why`` it has to end, and the
    exit ``status`` that this means."""

    serves: bool
    why: str = ""
    status: int = 0


FAREWELL = b"farewell"
"""The launcher's last handover to the VMM: the terminal is put back, and nothing is to be done for
it any more. A socket that ends without it is a launcher that was killed."""
