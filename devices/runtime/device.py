"""What a device is: its identity, its options, its queues and its logic; the runtime is the rest.

A device is a class in a file of its own. ``open`` runs before there is a device, with the user's
rights, and returns descriptors; an instance lives in the device's own process, behind the seal, and
has those descriptors and guest memory, nothing else.
"""

from __future__ import annotations

import typing
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from protocol.ring import Chain
from protocol.virtio import MAX_QUEUE_SIZE, DeviceId

if TYPE_CHECKING:
    from devices.lanes import Build, Lane
    from devices.runtime.limits import Limit

C = TypeVar("C")
H = TypeVar("H", bound=Callable[..., int | None])


class Host(Protocol):
    """What the launcher does for ``Device.open``, wherever that runs; made for one device."""

    def stream(self, backend: str, path: str = "") -> dict[str, int]:
        """A stream (:mod:`protocol.stream`) to the launcher, which moves its bytes: to its
        ``terminal``, a new ``pty``, or who connects to the ``socket`` that it makes at ``path``.
        Its descriptors are ``stream``, the file, and ``wake``; the caller's to close. BadInput."""

    def network(self, kind: str, where: str, mtu: int) -> dict[str, int]:
        """What a network interface is connected to: ``packets``, a descriptor that does not block
        and of which each read and each write is a packet; its ``link`` (protocol.link), and
        ``wake``, by which that is told of. All the caller's to close, and the same for each who
        asks. BadInput.

        ``kind`` is ``tap``, called ``where``, with virtio's header before each packet; ``user``,
        the host's network, with the ports in ``where`` forwarded; or ``join``, the folder of an
        Ethernet. What is made for it takes packets of ``mtu`` bytes, unless that is 0."""

    def lock(self, fd: int, *, shared: bool, name: str = "") -> bool:
        """Lock the file ``fd`` (flock(2)) until the machine ends, or this device is replaced by
        one that does not; False if somebody else has it. The lock is the launcher's: a successor
        of this device that wants the same file finds it locked for itself.

        A file that ``open`` has made without a name (O_TMPFILE) gets ``name``, an absolute path,
        once the device is to serve; if it never does, nothing is left of it."""


class Runtime(Protocol):
    """What the runtime does for a device; see the methods of the same names in :class:`Device`."""

    largest_chain: int

    def watch(self, fd: int, callback: Callable[[], None]) -> None: ...

    def unwatch(self, fd: int) -> None: ...

    def soon(self, callback: Callable[[], None]) -> None: ...

    def complete(self, index: int, chain: Chain, written: int) -> None: ...

    def oldest(self, index: int) -> Chain | None: ...

    def kept(self, index: int) -> Iterator[Chain]: ...

    def position(self, index: int) -> int: ...

    def advance(self, index: int, count: int) -> None: ...

    def config_changed(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Jail:
    """What a device may do beyond the common set: system calls, by the kernel's names, and ioctl(2)
    with these request numbers. One of those must not make the kernel send signals, nor give out
    descriptors. It may come to have so many more ``descriptors``, if a system call makes some."""

    syscalls: frozenset[str] = frozenset()
    ioctls: frozenset[int] = frozenset()
    descriptors: int = 0


@dataclass(frozen=True, slots=True)
class QueueDeclaration:
    """Virtqueue ``index`` of a device: the most entries it may have, its handler's name, whether it
    owes progress, and the bytes of verdict at the end of each answer. Of several with the same
    handler this is queue ``number``, from 1."""

    index: int
    size: int
    handler: str
    owes: bool = True
    verdict: int = 0
    number: int | None = None

    @property
    def name(self) -> str:
        """What it is called, as the specification calls it."""
        return self.handler if self.number is None else f"{self.handler}{self.number}"

    def times(self, count: int) -> tuple[QueueDeclaration, ...]:
        """So many like this one, the last queue of its device."""
        if count == 1:
            return (self,)
        return tuple(replace(self, index=self.index + n, number=n + 1) for n in range(count))


@dataclass(frozen=True, slots=True)
class Offer:
    """What a process of a device shows a driver: its type's own feature bits, and its
    configuration space."""

    features: int
    config: bytes


def virtqueue(index: int, *, size: int, owes: bool = True, verdict: int = 0) -> Callable[[H], H]:
    """Make a method the handler of queue ``index``, which has up to ``size`` entries.

    A queue that ``owes`` progress answers each chain without anything else having to happen; one
    that holds work and answers none is taken for hung. A queue for input owes nothing.

    Where the last ``verdict`` bytes that the driver lends are no data, but say how it went, an
    answer has a place for each byte; else it may be shorter than the room for it.

    It is called once a chain and returns the number of bytes that it wrote, or None to keep the
    chain in flight; then the device completes it later. Chains that the driver got wrong never
    arrive. An exception is the device's mistake and ends the process; a guest must not be able
    to cause one.
    """
    if not 0 < size <= MAX_QUEUE_SIZE or size & (size - 1):
        raise ValueError(f"a split virtqueue has no {size} entries (virtio 1.2, section 2.7)")

    def mark(handler: H) -> H:
        handler.__dict__["virtqueue"] = partial(
            QueueDeclaration, index, size, owes=owes, verdict=verdict
        )
        return handler

    return mark


class Device(Generic[C]):
    """One virtio device. ``C`` is the dataclass of its options, the keys of ``--device``.

    ``counters`` are the device's own statistics, by name.
    """

    device_id: ClassVar[DeviceId]
    label: ClassVar[str] = ""
    """What devices of it are called, before their number; empty: as their kind."""
    jail: ClassVar[Jail] = Jail()
    connects: ClassVar[bool] = False
    """Its descriptors are one process's: they lead to a program that does the work, and the next
    process has to be connected anew (:meth:`reconnect`)."""
    lanes: ClassVar[Build | None] = None
    """The build of C that serves queues of it (:meth:`lane`); None: Python serves them all."""
    config_type: ClassVar[type]
    queues: ClassVar[tuple[QueueDeclaration, ...]]

    def __init_subclass__(cls) -> None:
        # A device made from another has its options and its queues, unless it has its own. What
        # it does otherwise, the other's lane would not: it has none, unless it says so.
        cls.lanes = cls.__dict__.get("lanes")
        for base in cls.__dict__.get("__orig_bases__", ()):
            (cls.config_type,) = typing.get_args(base)
        if isinstance(getattr(cls, "config_type", None), TypeVar):
            return  # a base of several, none of which it is
        if not is_dataclass(cls.config_type):
            raise TypeError(f"{cls.__name__}: Device[…] wants a dataclass of options")
        found = [
            method.virtqueue(name)
            for name in dir(cls)
            if hasattr(method := getattr(cls, name), "virtqueue")
        ]
        cls.queues = tuple(sorted(found, key=lambda queue: queue.index))
        if [queue.index for queue in cls.queues] != list(range(len(cls.queues))):
            raise TypeError(f"{cls.__name__}: queues are numbered from 0 without a gap")

    @classmethod
    def open(cls, config: C, host: Host) -> dict[str, int]:
        """Open, check and lock what ``config`` names; descriptors by name, owned by the caller.

        Runs in the launcher, or in a process that it has forked for that. BadInput when it cannot
        be had; its ``where`` is the key at fault (``path``), before which the option is put.
        """
        return {}

    @classmethod
    def reconnect(cls, config: C) -> dict[str, int]:
        """The same for a further process, of one that ``connects``. Runs in the launcher, which
        does nothing else meanwhile: so it waits for nobody, and says of nobody that it is there."""
        return {}

    @classmethod
    def fitting(cls, config: C) -> type[Device[C]]:
        """The class of a device with that ``config``, where its type depends on it; otherwise this
        one."""
        return cls

    @classmethod
    def journals(cls, config: C) -> bool:
        """Whether one with ``config`` keeps a journal of what is in flight. For one that does not,
        mediators do."""
        return True

    @classmethod
    def makes_urings(cls, config: C) -> bool:
        """Whether one with ``config`` makes io_urings, before its seal: only who says so can."""
        return False

    @classmethod
    def virtqueues(cls, config: C) -> tuple[QueueDeclaration, ...]:
        """The queues of one with ``config``: each that is declared, unless a device says otherwise
        (QueueDeclaration.times)."""
        return cls.queues

    def __init__(self, config: C, fds: Mapping[str, int], runtime: Runtime) -> None:
        self.config = config
        self.fds = fds
        self.counters: Counter[str] = Counter()
        self._runtime = runtime

    @property
    def features(self) -> int:
        """The device type's own feature bits; the runtime adds those of the ring."""
        return 0

    def config_space(self) -> bytes:
        """The device configuration space as it is now."""
        return b""

    def write_config(self, offset: int, data: bytes) -> None:
        """The driver wrote ``data``, anywhere and of any length; ignored unless overridden. To a
        successor it is written once more, before :meth:`start`."""

    def start(self, features: int) -> None:
        """The driver is ready and agreed to ``features``; chains follow."""

    def stop(self) -> None:
        """The driver took the device back: no chains any more, none kept, nothing watched."""

    def reset(self) -> None:
        """The driver has reset the device: what it wrote into the configuration counts no more."""

    def save(self) -> bytes:
        """What a successor has to know that is neither in its descriptors nor in the journal; it
        begins with a version. Called before :meth:`stop`. Most devices have none."""
        return b""

    def restore(self, state: bytes) -> None:
        """Go on with what a predecessor saved, of this class or another; before :meth:`start`.
        ValueError if nothing can be made of it: then the predecessor goes on."""
        raise ValueError("this device takes no state over")

    def lane(self, index: int, build: Build) -> Lane | None:
        """A lane of ``build`` for queue ``index``; None: Python serves it. Asked once a queue,
        where there are ``lanes``; all but the first may be served by threads of their own."""
        return None

    def limit(self, index: int) -> Limit | None:
        """What queue ``index`` may do in a second, alone or with others that have the same; None:
        what it can. Asked once a queue."""
        return None

    def fail(self, index: int, chain: Chain) -> int | None:
        """Instead of the handler of queue ``index``, where ``on-death=fail-io`` has come true:
        answer ``chain`` with an error. Nothing is written, unless a device says otherwise."""
        return 0

    @classmethod
    def why_unfit(cls, ours: Offer, theirs: Offer) -> str | None:
        """Why a successor that offers ``theirs`` cannot take over from this device, which offers
        ``ours``, while the driver goes on; None if it can. That features which the driver has
        negotiated are among them is seen to elsewhere."""
        return None

    def initial_position(self, index: int) -> int:
        """Where in its stream queue ``index`` begins, for a driver whose device starts afresh."""
        return 0

    def published(self, index: int, position: int) -> None:
        """Queue ``index`` has published every chain before ``position`` of its stream: what they
        took is the driver's, and nobody asks for it again. Called when that has moved, and once
        after ``start``: a predecessor may have died between publishing and this."""

    # What a device calls, in its own process.

    @property
    def largest_chain(self) -> int:
        """A chain of more bytes does not reach this device, which works on copies; 0: any does.
        Of a device whose requests may be larger, the driver has to be told."""
        return self._runtime.largest_chain

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` when something came to ``fd``, which does not block: once now, if
        something is there, and then at every edge, so read until it would block. Ends with
        ``stop``."""
        self._runtime.watch(fd, callback)

    def unwatch(self, fd: int) -> None:
        """Watch ``fd`` no more; before it is closed."""
        self._runtime.unwatch(fd)

    def soon(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once, after the handlers of this turn of the loop."""
        self._runtime.soon(callback)

    def complete(self, index: int, chain: Chain, written: int) -> None:
        """Give back a chain that the handler of queue ``index`` kept. One that is not in flight
        any more, because the driver reset the device, is left alone."""
        self._runtime.complete(index, chain, written)

    def oldest(self, index: int) -> Chain | None:
        """The chain that queue ``index`` has kept the longest."""
        return self._runtime.oldest(index)

    def kept(self, index: int) -> Iterator[Chain]:
        """All that it has kept, oldest first; while none of them is completed."""
        return self._runtime.kept(index)

    def position(self, index: int) -> int:
        """Where the stream of queue ``index`` stands behind the chains completed so far. It
        outlives this process, in step with what is published."""
        return self._runtime.position(index)

    def advance(self, index: int, count: int) -> None:
        """Move that by ``count``, for the chain that is completed next; the two are published
        together, or neither."""
        self._runtime.advance(index, count)

    def config_changed(self) -> None:
        """Tell the driver that ``config_space`` has changed."""
        self._runtime.config_changed()


AnyDevice = Device[Any]
"""A device of whatever options."""
