"""Mediation: a device process works on a shadow ring, and never on the guest's own.

A software CPU drops the guest's memory barriers, so nobody may work on a ring while the guest
runs; and it translates guest code, so that somebody has to say which memory a device wrote. The
:class:`Mediator` of a virtqueue does both. It is the device on the guest's ring and the driver
on a second ring, in memory that only the VMM and the device map::

    guest's ring ──► Mediator.kick ──────► shadow ring ──► device process
         ▲                                      │
         └── Mediator.complete ◄── hook ◄───────┘

Payload stays in guest memory, and descriptors of the shadow ring hold the guest's own addresses.
Or, with an :class:`Arena`, it is copied, and the device needs no guest memory at all: a chain is
one readable and one writable buffer of the arena. Either way there are no indirect tables; neither
INDIRECT_DESC nor EVENT_IDX is to be offered to the device. A device that cannot take a kick now
may say so in its ring, but that is only advice, and the mediator does not ask (2.7.10).

**Size of the shadow ring.** A chain has no more segments than the guest's queue has entries,
for the ring engine refuses longer ones, through an indirect table too: seg_max + 2 of Linux's
virtio-blk are just that many. A shadow ring of the guest's size therefore takes every chain,
and one that finds too few descriptors free, or no gap in the arena that is large enough, waits for
some of those before it. One that is larger than the arena is refused like a malformed one. A larger
ring, up to what the device accepts, only lets more chains of many segments be in flight at once.

**What is stale.** Without an arena the hook is told of every writable buffer of a chain, whole,
whatever length the device reported, before the guest can see that it is used; and at the end of
what was still in flight. A hostile device that maps all of the guest's memory can write where it
was not asked to, or later, and no mediator notices. With one it is told of what was copied: as many
bytes as the device reported, at the start of the writable part.

One thread at a time makes calls: that which runs the guest, between two runs, or, where the guest's
memory is coherent, that of a :class:`vmm.mediation.pump.Pump`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from protocol.errors import VibeError
from protocol.memory import GuestMemory
from protocol.messages import QueueSetup
from protocol.ring import Counters, RingBroken, RingError
from vmm.mediation._mediator import ffi, lib

if TYPE_CHECKING:
    from types import TracebackType

__all__ = [
    "Arena",
    "Hook",
    "Mediator",
    "MediatorBroken",
    "MediatorError",
    "NativeHook",
    "Outcome",
    "ShadowMemory",
    "largest_chain",
    "lay_out",
    "shadow_size",
]

# The table of 2.7: a descriptor, an avail entry, a used entry; flags, idx and event of each ring.
_DESC, _AVAIL, _USED, _RING = 16, 2, 8, 6
_DESC_ALIGN, _USED_ALIGN = 16, 4


class MediatorError(IntEnum):
    """How a device broke its ring. mediator.h says what each means."""

    USED_JUMP = lib.MEDIATOR_USED_JUMP
    ID_OUT_OF_RANGE = lib.MEDIATOR_ID_OUT_OF_RANGE
    ID_NOT_IN_FLIGHT = lib.MEDIATOR_ID_NOT_IN_FLIGHT
    TOO_MUCH_WRITTEN = lib.MEDIATOR_TOO_MUCH_WRITTEN


class MediatorBroken(VibeError):
    """The device broke the shadow ring; ``reason`` says how. It costs the device, not the VM."""

    def __init__(self, reason: MediatorError) -> None:
        super().__init__(f"virtqueue broken by its device: {reason.name}")
        self.reason = reason


class Outcome(NamedTuple):
    """What the caller owes to both sides: a kick to the device, an interrupt to the guest."""

    ring_device: bool
    interrupt_guest: bool


class NativeHook(NamedTuple):
    """Addresses of a C function ``void (*)(void *context, uint64_t gpa, uint64_t length)`` and of
    its context. Both must outlive the mediator; the function must not call the mediator."""

    function: int
    context: int


Hook = NativeHook | Callable[[int, int], None]
"""Told of ``length`` bytes at ``gpa`` that the device may have written."""


class Arena(NamedTuple):
    """Bounce memory of one queue: ``size`` bytes at ``gpa``, a multiple of 64, which lie in the
    shadow memory."""

    gpa: int
    size: int


class ShadowMemory(NamedTuple):
    """Writable memory that the device maps too: ``view`` begins at address ``gpa``, of which the
    guest knows nothing."""

    gpa: int
    view: memoryview


def shadow_size(queue_size: int) -> int:
    """Bytes that a shadow ring of ``queue_size`` descriptors takes."""
    layout = lay_out(0, queue_size)
    return layout.used + _RING + _USED * queue_size


def largest_chain(arena_size: int) -> int:
    """The most bytes that a chain may have to fit an arena of ``arena_size``, however they are
    divided into what is readable and what is writable."""
    return int(lib.mediator_largest_chain(arena_size))


def lay_out(base_gpa: int, queue_size: int, index: int = 0) -> QueueSetup:
    """The parts of shadow ring ``index``, of ``queue_size`` descriptors, from ``base_gpa`` on;
    ValueError if that is not a multiple of 16, as 2.7 wants it."""
    if base_gpa % _DESC_ALIGN:
        raise ValueError(f"a descriptor table cannot begin at {base_gpa:#x}")
    avail = base_gpa + _DESC * queue_size
    end = avail + _RING + _AVAIL * queue_size
    used = (end + _USED_ALIGN - 1) // _USED_ALIGN * _USED_ALIGN
    return QueueSetup(index, queue_size, base_gpa, avail, used)


class _PythonHook:
    # What the callable raises cannot pass through C; it is kept until C has returned.

    def __init__(self, function: Callable[[int, int], None]) -> None:
        self._function = function
        self._raised: BaseException | None = None

    def __call__(self, gpa: int, length: int) -> None:
        try:
            self._function(gpa, length)
        except BaseException as error:
            self._raised = self._raised or error

    def check(self) -> None:
        raised, self._raised = self._raised, None
        if raised is not None:
            raise raised


@ffi.def_extern()  # type: ignore[untyped-decorator]
def mediator_call_python(context: Any, gpa: int, length: int) -> None:
    """The C function of a hook in Python; not for callers in Python."""
    ffi.from_handle(context)(gpa, length)


class Mediator:
    """Stands between the ring of a guest, ``guest``, and that of a device, ``shadow``.

    ``event_idx`` and ``indirect`` are what the guest's driver negotiated. With an ``arena`` the
    device sees copies; the ``hook``, if there is one, is told what it wrote. The shadow ring, which
    lies in ``shadow_memory``, is cleared: hand it to a device afterwards, and then call
    :meth:`kick` once, for what the guest made available before. RingBroken if the guest misplaced
    its ring; ValueError if shadow ring or arena is misplaced, or the ring smaller than the guest's.
    """

    def __init__(
        self,
        memory: GuestMemory,
        guest: QueueSetup,
        shadow: QueueSetup,
        shadow_memory: ShadowMemory,
        *,
        hook: Hook | None,
        arena: Arena | None = None,
        event_idx: bool,
        indirect: bool,
    ) -> None:
        self._mediator: Any = None
        self._python_hook: _PythonHook | None = None
        if hook is None:
            function = context = ffi.NULL
        elif isinstance(hook, NativeHook):
            function = ffi.cast("mediator_hook *", hook.function)
            context = ffi.cast("void *", hook.context)
        else:
            self._python_hook = _PythonHook(hook)
            self._handle = ffi.new_handle(self._python_hook)
            function, context = lib.mediator_call_python, self._handle
        self._mappings = [ffi.from_buffer(memory.whole, require_writable=True)]
        try:
            self._mappings.append(ffi.from_buffer(shadow_memory.view, require_writable=True))
            whole, window = self._mappings
            regions = [(r.gpa, r.size, whole + r.offset) for r in memory.regions]
            config = {
                "guest": _ring_config(guest, event_idx=event_idx, indirect=indirect),
                "shadow": _ring_config(shadow, event_idx=False, indirect=False),
                "shadow_memory": (shadow_memory.gpa, len(window), window),
                "arena": arena.gpa if arena else 0,
                "arena_size": arena.size if arena else 0,
                "hook": function,
                "context": context,
            }
            self._mediator = _new(config, regions)
        except BaseException:
            self._let_go()
            raise

    def kick(self) -> Outcome:
        """Move what the guest made available to the shadow ring, as far as descriptors last.

        A malformed chain is completed at once, with length 0. RingBroken if the guest broke its
        ring: chains before the fault are moved, so ring the device all the same, and interrupt
        the guest, which is due with DEVICE_NEEDS_RESET anyway. MediatorBroken as in
        :meth:`complete`, and then nothing is moved.
        """
        return self._report(lib.mediator_kick(self._alive()))

    def complete(self) -> Outcome:
        """Publish to the guest what the device used, after calling the hook for it.

        Chains that waited for descriptors follow; RingBroken if the guest's ring turns out to be
        broken behind them, as in :meth:`kick`. MediatorBroken if the device broke the shadow
        ring: nothing that came with the fault is published, and all calls from then on say so.
        """
        return self._report(lib.mediator_complete(self._alive()))

    def restore(self) -> None:
        """Write all that the device is told once more, for a successor: the one before is dead, or
        quiet, and may have left anything there. What it has to do stands in the avail ring from
        used.idx on. What the one before used is published by the next :meth:`complete`."""
        lib.mediator_restore(self._alive())

    @property
    def native(self) -> Any:
        """The ``struct mediator *``, for as long as this is not closed."""
        return self._alive()

    @property
    def too_large(self) -> int:
        """Chains that were refused because no arena of this size would hold them."""
        return int(lib.mediator_too_large(self._alive()))

    @property
    def in_flight(self) -> int:
        """Chains that the guest waits for: with the device, or waiting."""
        return int(lib.mediator_in_flight(self._alive()))

    @property
    def counters(self) -> Counters:
        """Of the guest's ring; its ``errors`` are chains that the device never saw."""
        totals = lib.mediator_counters(self._alive())
        return Counters(totals.chains, totals.batches, totals.errors)

    def close(self) -> None:
        """Call the hook for whatever the device still has, and let go of all memory. The device
        must be quiet, or dead."""
        if self._mediator is None:
            return
        mediator, self._mediator = self._mediator, None
        lib.mediator_free(mediator)
        self._let_go()
        if self._python_hook is not None:
            self._python_hook.check()

    def _alive(self) -> Any:
        if self._mediator is None:
            raise ValueError("the mediator is closed")
        return self._mediator

    def _report(self, outcome: Any) -> Outcome:
        if self._python_hook is not None:
            self._python_hook.check()
        if outcome.device:
            raise MediatorBroken(MediatorError(outcome.device))
        if outcome.guest:
            raise RingBroken(RingError(outcome.guest))
        return Outcome(outcome.ring_device, outcome.interrupt_guest)

    def _let_go(self) -> None:
        for mapping in self._mappings:
            ffi.release(mapping)
        self._mappings.clear()

    def __enter__(self) -> Mediator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _ring_config(setup: QueueSetup, *, event_idx: bool, indirect: bool) -> tuple[Any, ...]:
    return (setup.desc, setup.avail, setup.used, setup.size, event_idx, indirect)


def _new(config: dict[str, Any], regions: list[tuple[Any, ...]]) -> Any:
    outcome = ffi.new("struct mediator_outcome *")
    mediator = lib.mediator_new(
        ffi.new("struct mediator_config *", config),
        ffi.new("struct ring_region[]", regions),
        len(regions),
        outcome,
    )
    if mediator:
        return mediator
    if outcome.device == lib.MEDIATOR_SHADOW_MISPLACED:
        raise ValueError("shadow ring or arena is misplaced, or the ring smaller than the guest's")
    if outcome.guest and outcome.guest != lib.RING_NO_MEMORY:
        raise RingBroken(RingError(outcome.guest))
    raise MemoryError("no memory for a mediator")
