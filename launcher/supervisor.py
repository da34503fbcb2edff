"""Keeps devices served: a process that died gets a successor, one that works can be swapped.

A successor goes through the same steps whatever it is wanted for::

    taken from the spares ─► the VMM listens ─► handed its spec, sealed, offers ─► attached
           spare                  listen                    start         │     attach, replay
                                      a swap: fits? Switch, else SIGKILL ◄┘

The words below name the steps in :class:`protocol.control.Event`.

Where something fails, a restart is tried again later, and later still, without end; a swap is
given up, and the process that serves goes on.

A process mostly serves one device. Those that share one die together, and are followed by one
process for all of them; one of them is not swapped alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from devices.runtime.device import Offer
from launcher.door import Hand
from launcher.nursery import Spares
from launcher.plan import PlannedDevice
from launcher.policy import BackOff, OnDeath
from launcher.spawn import Child
from launcher.wiring import Generation, Wiring
from protocol.control import EventKind
from protocol.errors import BadInput, HostError, VibeError
from protocol.messages import (
    DeviceAttached,
    DeviceBound,
    DeviceFailed,
    DeviceOffers,
    Failed,
    Retire,
    Switch,
    Unfit,
)
from protocol.specs import Notice

# Seconds from a successor's first step to its last, while nobody waits for it (arbitrary: an import
# from a cold disk fits).
_DEADLINE = 10.0
# The same of one that was started by hand, in a debugger maybe (arbitrary).
_BY_HAND_DEADLINE = 600.0
# Seconds that one which is not wanted has to end by itself (arbitrary: to print a line).
_GRACE = 2.0

# Seconds between two looks for somebody to connect to, who does not listen (arbitrary).
_LOOK = 0.1

# Seconds that a process has to go, whose place was taken (arbitrary: it does nothing else).
_QUIT_DEADLINE = 1.0


@dataclass(frozen=True, slots=True)
class Served:
    """How a restart or a swap ended well: who serves now, and the nanoseconds that nobody did."""

    generation: int
    pid: int
    took: int


Done = Callable[[Served | VibeError], None]
"""Told how a restart or a swap went: who serves, or why what served goes on. BadInput if the
successor does not fit, HostError if it failed."""


class Machine(Protocol):
    """What the supervisor needs of whoever runs the machine (launcher.session)."""

    name: str

    def hand_over(self, child: Child, payload: bytes, descriptors: dict[str, int]) -> None:
        """Send it to a device process, with a trace if there is one."""

    def hand_vmm(self, payload: bytes, descriptors: dict[str, int]) -> None:
        """Send it to the VMM."""

    def request(self, message: object, answered: Callable[[object], None] | None = None) -> None:
        """Ask the VMM; ``answered`` gets its reply."""

    def reconnect(self, device: PlannedDevice) -> None:
        """Open what ``device``, one that connects, needs for a further process; BadInput."""

    def compare(
        self, device: PlannedDevice, ours: Offer, theirs: Offer, then: Callable[[str | None], None]
    ) -> None:
        """Tell ``then`` why a successor that offers ``theirs`` cannot take over from ``device``."""

    def after(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call back later."""

    def stop_for(self, child: Child) -> None:
        """End the machine, because ``child`` died."""

    def pause_for(self, child: Child) -> None:
        """Pause the guest, because ``child`` died."""

    def resume_for(self, process: str) -> None:
        """Let it go on, if it was paused because one of that name had died."""

    def emit(
        self,
        kind: EventKind,
        device: str,
        *,
        generation: int,
        pid: int,
        took: int | None,
        steps: Mapping[str, int],
        detail: str,
    ) -> None:
        """Tell whoever follows; ``took`` and ``steps`` are in nanoseconds."""


@dataclass(slots=True, eq=False)
class _Successor:
    # A process on its way to a seat. Its child comes a moment after it was asked for.
    ward: _Ward
    device: PlannedDevice
    done: Done | None  # None: a restart that nobody asked for
    is_swap: bool
    number: int = 0
    failing: bool = False
    is_switching: bool = False
    is_dead: bool = False  # though it may be said to serve yet
    by_hand: bool = False
    holds: bool = False
    child: Child | None = None
    generation: Generation | None = None
    offers: DeviceOffers | None = None
    steps: dict[str, int] = field(default_factory=dict)
    at: int = field(default_factory=time.monotonic_ns)

    @property
    def is_expected(self) -> bool:
        return self.ward.successor is self

    @property
    def is_compared(self) -> bool:
        # With who served last. What a process is connected to anew may be something else by now.
        return self.is_swap or self.device.model.connects

    def has_done(self, step: str, at: int | None = None) -> None:
        # Nanoseconds since the step before.
        now = time.monotonic_ns() if at is None else at
        self.steps[step], self.at = now - self.at, now

    def has_served(self, asked: int, served: int) -> None:
        # The VMM's times. It may have gone on before we heard that the process had started.
        if (late := self.at - asked) > 0:
            self.steps["start"] = self.steps.get("start", 0) - late
            self.at = asked
        self.has_done("attach", asked)
        self.has_done("replay", served)


@dataclass(slots=True)
class _Ward:
    # One device. ``device`` is what the machine starts by itself; while a process that was started
    # by hand serves, what is to come back. If that ``holds`` the place, nobody does.
    device: PlannedDevice
    child: Child | None
    household: _Household
    offers: DeviceOffers | None = None
    number: int = 1
    last_number: int = 1
    by_hand: bool = False
    holds: bool = False
    successor: _Successor | None = None


@dataclass(slots=True, eq=False)
class _Household:
    # The devices that share a process: mostly one. ``wanted`` is whose restart they all wait for,
    # ``displaced`` served until it made room for one that then failed.
    name: str
    wards: list[_Ward] = field(default_factory=list)
    dead: Child | None = None
    displaced: Child | None = None
    wanted: tuple[_Ward, Done] | None = None
    # Whom it is to be connected to does not listen, and somebody has been told; is looked for.
    is_missed: bool = False
    is_looked_for: bool = False
    back_off: BackOff = field(default_factory=BackOff)

    @property
    def has_made_room(self) -> bool:
        # Whoever is dead here has not died of itself: it quit when the VMM told it to.
        return self.dead is not None and self.dead is self.displaced and self.dead.status == 0

    @property
    def is_empty(self) -> bool:
        return all(ward.child is None and ward.successor is None for ward in self.wards)

    @property
    def is_whole(self) -> bool:
        return all(ward.child is not None for ward in self.wards)


class Supervisor:
    """Of ``devices``, each with the process that serves it now.

    Where nobody serves, a successor that is not ready within ``hang_after`` seconds hangs as a
    device would; 0: :data:`_DEADLINE`.
    """

    def __init__(
        self,
        machine: Machine,
        wiring: Wiring,
        spares: Spares,
        devices: Mapping[str, tuple[PlannedDevice, Child]],
        hang_after: float,
    ) -> None:
        self._machine = machine
        self._wiring = wiring
        self._spares = spares
        self._wards: dict[str, _Ward] = {}
        self._households: dict[str, _Household] = {}
        for name, (device, child) in devices.items():
            process = device.process_name
            household = self._households.setdefault(process, _Household(process))
            self._wards[name] = _Ward(device, child, household)
            household.wards.append(self._wards[name])
        self._hang_after = hang_after
        self._is_ended = False

    def end(self) -> None:
        """Start nothing any more."""
        self._is_ended = True
        for ward in self._wards.values():
            self._fail(ward, "the machine ends")
        for household in self._households.values():
            if household.wanted is not None:
                (ward, done), household.wanted = household.wanted, None
                done(self._error(ward.device.name, "the machine ends"))

    # ── what there is ─────────────────────────────────────────────────────────────────

    def child(self, name: str) -> Child | None:
        """The process that serves device ``name``; None while there is none. KeyError: no such."""
        return self._wards[name].child

    def device(self, name: str) -> PlannedDevice:
        """What serves, or is to serve; of a device that runs by hand, what is to come back."""
        return self._wards[name].device

    def companions(self, name: str) -> tuple[str, ...]:
        """The other devices of the same process."""
        wards = self._wards[name].household.wards
        return tuple(ward.device.name for ward in wards if ward.device.name != name)

    def offers_of(self, name: str) -> DeviceOffers | None:
        """What the process that serves, or served last, has said of itself."""
        return self._wards[name].offers

    def is_by_hand(self, name: str) -> bool:
        """Whether the process that serves was started by hand."""
        return self._wards[name].by_hand

    # ── deaths ────────────────────────────────────────────────────────────────────────

    def died(self, child: Child) -> None:
        """A device process is dead and reaped, whichever it was."""
        for ward in self._wards.values():
            if ward.successor is not None and ward.successor.child is child:
                # In the middle of a switch the VMM knows better why, and is about to say so; or it
                # had switched before, and says that.
                if ward.successor.is_switching:
                    ward.successor.is_dead = True
                else:
                    self._fail(ward, f"{ward.device.name} {child.how_it_ended()}")
            elif ward.child is child:
                self._bereaved(ward, child)

    def _bereaved(self, ward: _Ward, child: Child) -> None:
        ward.child, ward.household.dead = None, child
        if ward.successor is not None and ward.successor.is_swap and child.status == 0:
            return  # told to quit by the VMM, which will say that it has switched
        if not ward.household.has_made_room:
            how = child.how_it_ended()
            self._emit("died", ward.device.name, ward.number, pid=child.pid, detail=how)
        if (successor := ward.successor) is not None and not successor.is_switching:
            self._expect((successor,))  # sooner than while somebody served
        self._mourn(ward.household)

    def _mourn(self, household: _Household) -> None:
        # Nobody serves: do what is to be done then, unless somebody is on the way. Of several that
        # have died as one, the last that is told of gets so far.
        if self._is_ended or household.dead is None or not household.is_empty:
            return
        first = household.wards[0]  # what is asked of it here is the same of all
        if first.by_hand:
            # None of ours has died: on-death is not for this.
            if not first.holds:
                self._restart_later(household, failing=False)
            return
        if household.wanted is not None:
            self._restart(household, failing=False)
            return
        if household.has_made_room:
            self._restart_later(household, failing=False)
            return
        match first.device.on_death:
            case OnDeath.STOP_VM:
                self._machine.stop_for(household.dead)
            case OnDeath.PAUSE_VM:
                self._machine.pause_for(household.dead)
            case OnDeath.RESTART | OnDeath.FAIL_IO:
                is_failing = first.device.on_death is OnDeath.FAIL_IO
                self._restart_later(household, failing=is_failing)

    def _restart_later(self, household: _Household, *, failing: bool) -> None:
        delay = household.back_off.delay()
        if delay:
            self._machine.after(delay, lambda: self._restart(household, failing=failing))
        else:
            self._restart(household, failing=failing)

    def _restart(self, household: _Household, *, failing: bool) -> None:
        if household.is_empty and not self._is_ended and self._is_connected(household):
            wanted, household.wanted = household.wanted, None
            self._begin(
                _Successor(
                    ward,
                    ward.device,
                    wanted[1] if wanted is not None and wanted[0] is ward else None,
                    is_swap=False,
                    failing=failing,
                )
                for ward in household.wards
            )

    def _is_connected(self, household: _Household) -> bool:
        # Of what has to be connected anew. Else it is looked for, and told of once: a look costs
        # nothing, and no process.
        try:
            for device in [ward.device for ward in household.wards]:
                if device.model.connects and not device.fds:
                    self._machine.reconnect(device)
        except VibeError as error:
            self._is_missing(household, str(error))
            return False
        household.is_missed = False
        return True

    def _is_missing(self, household: _Household, why: str) -> None:
        first = household.wards[0]
        if household.wanted is not None:
            (ward, done), household.wanted = household.wanted, None
            done(self._error(ward.device.name, why))
        if not household.is_missed:
            household.is_missed = True
            self._emit("failed", first.device.name, first.last_number, detail=why)
        if first.device.on_death is OnDeath.RESTART and not household.is_looked_for:
            household.is_looked_for = True
            self._machine.after(_LOOK, lambda: self._look_for(household))

    def _look_for(self, household: _Household) -> None:
        household.is_looked_for = False
        self._restart(household, failing=False)

    # ── what somebody wants ───────────────────────────────────────────────────────────

    def restart(self, name: str, done: Done) -> None:
        """Put a fresh process of the same device in the place of the one that serves. One that
        serves several is killed for that, and the next one serves them all; so is one that is
        connected to somebody who may serve one at a time only."""
        ward = self._wards[name]
        if (why := self.why_busy(name)) is not None:
            done(self._error(name, why))
        elif ward.child is not None and not self._has_to_go_first(ward):
            self._begin([_Successor(ward, ward.device, done, is_swap=True)])
        else:
            ward.household.wanted = ward, done
            if ward.child is None:
                self._restart(ward.household, failing=False)
            elif ward.device.model.connects:
                # Some programs do not bear it when who they work for dies in the middle of that.
                after = partial(self._machine.after, _QUIT_DEADLINE, ward.child.kill)
                self._machine.request(Retire(name), lambda _: after())
            else:
                ward.child.kill()

    def _has_to_go_first(self, ward: _Ward) -> bool:
        return len(ward.household.wards) > 1 or ward.device.model.connects

    def swap(self, name: str, device: PlannedDevice, done: Done) -> None:
        """Put ``device`` in the place of what serves as ``name``; its descriptors stay the
        caller's until ``done`` says that it serves."""
        # In an empty place, too, it is compared first: what the driver relies on has not changed.
        if (why := self.why_busy(name)) is not None:
            done(self._error(name, why))
        else:
            self._begin([_Successor(self._wards[name], device, done, is_swap=True)])

    def volunteer(self, name: str, hand: Hand, implementation: str, *, holds: bool) -> None:
        """Put ``hand``, which somebody has started as an ``implementation``, in the place of what
        serves as ``name``; it is told how that went. KeyError: no such device."""
        if (why := self.why_busy(name) or self.why_bound(name)) is not None:
            hand.dismiss(why)
            return
        ward = self._wards[name]
        # Its descriptors are its own, and so are its options.
        device = replace(ward.device, kind=implementation, process=None, fds={})
        self._begin([_Successor(ward, device, None, is_swap=True, by_hand=True, holds=holds)], hand)

    def why_busy(self, name: str) -> str | None:
        """Why device ``name`` can be neither restarted nor swapped now, if so."""
        if self._is_ended:
            return "the machine ends"
        household = self._wards[name].household
        is_busy = household.wanted or any(ward.successor for ward in household.wards)
        return "another successor is on its way" if is_busy else None

    def why_bound(self, name: str) -> str | None:
        """Why nothing else can be put into the place of device ``name``, if so."""
        if others := self.companions(name):
            process = self._wards[name].household.name
            return f"it shares process {process} with {', '.join(others)}; restart takes them all"
        return None

    # ── the steps of a successor ──────────────────────────────────────────────────────

    def _begin(self, successors: Iterable[_Successor], hand: Hand | None = None) -> None:
        # Of one process, which serves a household, or a single device of it.
        coming = tuple(successors)
        for successor in coming:
            successor.ward.last_number += 1
            successor.number = successor.ward.last_number
            successor.ward.successor = successor
        self._expect(coming)
        if hand is None:
            is_free = coming[0].device.is_free
            self._spares.take(lambda child: self._arrived(coming, child), free=is_free)
        else:
            self._arrived(coming, hand)

    def _arrived(self, coming: tuple[_Successor, ...], child: Child) -> None:
        if not all(successor.is_expected for successor in coming):
            child.kill()  # it came too late
            return
        child.name = coming[0].device.process_name
        for successor in coming:
            successor.has_done("spare")
            successor.child = child
            successor.generation, payload, descriptors = self._wiring.successor(
                successor.device,
                successor.number,
                child.pidfd,
                waits=successor.is_compared,
                by_hand=successor.by_hand,
            )
            self._machine.hand_vmm(payload, descriptors)

    def bound(self, event: DeviceBound) -> None:
        """The VMM listens for a successor: tell it where."""
        _, successor = self._find(event.name, event.generation)
        if successor is None or successor.child is None or successor.generation is None:
            return
        successor.has_done("listen")
        payload, descriptors = self._wiring.for_device(
            successor.device, successor.generation, failing=successor.failing
        )
        self._machine.hand_over(successor.child, payload, descriptors)
        successor.generation.close()
        if successor.device.model.connects:
            successor.device.close()  # or nobody would hear of its death

    def offers(self, event: DeviceOffers) -> None:
        """A device is sealed. In an empty place the VMM attaches it by itself, but for a swap."""
        ward, successor = self._find(event.name, event.generation)
        if ward is not None and event.generation == ward.number:
            ward.offers = event  # it is the first
        if ward is None or successor is None:
            return
        successor.has_done("start")
        successor.offers = event
        if not successor.is_compared:
            return
        if ward.offers is None:
            self._compared(ward, successor, None)
        else:
            ours, theirs = _offer(ward.offers), _offer(event)
            then = partial(self._compared, ward, successor)
            self._machine.compare(ward.device, ours, theirs, then)

    def _compared(self, ward: _Ward, successor: _Successor, why_unfit: str | None) -> None:
        if ward.successor is not successor:
            return  # it has ended meanwhile, or was too late
        if why_unfit is not None:
            self._fail(ward, why_unfit, is_unfit=True)
            return
        successor.is_switching = True
        self._machine.request(
            Switch(ward.device.name, successor.number),
            lambda reply: self._switched(ward, successor, reply),
        )

    def _switched(self, ward: _Ward, successor: _Successor, reply: object) -> None:
        if isinstance(reply, Unfit | Failed) and ward.successor is successor:
            if isinstance(reply, Failed):
                ward.household.displaced = ward.child or ward.household.dead
            self._fail(ward, reply.reason, is_unfit=isinstance(reply, Unfit))

    def attached(self, event: DeviceAttached) -> None:
        """A successor serves."""
        ward, successor = self._find(event.name, event.generation)
        if ward is None or successor is None:
            return
        successor.has_served(event.asked, event.served)
        ward.successor, ward.child = None, successor.child
        ward.offers, ward.number = successor.offers, successor.number
        ward.by_hand, ward.holds = successor.by_hand, successor.holds
        if not successor.by_hand:
            ward.device = successor.device
        ward.household.back_off.served()
        kind: EventKind = "swapped" if successor.is_swap else "recovered"
        # Of a swap only the time in which nobody served: before that the old process did.
        took, what = event.microseconds * 1000, successor.device.model.implementation
        if successor.by_hand:
            what = f"{successor.device.kind}, by hand"
        if isinstance(successor.child, Hand):
            successor.child.tell(Notice(True))
        pid = successor.child.pid if successor.child is not None else 0
        steps = successor.steps
        self._emit(kind, event.name, event.generation, pid=pid, took=took, steps=steps, detail=what)
        if successor.done is not None:
            successor.done(Served(event.generation, pid, took))
        if ward.household.is_whole:
            self._machine.resume_for(ward.household.name)
        self._spares.prepare()
        if successor.is_dead and successor.child is not None:
            self._bereaved(ward, successor.child)

    def failed(self, event: DeviceFailed) -> None:
        """The VMM killed a process. If it served, its death is told by itself."""
        if event.hung:
            self._emit("hung", event.name, event.generation, detail=event.reason)
        ward, successor = self._find(event.name, event.generation)
        if ward is not None and successor is not None:
            self._fail(ward, event.reason)

    def _expect(self, coming: tuple[_Successor, ...]) -> None:
        # They are given up if they do not serve in time.
        first = coming[0]
        if first.by_hand:
            deadline = _BY_HAND_DEADLINE
        elif first.ward.child is not None or not self._hang_after:
            deadline = _DEADLINE
        else:
            longest = max(_DEADLINE, self._hang_after)
            deadline = first.ward.household.back_off.patience(self._hang_after, longest)
        self._machine.after(deadline, lambda: self._late(coming, deadline))

    def _late(self, coming: tuple[_Successor, ...], deadline: float) -> None:
        late = [successor for successor in coming if successor.is_expected]
        if late and late[0].child is None:
            self._spares.give_up()
        for successor in late:
            self._fail(successor.ward, f"it was not ready within {deadline:g} s")

    def _fail(self, ward: _Ward, why: str, *, is_unfit: bool = False) -> None:
        successor, ward.successor = ward.successor, None
        if successor is None:
            return
        error = self._error(ward.device.name, why, is_unfit=is_unfit)
        if (child := successor.child) is not None:
            child.dismiss(why, error.exit_status)
            self._machine.after(_GRACE, child.kill)
        if successor.generation is not None:
            successor.generation.close()
        if successor.device.model.connects:
            successor.device.close()  # the next one does not go on with this connection
        if successor.done is not None:
            successor.done(error)
        if not self._is_ended:
            pid = child.pid if child is not None else 0
            self._emit("failed", ward.device.name, successor.number, pid=pid, detail=why)
            self._spares.prepare()
            self._mourn(ward.household)

    def _error(self, device: str, why: str, *, is_unfit: bool = False) -> VibeError:
        where = f"{self._machine.name}/{device}"
        return BadInput(where, why) if is_unfit else HostError(f"{where}: {why}")

    def _emit(
        self,
        kind: EventKind,
        name: str,
        generation: int,
        *,
        pid: int = 0,
        took: int | None = None,
        steps: Mapping[str, int] | None = None,
        detail: str = "",
    ) -> None:
        self._machine.emit(
            kind,
            name,
            generation=generation,
            pid=pid,
            took=took,
            steps=steps or {},
            detail=detail,
        )

    def _find(self, name: str, number: int) -> tuple[_Ward | None, _Successor | None]:
        ward = self._wards.get(name)
        if ward is not None and ward.successor is not None and ward.successor.number == number:
            return ward, ward.successor
        return ward, None


def _offer(event: DeviceOffers) -> Offer:
    return Offer(event.features, event.config)
