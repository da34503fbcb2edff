"""A class of devices with its options, as plain data: that is all that the launcher keeps of it.

What is done with the class itself stands here. For one of ours it is called where it is wanted; for
one that somebody else wrote, in a process of its own (launcher.scout).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from devices import kinds
from devices.runtime.device import AnyDevice, Device, Host, Offer, QueueDeclaration
from launcher import device_options
from launcher.device_options import Request
from launcher.policy import OnDeath
from protocol import codec, fds
from protocol.errors import BadInput
from protocol.specs import Isolation, OnViolation

# What a machine (launcher.wiring, launcher.session), or launcher.vhost_user, hands over as well.
_RUNTIMES = re.compile(r"memory|journal|alive|call|kick[0-9]+|faults|trace|front-end|written")


@dataclass(frozen=True, slots=True)
class Place:
    """Of a device that runs: what the machine was built for. The guest has seen its ``device_id``,
    and the journal is laid out by the sizes of its ``queues``. Its ``settings`` another in this
    place takes over. Where it is not ``mediated``, a device has to keep a journal."""

    name: str
    device_id: int
    queues: tuple[int, ...]
    settings: dict[str, str]
    mediated: bool = False

    def why_not(self, device_id: int, *, journals: bool = True) -> str | None:
        """Why a device of type ``device_id``, which ``journals`` or does not, is none that could
        take this place; None if it is."""
        if device_id != self.device_id:
            return f"a device of type {device_id}, not {self.device_id}"
        if not journals and not self.mediated:
            return (
                f"it keeps no journal, and no mediator stands before {self.name} that could: "
                "start it with isolation=bounce"
            )
        return None

    def why_too_small(self, queues: Sequence[QueueDeclaration]) -> str | None:
        """Why one with ``queues`` could not take it; None if it could."""
        if len(self.queues) != len(queues):
            return f"it has {len(queues)} queues, and {self.name} has {len(self.queues)}"
        for queue, size in zip(queues, self.queues, strict=True):
            if queue.size > size:
                return f"queue {queue.index} has {queue.size} entries, and there is room for {size}"
        return None


@dataclass(frozen=True, slots=True)
class Model:
    """``implementation`` is the class as --impl names it, ``label`` what its devices are called,
    before their number. ``connects`` and ``journals`` are the class's own. ``judge`` is the kind
    whose ``why_unfit`` it has; empty: nobody's. ``config`` are its options (msgpack), ``settings``
    the same as texts, ``shown`` for people. The last five are what the request said
    (device_options.Common)."""

    implementation: str
    label: str
    device_id: int
    queues: tuple[QueueDeclaration, ...]
    connects: bool
    journals: bool
    judge: str
    config: bytes
    settings: dict[str, str]
    shown: str
    name: str | None
    on_death: str
    isolation: Isolation | None
    on_violation: OnViolation
    process: str | None

    @property
    def sizes(self) -> tuple[int, ...]:
        """The most entries of each queue."""
        return tuple(queue.size for queue in self.queues)


def look(request: Request, option: str, place: Place | None = None) -> Model:
    """What ``request`` asks for, in the ``place`` of another maybe. BadInput if it is no device (of
    ``option``), none that could take the place, or its options are wrong."""
    named = kinds.find(request.kind, option, is_bare=place is not None)
    if place is None:
        common, config = device_options.configure(request, named.config_type)
    else:
        common = device_options.Common()
        config = device_options.changed(request, named.config_type, place.settings)
    found = named.fitting(config)
    journals, queues = found.journals(config), found.virtqueues(config)
    if found.connects:
        _check_common(request, common)
    if place is not None:
        why = place.why_not(int(found.device_id), journals=journals) or place.why_too_small(queues)
        if why is not None:
            raise BadInput(option, f"{request.kind}: {why}")
    return Model(
        f"{named.__module__}:{named.__qualname__}",
        found.label or kinds.label(request.kind, found),
        int(found.device_id),
        queues,
        found.connects,
        journals,
        _judge(found),
        codec.pack(codec.to_plain(config)),
        device_options.settings(config),
        str(config),
        common.name,
        common.on_death.value,
        common.isolation,
        common.on_violation,
        common.process,
    )


def open_files(kind: str, config: bytes, option: str, host: Host) -> dict[str, int]:
    """What a device of ``kind`` opens, set to ``config`` (of a Model); BadInput, of ``option``."""
    found = kinds.find(kind, option, is_bare=True)
    options: Any = codec.from_plain(found.config_type, codec.unpack(config))
    try:
        return opened(found, options, host)
    except BadInput as error:
        raise BadInput(f"{option}: {error.where}", error.why) from error


def reconnect(kind: str, config: bytes, option: str) -> dict[str, int]:
    """The same for a further process, of one that ``connects``; now, or BadInput."""
    found = kinds.find(kind, option, is_bare=True)
    try:
        return _named(found.reconnect(codec.from_plain(found.config_type, codec.unpack(config))))
    except BadInput as error:
        raise BadInput(f"{option}: {error.where}", error.why) from error


def opened(device: type[AnyDevice], config: Any, host: Host) -> dict[str, int]:
    """What ``device`` opens, set to ``config``; BadInput if it has a name that the runtime's own
    descriptors have, in whose place it would come."""
    return _named(device.open(config, host))


def _named(files: dict[str, int]) -> dict[str, int]:
    if taken := sorted(name for name in files if _RUNTIMES.fullmatch(name)):
        fds.close_all(files.values())
        raise BadInput("open", f"{', '.join(taken)}: the runtime has a descriptor of that name")
    return files


def _check_common(request: Request, common: device_options.Common) -> None:
    # What only a process can do that carries out the work itself, and waits for nobody.
    if common.on_death is OnDeath.FAIL_IO:
        why = "fail-io: what answers requests is another program"
        raise BadInput(f"{request.option}: on-death", why)
    if common.process is not None:
        why = f"{request.kind} has a process of its own: it ends with its back-end"
        raise BadInput(f"{request.option}: process", why)


def why_unfit(judge: str, ours: Offer, theirs: Offer) -> str | None:
    """What ``judge`` (of the Model that serves) says of a successor (Device.why_unfit)."""
    return kinds.find(judge, "swap", is_bare=True).why_unfit(ours, theirs)


def _judge(found: type[AnyDevice]) -> str:
    owner = next(base for base in found.__mro__ if "why_unfit" in vars(base))
    return "" if owner is Device else f"{owner.__module__}:{owner.__qualname__}"
