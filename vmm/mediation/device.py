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
from vmm.remote import RemoteDevice

log = logging.getLogger(__name__)

_GUESTS_ONLY = bit(Feature.EVENT_IDX) | bit(Feature.INDIRECT_DESC)


class MediatedDevice:
    """``remote`` behind mediators (transport.mmio.Backend). All calls are the vCPU thread's.

    ``shadow`` maps the device's shadow region; ``kicks`` are its eventfds by queue, ``call`` the
    one that it signals; ``interrupt`` raises the guest's line, ``hook`` is the mediators'.
    """

    def __init__(
        self,
        remote: RemoteDevice,
        memory: GuestMemory,
        shadow: GuestMemory,
        kicks: Mapping[int, int],
        call: int,
        interrupt: Callable[[], None],
        hook: Hook,
    ) -> None:
        self.name = remote.name
        self.device_id = remote.device_id
        self.features = remote.features
        self.queue_sizes: Sequence[int] = remote.queue_sizes
        self.on_broken: Callable[[str], None] = lambda reason: None
        self._remote = remote
        self._memory = memory
        (self._region,) = shadow.regions
        self._view = shadow.view(self._region.gpa, self._region.size)
        self._kicks = kicks
        self._call = call
        self._interrupt = interrupt
        self._hook = hook
        self._mediators: dict[int, Mediator] = {}

    # ── transport.mmio.Backend ────────────────────────────────────────────────────────

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
        reason = self._remote.start(features & ~_GUESTS_ONLY, shadows)
        if reason is not None:
            self._close()
            return reason
        for index in self._mediators:
            self.kick(index)
        return None

    def stop(self) -> None:
        """Return when the device is quiet, or dead; what it had is forgotten."""
        try:
            self._remote.stop()
        finally:
            self._close()

    def stop_queue(self, index: int) -> None:
        """Return when queue ``index`` is quiet, or the device dead."""
        try:
            self._remote.stop_queue(index)
        finally:
            if mediator := self._mediators.pop(index, None):
                mediator.close()

    def write_config(self, offset: int, data: bytes) -> bytes:
        """Change the configuration; what it is now."""
        return self._remote.write_config(offset, data)

    # ── the data path ─────────────────────────────────────────────────────────────────

    def kick(self, index: int) -> None:
        """The guest has rung for queue ``index``."""
        if mediator := self._mediators.get(index):
            self._move(index, mediator.kick)

    def complete(self) -> None:
        """The device has rung; between two blocks of the guest's code."""
        doorbell.drain(self._call)
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
            self._remote.fence(str(error))
            self.on_broken(str(error))
            return
        if ring_device:
            doorbell.ring(self._kicks[index])
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
