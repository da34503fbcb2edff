"""Every control message, by direction: this file is the wire reference (docs/protocol.md tells it).

A message on the wire is its length and a frame, a msgpack array of four::

    [name, sequence, generation, {field: value, …}]

``name`` is the class's name below. A request has a sequence number above 0 and is answered
by exactly one reply with the same number; an event has sequence 0 and no answer. Whatever
belongs to another generation of a device than the current one is dropped. The semantics of
the device half are vhost-user's: features, ring addresses, start, stop, configuration.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.codec import MAX_MESSAGE
from protocol.specs import Part

PROTOCOL_VERSION = 3
"""Of this file: raised whenever a message changes its meaning or fields."""

STATE_VERSION = 1
"""Of what a device hands to its successor: statistics and ring positions."""


@dataclass(frozen=True, slots=True)
class QueueSetup:
    """Where one virtqueue lies: ``size`` entries; guest addresses of its three parts."""

    index: int
    size: int
    desc: int
    avail: int
    used: int


# ── a device to the VMM ───────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of a device: who it is, what it offers, its configuration space."""

    protocol: int
    state: int
    kind: str
    device_id: int
    features: int
    queue_sizes: tuple[int, ...]
    config: bytes


@dataclass(frozen=True, slots=True)
class Sealed:
    """The jail is closed; from here on the device accepts Start.

    ``syscalls`` is the size of the allowlist, or 0 for a device that has no jail; ``descriptors``
    are the names of what it holds; ``parts`` the parts of the jail that hold it: not all, where
    the host lacks some.
    """

    syscalls: int
    descriptors: tuple[str, ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """Reply: the request was carried out."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Reply: the request was not carried out, and why."""

    reason: str


MAX_STATE = MAX_MESSAGE - 8192
"""Bytes of a device's state: so much fits into one Start, beside the most queues there are."""


@dataclass(frozen=True, slots=True)
class Quiesced:
    """Reply to Quiesce: what the device hands to its successor (Device.save), often nothing."""

    state: bytes


@dataclass(frozen=True, slots=True)
class DeviceStats:
    """Reply to GetStats: counters by name, all since the process started."""

    counters: dict[str, int]


@dataclass(frozen=True, slots=True)
class ConfigChanged:
    """Event, and reply to WriteConfig: the whole configuration space as it now is."""

    config: bytes


@dataclass(frozen=True, slots=True)
class NeedsReset:
    """Event: the driver broke a ring beyond repair; the device waits for its reset."""

    reason: str


# ── the VMM to a device ───────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Welcome:
    """Answer to Hello: versions match, go on to the seal."""

    protocol: int
    state: int


@dataclass(frozen=True, slots=True)
class Refused:
    """Answer to Hello: no; both sides' numbers are in ``reason``. The device exits."""

    reason: str


@dataclass(frozen=True, slots=True)
class Start:
    """Serve these queues with these features: DRIVER_OK, or the place of a predecessor whose
    ``state`` this is, and what the journal says was in flight. Reply: Done or Failed."""

    features: int
    queues: tuple[QueueSetup, ...]
    state: bytes = b""


@dataclass(frozen=True, slots=True)
class Stop:
    """Reset: finish or drop what is in flight, touch guest memory no more, then reply Done."""


@dataclass(frozen=True, slots=True)
class Quiesce:
    """A successor takes over: touch guest memory no more, and leave what is in flight in the
    journal. Reply: Quiesced. Quit follows, and who does not end then is killed."""


@dataclass(frozen=True, slots=True)
class StopQueue:
    """QueueReady = 0: the same for one queue. Reply: Done."""

    index: int


@dataclass(frozen=True, slots=True)
class WriteConfig:
    """The driver wrote ``data`` at ``offset`` of the configuration. Reply: ConfigChanged."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class GetStats:
    """Reply: DeviceStats."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there? Reply: Done."""


@dataclass(frozen=True, slots=True)
class Quit:
    """The VM ends: stop, reply Done, exit."""


# ── the VMM to the launcher ───────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class MachineReady:
    """Event: every device is sealed and the first instruction is about to run.

    ``phases`` are milliseconds from the VMM's own start; ``lacks`` the parts of the VMM's jail that
    the host has not got.
    """

    phases: dict[str, int]
    lacks: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Rebooted:
    """Event: the guest asked for a reset, the ``count``-th, and has booted again, with the same
    device processes, ``microseconds`` after it asked."""

    count: int
    microseconds: int


@dataclass(frozen=True, slots=True)
class Ended:
    """Event: the guest runs no more. ``reason`` is one of power-off, reset, panic, died, stopped,
    host-error and bad-input; ``detail`` a sentence for the user, or a dump."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class DeviceBound:
    """Event: the VMM listens for this generation of a device (specs.Successor)."""

    name: str
    generation: int


@dataclass(frozen=True, slots=True)
class DeviceOffers:
    """Event: a device is sealed, and this is what it offers: of the first, and of each successor,
    which takes an empty place at once, or waits for Switch (specs.Successor). ``syscalls`` and
    ``parts`` are as it said in Sealed."""

    name: str
    generation: int
    features: int
    queue_sizes: tuple[int, ...]
    config: bytes
    syscalls: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class DeviceAttached:
    """Event: this generation serves the guest, ``microseconds`` after its predecessor was found
    dead, or was asked to be quiet. It was ``asked`` to start, and ``served``, at those nanoseconds
    of CLOCK_MONOTONIC; the same twice if there is no driver yet that wants it to."""

    name: str
    generation: int
    microseconds: int
    asked: int
    served: int


@dataclass(frozen=True, slots=True)
class DeviceFailed:
    """Event: this generation is of no use, and has been killed. ``hung`` if it was too slow."""

    name: str
    generation: int
    reason: str
    hung: bool


@dataclass(frozen=True, slots=True)
class Unfit:
    """Reply: this successor cannot take over what the driver has agreed to, and why; nothing was
    tried."""

    reason: str


@dataclass(frozen=True, slots=True)
class ExitCount:
    """Exits of one kind at one address: how many, and nanoseconds spent in handling them."""

    kind: str
    address: int
    device: str
    count: int
    nanoseconds: int


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """One device as the VMM sees it, with its own counters; ``no answer`` and none if it hangs."""

    name: str
    state: str
    counters: dict[str, int]


@dataclass(frozen=True, slots=True)
class MachineStats:
    """Reply to GetMachineStats: returns of KVM_RUN, exits by kind and address, devices."""

    run_returns: int
    nanoseconds: int
    exits: tuple[ExitCount, ...]
    devices: tuple[DeviceReport, ...]


# ── the launcher to the VMM ───────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Attach:
    """First message of the launcher: it is there, and events may be sent. Reply: Done."""


@dataclass(frozen=True, slots=True)
class GetMachineStats:
    """Reply: MachineStats."""


@dataclass(frozen=True, slots=True)
class Switch:
    """Put successor ``generation`` of device ``name``, which has offered itself, into the place of
    the process that serves now. Reply: Done, or Unfit or Failed, and then that one goes on."""

    name: str
    generation: int


@dataclass(frozen=True, slots=True)
class Retire:
    """Have the process that serves device ``name`` finish what it has begun, and quit; its place
    is empty then. Reply: Done, when it has been told to, or is dead."""

    name: str


@dataclass(frozen=True, slots=True)
class PressPowerButton:
    """ACPI's fixed power button. Reply: Done."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Take every vCPU out of the guest, and hold it there. Reply: Done when all are held."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Let the vCPUs go on. Reply: Done."""


@dataclass(frozen=True, slots=True)
class StopMachine:
    """Stop the vCPUs and the devices, and reply with the last MachineStats."""


FROM_DEVICE = (Hello, Sealed, Done, Failed, DeviceStats, ConfigChanged, NeedsReset, Quiesced)
TO_DEVICE = (Welcome, Refused, Start, Stop, Quiesce, StopQueue, WriteConfig, GetStats, Ping, Quit)
FROM_VMM = (
    MachineReady,
    Rebooted,
    Ended,
    DeviceBound,
    DeviceOffers,
    DeviceAttached,
    DeviceFailed,
    MachineStats,
    Done,
    Unfit,
    Failed,
)
TO_VMM = (
    Attach,
    GetMachineStats,
    Switch,
    Retire,
    PressPowerButton,
    Pause,
    Resume,
    StopMachine,
)
