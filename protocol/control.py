"""What clients and a running machine say to each other: the wire reference of that conversation.

A client (``vibevmm ps``, ``launcher.api``) connects a DEALER socket to the machine's ROUTER, at
``control`` in its run directory. A frame is that of protocol.messages::

    [name, sequence, CONTROL_VERSION, {field: value, …}]

A request has a sequence number above 0 and gets exactly one reply with the same number, maybe
much later; :class:`Event` and :class:`Lost` have sequence 0. The third number stays where it is
in all versions, so that whoever speaks another one can be told.

Times are in nanoseconds, sizes in bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from protocol import codec
from protocol.errors import ProtocolError
from protocol.messages import MachineStats
from protocol.specs import Level, Part

CONTROL_VERSION = 3
"""Of this file: raised whenever a message changes its meaning or fields."""

EventKind = Literal[
    "started",
    "ready",
    "rebooted",
    "died",
    "hung",
    "failed",
    "recovered",
    "swapped",
    "paused",
    "resumed",
    "ended",
]
"""What can happen to a machine, or to one of its processes."""

MachineState = Literal["starting", "running", "paused", "ending"]

ProcessState = Literal["running", "by hand", "hung", "dead"]


# ── a client to the machine ───────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Describe:
    """What is this machine, and how are its processes? Reply: Description."""


@dataclass(frozen=True, slots=True)
class Measure:
    """Reply: messages.MachineStats. Asks every device."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Take every vCPU out of the guest and hold it. Reply: Done, also if it was paused."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Let the vCPUs go on. Reply: Done, also if it was not paused."""


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Press the power button, and stop the machine by force if it has not ended ``timeout``
    nanoseconds later; or at once, with ``force``. Reply, when it has ended: Stopped."""

    force: bool
    timeout: int


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL to the process of ``device``. Reply: Killed."""

    device: str


@dataclass(frozen=True, slots=True)
class Restart:
    """Put a fresh process of the same device in the place of the one that serves ``device``, or
    that did. Reply: Serving."""

    device: str


@dataclass(frozen=True, slots=True)
class Swap:
    """Put another implementation in the place of what serves ``device``: a kind, or
    ``MODULE[:CLASS]``; or, if that is empty, the same one. ``settings`` are its options, written
    as after ``--device KIND,``; what they leave out is as it is now, where the new one knows it.
    Reply: Serving, or Failed, and then what served goes on."""

    device: str
    implementation: str
    settings: str


@dataclass(frozen=True, slots=True)
class Inject:
    """Arm ``fault`` for ``device``, at ``point`` or, if that is empty, at its usual one:
    protocol.faults has their table, and the meaning of the rest. It is over ``lasts`` nanoseconds
    from now, unless that is 0; ``delay`` is in nanoseconds; without a ``seed`` one is drawn. The
    fault ``none`` takes back what is armed, and an empty one changes nothing. Reply: Armed."""

    device: str
    fault: str
    point: str
    after: int
    every: int
    lasts: int
    seed: int | None
    delay: int


@dataclass(frozen=True, slots=True)
class SetLink:
    """The link of ``device``, a network interface, is up, or down. Reply: Done."""

    device: str
    up: bool


@dataclass(frozen=True, slots=True)
class Enlist:
    """This process could be ``device``: it has one of type ``device_id``. Reply: Enlisted, or
    Failed if it could not."""

    device: str
    device_id: int


@dataclass(frozen=True, slots=True)
class Attach:
    """I want to join ``stream``. Reply: Attached."""

    stream: str


@dataclass(frozen=True, slots=True)
class Follow:
    """The events kept so far, oldest first, then the reply: Done. With ``follow``, from then on
    also those to come."""

    follow: bool


# ── the machine to a client ───────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Process:
    """One process: a device, or the VMM (``kind`` "vmm"). ``generation`` counts the processes
    that this device has had, ``uptime`` that of the one that is there. A device is held by
    ``isolation``, a level; the VMM by none that has a name. ``lacks`` are the parts of the jail
    that it goes without."""

    name: str
    kind: str
    pid: int
    state: ProcessState
    generation: int
    uptime: int
    isolation: Level | None = None
    lacks: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class Description:
    """Reply to Describe. ``pid`` is the launcher's; ``streams`` can be attached to."""

    name: str
    state: MachineState
    pid: int
    uptime: int
    hypervisor: str
    architecture: str
    cpus: int
    memory: int
    processes: tuple[Process, ...]
    streams: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """Reply: the request was carried out."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """Reply to Shutdown: the machine ended with ``reason``, a word of messages.Ended or of the
    launcher's. ``forced`` says why it had to be by force; empty if it had not."""

    reason: str
    forced: str


@dataclass(frozen=True, slots=True)
class Killed:
    """Reply to Kill: which process it was, and the other devices that it served."""

    pid: int
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Serving:
    """Reply to Restart and Swap: the process that serves now, and for how many nanoseconds none
    did."""

    generation: int
    pid: int
    took: int


@dataclass(frozen=True, slots=True)
class ArmedFault:
    """A fault that is armed, or was: ``point`` has been passed ``passes`` times, of which it has
    struck ``strikes`` times. It is over in ``left`` nanoseconds; None: that has no limit."""

    fault: str
    point: str
    after: int
    every: int
    left: int | None
    seed: int
    delay: int
    passes: int
    strikes: int


@dataclass(frozen=True, slots=True)
class Armed:
    """Reply to Inject: all faults of this device, as of now."""

    faults: tuple[ArmedFault, ...]


@dataclass(frozen=True, slots=True)
class Enlisted:
    """Reply to Enlist: a Unix socket at ``path``, of packets, takes a process that wants to be the
    device (specs.Volunteer). There is room for ``queues`` of these sizes; ``settings`` are the
    options that the device has now."""

    path: str
    queues: tuple[int, ...]
    settings: dict[str, str]


@dataclass(frozen=True, slots=True)
class Attached:
    """Reply to Attach: a Unix stream socket at ``path`` takes the client. What the guest writes
    comes from there, and what is sent there is typed to it."""

    path: str


@dataclass(frozen=True, slots=True)
class Failed:
    """Reply: the request was not carried out; ``status`` is the exit status that this means."""

    status: int
    reason: str


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened: the ``number``-th since the machine's start, at ``wall`` (since 1970)
    and ``monotonic`` (of this host's CLOCK_MONOTONIC).

    ``device`` is the process that it happened to, with its ``generation`` and ``pid``; empty, 0
    and 0 if it happened to the machine. ``took`` is how long, where that is known. ``steps`` are
    those of a successor that serves now, in their order, each with how long it took; see
    launcher.supervisor.
    """

    number: int
    kind: EventKind
    device: str
    generation: int
    pid: int
    wall: int
    monotonic: int
    took: int | None
    steps: dict[str, int]
    detail: str


@dataclass(frozen=True, slots=True)
class Lost:
    """``count`` events were not sent, because this client did not read."""

    count: int


TO_LAUNCHER = (
    Describe,
    Measure,
    Pause,
    Resume,
    Shutdown,
    Kill,
    Restart,
    Swap,
    Inject,
    SetLink,
    Enlist,
    Attach,
    Follow,
)
FROM_LAUNCHER = (
    Description,
    MachineStats,
    Done,
    Stopped,
    Killed,
    Serving,
    Armed,
    Enlisted,
    Attached,
    Failed,
    Event,
    Lost,
)


class BadMessage(ProtocolError):
    """A frame that is none of ours; ``sequence`` is its number if it has one, or 0."""

    def __init__(self, why: str, sequence: int = 0) -> None:
        super().__init__(why)
        self.sequence = sequence


def encode(message: object, sequence: int = 0) -> bytes:
    """The frame for ``message``."""
    return codec.encode(message, sequence, CONTROL_VERSION)


def decode(frame: bytes, allowed: Iterable[type]) -> codec.Envelope:
    """The message in ``frame``, one of ``allowed``; BadMessage for anything else."""
    sequence = 0
    try:
        _, sequence, version, _ = codec.parts(frame)
        if version != CONTROL_VERSION:
            raise ProtocolError(
                f"control version {version} there, {CONTROL_VERSION} here: "
                "use the vibevmm that the machine was started with"
            )
        return codec.decode(frame, allowed)
    except ProtocolError as error:
        raise BadMessage(str(error), sequence) from None
