"""Who sits where: the first processes of a machine's devices, and those that come after them.

Everything here happens on the main thread. The launcher announces a successor (specs.Successor);
once that is sealed it takes its seat as soon as that is empty, or waits to be switched to::

    expect ──► bound ──► offers ──┬── the seat is empty ──► attached
                                  └── switch ─────────────► attached, and the one before quits
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial

from protocol import fds
from protocol.errors import DeviceGone, HostError
from protocol.journal import Journal
from protocol.lifecycle import State
from protocol.messages import (
    DeviceAttached,
    DeviceBound,
    DeviceFailed,
    DeviceOffers,
    Done,
    Failed,
    Quit,
    Retire,
    Switch,
    Unfit,
)
from protocol.specs import DeviceSlot, MachineSpec, Successor
from vmm.control import Control
from vmm.remote import DEADLINE, RemoteDevice
from vmm.seat import Seat

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Candidate:
    waits: bool
    is_told: bool = False


class Seating:
    """Of the machine in ``spec``. ``descriptors`` came with it; ``tell`` is for the launcher.

    ``watch`` and ``forget`` are the main loop's; ``on_change`` makes it call :meth:`consider`,
    from any thread.
    """

    watch: Callable[[int, Callable[[], None]], None]
    forget: Callable[[int], None]
    on_change: Callable[[], None]

    def __init__(
        self,
        spec: MachineSpec,
        descriptors: Mapping[str, int],
        control: Control,
        tell: Callable[[object], None],
    ) -> None:
        self._control = control
        self._tell = tell
        # One that does not answer hangs, whatever it was asked; nobody is looked after meanwhile.
        self._patience = min(DEADLINE, spec.hang_after / 1000 or DEADLINE)
        self._seats = {
            slot.name: Seat(slot, Journal(descriptors[f"{slot.name}.journal"], slot.queues))
            for slot in spec.devices
        }
        self._firsts = [
            RemoteDevice(
                slot,
                descriptors[f"{slot.name}.pidfd"],
                _bells(slot, descriptors),
                control,
                self._patience,
                ended=descriptors[f"{slot.name}.ended"],
            )
            for slot in spec.devices
        ]
        self._has_begun = False
        # Processes that have come for a seat and do not sit there yet.
        self._candidates: dict[RemoteDevice, _Candidate] = {}
        # Doorbells of the dead that led to the guest once, by device.
        self._spent: dict[str, list[Mapping[str, int]]] = {}

    # ── the first ─────────────────────────────────────────────────────────────────────

    def begin(self) -> None:
        """Hear of the first processes."""
        for remote in self._firsts:
            self._follow(remote)

    @property
    def is_ready(self) -> bool:
        """Whether each of the first is sealed, or dead."""
        return all(remote.ready.done() for remote in self._firsts)

    def take(self) -> Iterator[Seat]:
        """Seat the first processes; HostError if one of them did not come so far."""
        self._has_begun = True
        for remote in self._firsts:
            try:
                remote.ready.result()
            except DeviceGone as error:
                raise HostError(str(error)) from error
            if remote.life.state is State.GONE:  # and nobody will tell us again
                raise HostError(f"{remote.name} ended before the machine ran")
            seat = self._seats[remote.name]
            seat.take(remote)
            self._offer(remote)
            yield seat

    # ── and those that come after ─────────────────────────────────────────────────────

    def expect(self, successor: Successor, descriptors: Mapping[str, int]) -> DeviceBound:
        """Listen for ``successor``; ``descriptors`` came with it, and are ours from now on."""
        bells = dict(descriptors)
        pidfd, ended = bells.pop("pidfd"), bells.pop("ended")
        slot = replace(
            self._seats[successor.name].slot,
            kind=successor.kind,
            generation=successor.generation,
            endpoint=successor.endpoint,
        )
        remote = RemoteDevice(
            slot,
            pidfd,
            bells,
            self._control,
            self._patience,
            ended=ended,
            by_hand=successor.by_hand,
        )
        self._candidates[remote] = _Candidate(successor.waits)
        self._follow(remote)
        return DeviceBound(successor.name, successor.generation)

    def consider(self) -> None:
        """Tell of those that are sealed by now, and give them the seats that are empty."""
        for remote, candidate in list(self._candidates.items()):
            if not remote.is_ready:
                continue
            if not candidate.is_told:
                candidate.is_told = True
                self._offer(remote)
            seat = self._seats[remote.name]
            if seat.remote is None and not candidate.waits:
                self._seated(remote, seat.attach(remote))

    def switch(self, request: Switch) -> Done | Unfit | Failed:
        """Put a candidate into the place of whoever sits there."""
        remote = self._candidate(request.name, request.generation)
        if remote is None or not remote.is_ready or fds.has_ended(remote.pidfd):
            return Failed(f"{request.name} has no successor {request.generation} that is ready")
        seat = self._seats[remote.name]
        if (why := seat.why_unfit(remote)) is not None:
            return Unfit(why)  # it has seen nothing of the guest: the launcher sees it end
        reason = seat.switch(remote)
        self._seated(remote, reason)
        return Done() if reason is None else Failed(reason)

    def retire(self, request: Retire) -> Done:
        """Empty a place in order."""
        self._seats[request.name].retire()
        return Done()

    def quit(self) -> None:
        """The machine ends: ask every process to quit, and see to it."""
        seated = {seat.remote for seat in self._seats.values() if seat.remote is not None}
        remotes = seated | set(self._firsts) | set(self._candidates)
        # One that is not through its seal, or was refused, does not listen, nor one that hangs.
        listening = [remote for remote in remotes if remote.is_ready and not remote.is_silent]
        replies = [remote.ask(Quit()) for remote in listening]
        until = time.monotonic() + DEADLINE
        for remote in remotes:
            remote.outlast_until = until  # all of them together
        for remote, reply in zip(listening, replies, strict=True):
            remote.quit(reply, until)
        for remote in remotes.difference(listening):
            silent = "and it does not answer" if remote.is_silent else "before it was ready"
            remote.fence(f"the VM ends, {silent}")

    def _follow(self, remote: RemoteDevice) -> None:
        remote.ready.add_done_callback(self._changed)
        self.watch(remote.pidfd, partial(self._died, remote))

    def _changed(self, _: Future[None]) -> None:
        self.on_change()

    def _candidate(self, name: str, generation: int) -> RemoteDevice | None:
        for remote in self._candidates:
            if (remote.name, remote.slot.generation) == (name, generation):
                return remote
        return None

    def _seated(self, remote: RemoteDevice, reason: str | None) -> None:
        # It was tried whether ``remote`` can serve; ``reason`` is why not.
        self._candidates.pop(remote, None)
        if reason is not None:
            remote.fence(reason)  # and then it is told of
            return
        seat = self._seats[remote.name]
        microseconds = int((time.monotonic() - seat.empty_since) * 1e6)
        self._say(DeviceAttached, remote, microseconds, seat.asked, seat.served)

    def _died(self, remote: RemoteDevice) -> None:
        self.forget(remote.pidfd)
        remote.died_at = time.monotonic()
        if remote.has_ended():
            self._reap(remote)
        else:
            log.info("%s is dead; what the kernel still does for it is waited for", remote.name)
            self.watch(remote.ended, partial(self._done, remote))

    def _done(self, remote: RemoteDevice) -> None:
        self.forget(remote.ended)
        self._reap(remote)

    def _reap(self, remote: RemoteDevice) -> None:
        remote.gone()
        if not self._has_begun:
            return  # which ends the start
        has_tried = self._candidates.pop(remote, None) is None
        seat = self._seats[remote.name]
        seat.lost(remote)
        if remote.fenced_because:
            self._say(DeviceFailed, remote, remote.fenced_because, remote.is_hung)
        remote.close()
        if remote in self._firsts:
            return  # their descriptors are the spec's
        fds.close_all((remote.pidfd, remote.ended))
        if not has_tried:
            fds.close_all(remote.bells.values())
            return
        spent = self._spent.setdefault(remote.name, [])
        spent.append(remote.bells)
        # Still connected are those of the last that was seated, and those from before may be in
        # a vCPU's hands at this very moment.
        for bells in [bells for bells in spent[:-1] if bells is not seat.bells][:-1]:
            spent.remove(bells)
            fds.close_all(bells.values())

    def _offer(self, remote: RemoteDevice) -> None:
        sizes, sealed = tuple(remote.queue_sizes), remote.sealed
        offered = (remote.features, sizes, remote.config, sealed.syscalls, sealed.parts)
        self._say(DeviceOffers, remote, *offered)

    def _say(self, event: Callable[..., object], remote: RemoteDevice, *what: object) -> None:
        self._tell(event(remote.name, remote.slot.generation, *what))


def _bells(slot: DeviceSlot, descriptors: Mapping[str, int]) -> dict[str, int]:
    names = ["call", *(f"kick{index}" for index in range(len(slot.queues)))]
    return {name: descriptors[f"{slot.name}.{name}"] for name in names}
