"""A device process whose rings are mediated, as the transport sees it.

The device is told of shadow rings, one for each queue, in memory of its own; it does without
EVENT_IDX and INDIRECT_DESC. Kicks and interrupts end here: on the vCPU's thread, where the guest is
not to run meanwhile, or on one of the device's own (vmm.mediation.pump)::

    guest's QueueNotify ──► kick ──► mediator ──► shadow ring, the device's kick eventfd
    the device's call eventfd ──► complete ──► mediator ──► guest's ring, interrupt line
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from protocol import doorbell
from protocol.errors import VibeError
from protocol.memory import GuestMemory, Region
from protocol.messages import QueueSetup
from protocol.ring import RingBroken
from protocol.virtio import Feature, bit
from vmm.mediation import (
    Arena,
    Hook,
    Mediator,
    MediatorBroken,
    ShadowMemory,
    lay_out,
    shadow_size,
)
from vmm.seat import Seat

log = logging.getLogger(__name__)

_GUESTS_ONLY = bit(Feature.EVENT_IDX) | bit(Feature.INDIRECT_DESC)


class Runner(Protocol):
    """What calls the mediators, when somebody rings."""

    def serve(self, mediators: Mapping[int, Mediator]) -> None:
        """Call these, by queue, from now on, and look at each at once; those from before are not
        touched any more when it returns."""
        ...

    def close(self) -> None:
        """Call none any more."""
        ...


class OnVcpu:
    """Calls them on the thread that runs the guest, which calls :meth:`kick` and :meth:`complete`.

    ``interrupt`` raises the guest's line, ``broken`` hears who broke a ring (MediatedDevice).
    """

    def __init__(self, interrupt: Callable[[], None], broken: Callable[[VibeError], None]) -> None:
        self._bells: Mapping[str, int] = {}
        self._interrupt = interrupt
        self._broken = broken
        self._mediators: Mapping[int, Mediator] = {}
        # Of the vCPU's thread, and of that which brings another device.
        self._turn = threading.RLock()
        self._is_halted = self._missed = False

    def serve(self, mediators: Mapping[int, Mediator]) -> None:
        """Call these (Runner.serve)."""
        with self._turn:
            self._is_halted, self._mediators = False, dict(mediators)
            for index in self._mediators:
                self.kick(index)

    def close(self) -> None:
        """Call none any more."""
        self._mediators = {}

    def halt(self) -> None:
        """Move nothing until the next :meth:`connect` or :meth:`serve`."""
        with self._turn:
            self._is_halted = True

    def connect(self, bells: Mapping[str, int]) -> None:
        """The device is who holds these doorbells, ``kick0`` … and ``call``, and has not begun.
        What came before is looked at by the next :meth:`complete`."""
        with self._turn:
            for mediator in self._mediators.values():
                mediator.restore()
            self._bells, self._is_halted, self._missed = bells, False, True

    def kick(self, index: int) -> None:
        """The guest has rung for queue ``index``."""
        with self._turn:
            if not self._is_halted:
                self._move(index, Mediator.kick)

    def complete(self) -> None:
        """The device has rung; between two blocks of the guest's code."""
        with self._turn:
            if self._is_halted:
                return
            for index in self._mediators:
                self._move(index, Mediator.complete)
                if self._missed:
                    self._move(index, Mediator.kick)
            self._missed = False

    def _move(self, index: int, step: Callable[[Mediator], tuple[bool, bool]]) -> None:
        if (mediator := self._mediators.get(index)) is None:
            return
        try:
            ring_device, interrupt_guest = step(mediator)
        except RingBroken as error:
            # What came before the fault has been moved.
            ring_device = interrupt_guest = True
            self._broken(error)
        except MediatorBroken as error:
            # What it broke stays broken under a successor: call none, until they are others.
            self._mediators = {}
            self._broken(error)
            return
        if ring_device:
            doorbell.ring(self._bells[f"kick{index}"])
        if interrupt_guest:
            self._interrupt()


class MediatedDevice:
    """``seat`` behind mediators (transport.mmio.Backend), which ``runner`` calls.

    ``shadow`` maps the device's shadow region. Where ``arenas`` says which part of it each queue
    has for copies, the device needs no other memory. ``hook`` is for mediators. A shadow ring
    outlives its device process, as a guest's does: the journal fits either.
    """

    runner: Runner

    def __init__(
        self,
        seat: Seat,
        memory: GuestMemory,
        shadow: GuestMemory,
        hook: Hook | None,
        arenas: Callable[[int], Arena] | None = None,
    ) -> None:
        self.name = seat.name
        self.device_id = seat.device_id
        self._seat = seat
        self._memory = memory
        (self._region,) = shadow.regions
        self._view = shadow.view(self._region.gpa, self._region.size)
        self._hook = hook
        self._arenas = arenas
        self._mediators: dict[int, Mediator] = {}

    # ── transport.mmio.Backend ────────────────────────────────────────────────────────

    @property
    def features(self) -> int:
        """What the device offers."""
        return self._seat.features

    @property
    def queue_sizes(self) -> Sequence[int]:
        """Of its queues, at most."""
        return self._seat.queue_sizes

    def start(self, features: int, queues: tuple[QueueSetup, ...]) -> str | None:
        """Serve ``queues``; the reason, if that cannot be."""
        shadows = shadow_setups(queues, self._region)
        try:
            for guest, shadow in zip(queues, shadows, strict=True):
                self._mediators[guest.index] = self._mediator(features, guest, shadow)
        except RingBroken as error:
            self._close()
            return str(error)
        reason = self._seat.start(features & ~_GUESTS_ONLY, shadows)
        if reason is not None:
            self._close()
            return reason
        self.runner.serve(self._mediators)
        return None

    def _mediator(self, features: int, guest: QueueSetup, shadow: QueueSetup) -> Mediator:
        return Mediator(
            self._memory,
            guest,
            shadow,
            ShadowMemory(self._region.gpa, self._view),
            hook=self._hook,
            arena=self._arenas(guest.index) if self._arenas else None,
            event_idx=bool(features & bit(Feature.EVENT_IDX)),
            indirect=bool(features & bit(Feature.INDIRECT_DESC)),
        )

    def stop(self) -> None:
        """Return when the device is quiet, or dead; what it had is forgotten."""
        self.runner.serve({})
        try:
            self._seat.stop()
        finally:
            self._close()

    def forget(self) -> None:
        """The driver has reset what it had not started."""
        self._seat.forget()

    def stop_queue(self, index: int) -> None:
        """Return when queue ``index`` is quiet, or the device dead."""
        stopped = self._mediators.pop(index, None)
        self.runner.serve(self._mediators)
        try:
            self._seat.stop_queue(index)
        finally:
            if stopped is not None:
                self._end(stopped)

    def write_config(self, offset: int, data: bytes) -> bytes:
        """Change the configuration; what it is now."""
        return self._seat.write_config(offset, data)

    # ── the data path ─────────────────────────────────────────────────────────────────

    def broken(self, error: VibeError) -> None:
        """Somebody broke a ring: the guest its own (RingBroken), or else the device."""
        if isinstance(error, RingBroken):
            self._seat.on_broken(str(error))
            return
        log.error("%s: %s", self.name, error)
        self._seat.condemn(str(error))

    def close(self) -> None:
        """Let go of all memory. The device must be quiet, or dead."""
        self.runner.close()
        self._close()
        self._view.release()

    def _close(self) -> None:
        for mediator in self._mediators.values():
            self._end(mediator)
        self._mediators.clear()

    def _end(self, mediator: Mediator) -> None:
        if mediator.too_large:
            log.warning(
                "%s: %d requests were larger than its bounce memory, and refused",
                self.name,
                mediator.too_large,
            )
        mediator.close()


def shadow_setups(queues: Sequence[QueueSetup], region: Region) -> tuple[QueueSetup, ...]:
    """Where the shadow rings of ``queues`` lie in ``region``, one behind the other."""
    setups = []
    at = region.gpa
    for queue in queues:
        setups.append(lay_out(at, queue.size, queue.index))
        at += -(-shadow_size(queue.size) // 16) * 16
    if at > region.end:
        raise ValueError(f"shadow rings of {at - region.gpa} bytes do not fit {region.size}")
    return tuple(setups)
