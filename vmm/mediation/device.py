"""A device process whose rings are mediated, as the transport sees it.

The device is told of shadow rings, one for each queue, in memory of its own behind the guest's;
it does without EVENT_IDX and INDIRECT_DESC. Kicks and interrupts end here, on the vCPU's thread::

    guest's QueueNotify ──► kick() ──► mediator ──► shadow ring, the device's kick eventfd
    the device's call eventfd ──► complete() ──► mediator ──► guest's ring, interrupt line
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from protocol import doorbell
from protocol.memory import GuestMemory, Region
from protocol.messages import QueueSetup
from protocol.ring import RingBroken
from protocol.virtio import Feature, bit
from vmm.mediation import Hook, Mediator, MediatorBroken, ShadowMemory, lay_out, shadow_size
from vmm.seat import Seat

log = logging.getLogger(__name__)

_GUESTS_ONLY = bit(Feature.EVENT_IDX) | bit(Feature.INDIRECT_DESC)


class MediatedDevice:
    """``seat`` behind mediators (transport.mmio.Backend). All calls are the vCPU thread's.

    ``shadow`` maps the device's shadow region; ``bells`` are the doorbells of whoever sits there
    now, ``kick0`` … and ``call``; ``interrupt`` raises the guest's line, ``hook`` is for mediators.
    A shadow ring outlives its device process, as a guest's does: the journal fits either.
    """

    def __init__(
        self,
        seat: Seat,
        memory: GuestMemory,
        shadow: GuestMemory,
        interrupt: Callable[[], None],
        hook: Hook,
    ) -> None:
        self.name = seat.name
        self.device_id = seat.device_id
        self.bells: Mapping[str, int] = {}
        self.on_broken: Callable[[str], None] = lambda reason: None
        self._seat = seat
        self._memory = memory
        (self._region,) = shadow.regions
        self._view = shadow.view(self._region.gpa, self._region.size)
        self._interrupt = interrupt
        self._hook = hook
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
                self._mediators[guest.index] = Mediator(
                    self._memory,
                    guest,
                    shadow,
                    ShadowMemory(self._region.gpa, self._view),
                    hook=self._hook,
                    event_idx=bool(features & bit(Feature.EVENT_IDX)),
                    indirect=bool(features & bit(Feature.INDIRECT_DESC)),
                )
        except RingBroken as error:
            self._close()
            return str(error)
        reason = self._seat.start(features & ~_GUESTS_ONLY, shadows)
        if reason is not None:
            self._close()
            return reason
        for index in self._mediators:
            self.kick(index)
        return None

    def stop(self) -> None:
        """Return when the device is quiet, or dead; what it had is forgotten."""
        try:
            self._seat.stop()
        finally:
            self._close()

    def forget(self) -> None:
        """The driver has reset what it had not started."""
        self._seat.forget()

    def stop_queue(self, index: int) -> None:
        """Return when queue ``index`` is quiet, or the device dead."""
        try:
            self._seat.stop_queue(index)
        finally:
            if mediator := self._mediators.pop(index, None):
                mediator.close()

    def write_config(self, offset: int, data: bytes) -> bytes:
        """Change the configuration; what it is now."""
        return self._seat.write_config(offset, data)

    # ── the data path ─────────────────────────────────────────────────────────────────

    def kick(self, index: int) -> None:
        """The guest has rung for queue ``index``."""
        if mediator := self._mediators.get(index):
            self._move(index, mediator.kick)

    def complete(self) -> None:
        """The device has rung; between two blocks of the guest's code."""
        doorbell.drain(self.bells["call"])
        for index, mediator in list(self._mediators.items()):
            self._move(index, mediator.complete)

    def _move(self, index: int, step: Callable[[], tuple[bool, bool]]) -> None:
        try:
            ring_device, interrupt_guest = step()
        except RingBroken as error:
            # What came before the fault has been moved.
            ring_device = interrupt_guest = True
            self.on_broken(str(error))
        except MediatorBroken as error:
            log.error("%s: %s", self.name, error)
            self._seat.condemn(str(error))
            return
        if ring_device:
            doorbell.ring(self.bells[f"kick{index}"])
        if interrupt_guest:
            self._interrupt()

    def close(self) -> None:
        """Let go of all memory. The device must be quiet, or dead."""
        self._close()
        self._view.release()

    def _close(self) -> None:
        for mediator in self._mediators.values():
            mediator.close()
        self._mediators.clear()


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
