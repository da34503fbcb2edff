"""Successors, step by step: with a machine that only notes what it is asked for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import pytest

from devices.runtime.device import Offer
from launcher import model
from launcher.device_options import Request
from launcher.door import Hand
from launcher.nursery import Spares
from launcher.plan import PlannedDevice
from launcher.policy import OnDeath
from launcher.supervisor import Served, Supervisor
from launcher.wiring import Wiring
from protocol.errors import BadInput, HostError, VibeError
from protocol.messages import (
    DeviceAttached,
    DeviceBound,
    DeviceFailed,
    DeviceOffers,
    Done,
    Failed,
    Retire,
    Unfit,
)
from protocol.specs import Notice


@dataclass(eq=False)
class FakeChild:
    name: str = "spare"
    pid: int = 77
    pidfd: int = 0
    status: int | None = None
    is_killed: bool = False

    def kill(self) -> None:
        self.is_killed = True

    def dismiss(self, why: str, status: int) -> None:
        self.kill()

    def how_it_ended(self) -> str:
        return f"ended with {self.status}"


class FakeHand(FakeChild, Hand):  # type: ignore[misc]
    def __init__(self, name: str) -> None:
        FakeChild.__init__(self, name)
        self.told: list[Notice | str] = []

    def tell(self, notice: Notice) -> None:
        self.told.append(notice)

    def dismiss(self, why: str, status: int = HostError.exit_status) -> None:
        self.told.append(Notice(False, why, status))


@dataclass
class FakeGeneration:
    number: int
    is_closed: bool = False

    def close(self) -> None:
        self.is_closed = True


class FakeSpares:
    """``ready`` children at once, the others when the test says."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[Any], None]] = []
        self.ready = 1
        self.prepared = self.given_up = 0
        self.given: list[FakeChild] = []

    def take(self, then: Callable[[Any], None], *, free: bool = False) -> None:
        self.waiting.append(then)
        if self.ready:
            self.ready -= 1
            self.arrive()

    def arrive(self) -> None:
        self.given.append(FakeChild())
        self.waiting.pop(0)(self.given[-1])

    def prepare(self) -> None:
        self.prepared += 1
        self.ready = 1

    def give_up(self) -> None:
        self.given_up += 1


class FakeWiring:
    def __init__(self) -> None:
        self.generations: list[FakeGeneration] = []
        self.waits: list[bool] = []

    def successor(
        self, device: object, number: int, pidfd: int, *, waits: bool, by_hand: bool
    ) -> object:
        self.generations.append(FakeGeneration(number))
        self.waits.append(waits)
        return self.generations[-1], b"successor", {}

    def for_device(self, device: object, generation: object, *, failing: bool = False) -> object:
        return b"failing" if failing else b"spec", {}


@dataclass
class Machine:
    """supervisor.Machine, and what was asked of it."""

    name: str = "m"
    told: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    steps: dict[str, int] = field(default_factory=dict)  # of the last event
    timers: list[tuple[float, Callable[[], object]]] = field(default_factory=list)
    requests: list[tuple[object, Callable[[object], None]]] = field(default_factory=list)
    is_slow: bool = False  # to compare
    nobody_listens: bool = False
    compared: list[Callable[[], None]] = field(default_factory=list)

    def hand_over(self, child: FakeChild, payload: bytes, descriptors: object) -> None:
        self.told.append(f"{child.name}: {payload.decode()}")

    def hand_vmm(self, payload: bytes, descriptors: object) -> None:
        self.told.append(f"vmm: {payload.decode()}")

    def request(self, message: object, then: Callable[[object], None]) -> None:
        self.requests.append((message, then))

    def compare(
        self, device: object, ours: Offer, theirs: Offer, then: Callable[[str | None], None]
    ) -> None:
        same = theirs == ours
        self.compared.append(
            partial(then, None if same else f"{theirs.config!r} is not {ours.config!r}")
        )
        if not self.is_slow:
            self.compared.pop()()

    def reconnect(self, device: PlannedDevice) -> None:
        if self.nobody_listens:
            raise BadInput("--device: socket", "nobody listens there")
        device.fds["back-end"] = os.open("/dev/null", os.O_RDONLY)

    def after(self, seconds: float, callback: Callable[[], object]) -> None:
        self.timers.append((seconds, callback))

    def stop_for(self, child: FakeChild) -> None:
        self.events.append(f"stop for {child.name}")

    def pause_for(self, child: FakeChild) -> None:
        self.events.append(f"pause for {child.name}")

    def resume_for(self, device: str) -> None:
        self.events.append(f"resume for {device}")

    def emit(self, kind: str, device: str, **what: Any) -> None:
        self.events.append(f"{device} {what['generation']} {kind}")
        self.steps = what["steps"]


LOOK = model.look(Request("--device", "rng", ()), "--device")
DEVICE = PlannedDevice("rng0", "rng", "--device", LOOK, 3)


class World:
    def __init__(self, on_death: OnDeath = OnDeath.RESTART, hang_after: float = 0.0) -> None:
        self.machine, self.wiring, self.spares = Machine(), FakeWiring(), FakeSpares()
        self.device = replace(DEVICE, on_death=on_death)
        self.child = FakeChild("rng0")
        self.supervisor = Supervisor(
            self.machine,
            cast(Wiring, self.wiring),
            cast(Spares, self.spares),
            {"rng0": (self.device, cast(Any, self.child))},
            hang_after,
        )
        self.offers(1)
        self.answers: list[Served | VibeError] = []

    def die(self, child: FakeChild, status: int = -9) -> None:
        child.status = status
        self.supervisor.died(cast(Any, child))

    def bound(self, number: int) -> None:
        self.supervisor.bound(DeviceBound("rng0", number))

    def offers(self, number: int, config: bytes = b"fits") -> None:
        self.supervisor.offers(DeviceOffers("rng0", number, 0, (64,), config, 60, ()))

    def attached(self, number: int, times: tuple[int, int] = (0, 0)) -> None:
        self.supervisor.attached(DeviceAttached("rng0", number, 5000, *times))

    def serve(self, number: int) -> FakeChild:
        """The successor of that number goes all its way; its process."""
        self.bound(number)
        self.offers(number)
        self.attached(number)
        return self.spares.given[-1]

    def swap(self) -> None:
        self.supervisor.swap("rng0", self.device, self.answers.append)

    def volunteer(self, number: int, *, holds: bool = False) -> FakeHand:
        """One comes by hand, and serves as that number."""
        hand = FakeHand("hand")
        self.supervisor.volunteer("rng0", cast(Any, hand), "mine.py", holds=holds)
        if not hand.told:
            self.bound(number)
            self.offers(number)
            self.attached(number)
        return hand

    def fire(self) -> None:
        """All timers at once."""
        timers, self.machine.timers = self.machine.timers, []
        for _, callback in timers:
            callback()

    def delays(self) -> list[float]:
        return [seconds for seconds, _ in self.machine.timers]


def refusals(world: World) -> list[tuple[int, str]]:
    """Exit status and words of the errors that were told."""
    return [(e.exit_status, str(e)) for e in world.answers if isinstance(e, VibeError)]


def test_dead_device_is_followed_by_a_spare_step_by_step() -> None:
    world = World()

    world.die(world.child)
    assert world.machine.told == ["vmm: successor"]
    world.bound(2)
    assert world.machine.told == ["vmm: successor", "rng0: spec"]
    assert world.wiring.generations[0].is_closed
    world.offers(2)
    world.attached(2)

    assert world.machine.events == ["rng0 1 died", "rng0 2 recovered", "resume for rng0"]
    assert world.supervisor.child("rng0") is world.spares.given[0]
    assert world.spares.prepared == 1
    assert world.wiring.waits == [False]
    assert world.machine.requests == []


def test_steps_are_told_by_the_clock_of_who_takes_them_and_add_up() -> None:
    world = World()
    begun = time.monotonic_ns()
    world.die(world.child)
    world.bound(2)
    asked = time.monotonic_ns()
    served = asked + 5
    world.offers(2)  # is heard when it serves already

    world.attached(2, (asked, served))

    assert list(world.machine.steps) == ["spare", "listen", "start", "attach", "replay"]
    assert all(took >= 0 for took in world.machine.steps.values())
    assert (world.machine.steps["attach"], world.machine.steps["replay"]) == (0, 5)
    assert sum(world.machine.steps.values()) <= served - begun


def test_successor_that_dies_is_followed_by_another_a_little_later() -> None:
    world = World()
    world.die(world.child)

    world.die(world.spares.given[0])

    assert world.machine.events == ["rng0 1 died", "rng0 2 failed"]
    assert world.wiring.generations[0].is_closed
    assert [seconds for seconds in world.delays() if seconds < 0.1] != []
    world.fire()
    world.serve(3)
    assert world.machine.events[-2] == "rng0 3 recovered"


def test_successor_that_never_says_hello_is_given_up_and_tried_again() -> None:
    world = World()
    world.die(world.child)
    world.bound(2)

    world.fire()  # its deadline

    assert world.spares.given[0].is_killed
    assert world.spares.given_up == 0
    assert "rng0 2 failed" in world.machine.events
    world.die(world.spares.given[0])  # whose death is nobody's any more
    world.fire()
    world.serve(3)
    assert world.machine.events[-2] == "rng0 3 recovered"


def test_successor_hangs_as_soon_as_a_device_would_and_the_next_one_has_longer() -> None:
    world = World(hang_after=4.0)
    world.die(world.child)
    assert world.delays() == [4.0]
    for number, patience in ((2, 8.0), (3, 10.0), (4, 10.0)):
        world.bound(number)
        world.fire()  # it is late; the pause before the next
        world.fire()
        assert world.delays()[-1] == patience


def test_successor_has_as_long_as_a_slow_device_and_ten_seconds_if_none_ever_hangs() -> None:
    slow, never = World(hang_after=60.0), World(hang_after=0.0)
    for world in (slow, never):
        world.die(world.child)

    assert slow.delays() == [60.0]
    assert never.delays() == [10.0]


def test_swap_may_take_longer_until_nobody_serves() -> None:
    world = World(hang_after=4.0)
    world.swap()
    assert world.delays() == [10.0]

    world.die(world.child)

    assert world.delays() == [10.0, 4.0]
    world.machine.timers[-1][1]()
    assert refusals(world) == [(3, "m/rng0: it was not ready within 4 s")]


def test_zygote_that_makes_nobody_is_given_up() -> None:
    world = World()
    world.spares.ready = 0
    world.die(world.child)

    world.fire()

    assert world.spares.given_up == 1
    world.spares.arrive()  # after all, and too late
    assert world.spares.given[0].is_killed
    assert world.machine.told == []


def test_attached_and_dead_before_it_was_heard_of() -> None:
    """The death of a successor is noticed before the message that it serves is read."""
    world = World()
    world.die(world.child)
    world.bound(2)
    world.die(world.spares.given[0])

    world.attached(2)

    assert "rng0 2 recovered" not in world.machine.events
    world.fire()
    world.serve(3)
    assert world.machine.events[-2] == "rng0 3 recovered"


def test_hung_device_is_told_of_once_and_followed_when_it_is_dead() -> None:
    world = World()

    world.supervisor.failed(DeviceFailed("rng0", 1, "it does not answer", True))
    world.die(world.child)
    world.serve(2)

    assert world.machine.events == [
        "rng0 1 hung",
        "rng0 1 died",
        "rng0 2 recovered",
        "resume for rng0",
    ]


@pytest.mark.parametrize(
    ("on_death", "event"),
    [(OnDeath.STOP_VM, "stop for rng0"), (OnDeath.PAUSE_VM, "pause for rng0")],
)
def test_other_policies_start_nobody(on_death: OnDeath, event: str) -> None:
    world = World(on_death)

    world.die(world.child)

    assert world.machine.events == ["rng0 1 died", event]
    assert world.spares.given == []


def test_fail_io_starts_one_that_fails_until_somebody_restarts_it() -> None:
    world = World(OnDeath.FAIL_IO)
    world.die(world.child)
    world.serve(2)
    assert world.machine.told[-1] == "rng0: failing"

    world.supervisor.restart("rng0", world.answers.append)
    world.bound(3)

    assert world.machine.told[-1] == "rng0: spec"


def test_swap_asks_for_a_switch_and_ends_nobody_by_itself() -> None:
    world = World()
    world.swap()
    world.bound(2)
    assert world.wiring.waits == [True]
    world.offers(2)
    ((request, then),) = world.machine.requests
    assert type(request).__name__ == "Switch"

    world.attached(2)
    then(Done())

    assert world.answers == [Served(2, 77, 5_000_000)]
    assert world.machine.events == ["rng0 2 swapped", "resume for rng0"]
    world.fire()
    assert not world.child.is_killed  # the VMM has seen to it
    world.die(world.child, 0)
    assert world.machine.events == ["rng0 2 swapped", "resume for rng0"]


def test_swap_into_an_empty_place_is_compared_with_who_served_there() -> None:
    world = World(OnDeath.PAUSE_VM)
    world.die(world.child)
    world.swap()
    world.bound(2)

    world.offers(2, b"another disk")

    assert world.wiring.waits == [True]
    assert refusals(world) == [(2, "m/rng0: b'another disk' is not b'fits'")]
    world.swap()
    world.serve(3)
    assert world.answers[1:] == [Served(3, 77, 5_000_000)]


def test_successor_that_ends_while_it_is_compared_is_not_switched_to() -> None:
    world = World()
    world.machine.is_slow = True
    world.swap()
    world.bound(2)
    world.offers(2)

    world.die(world.spares.given[0])
    (compared,) = world.machine.compared
    compared()

    assert refusals(world) == [(3, "m/rng0: rng0 ended with -9")]
    assert world.machine.requests == []
    assert world.supervisor.child("rng0") is world.child


def test_first_swap_is_compared_with_what_the_first_process_offered() -> None:
    world = World()
    world.swap()
    world.bound(2)

    world.offers(2, b"another disk")

    assert refusals(world) == [(2, "m/rng0: b'another disk' is not b'fits'")]
    assert world.spares.given[0].is_killed
    assert world.machine.requests == []
    assert world.supervisor.child("rng0") is world.child


@pytest.mark.parametrize("on_death", OnDeath)
@pytest.mark.parametrize("is_seen", ["before", "after"])
def test_old_one_that_made_room_for_one_that_fails_comes_back_whatever_on_death_says(
    on_death: OnDeath, is_seen: str
) -> None:
    world = World(on_death)
    world.swap()
    world.bound(2)
    world.offers(2)

    if is_seen == "before":
        world.die(world.child, 0)
    world.machine.requests[0][1](Failed("it has no such state"))
    if is_seen == "after":
        world.die(world.child, 0)

    assert refusals(world) == [(3, "m/rng0: it has no such state")]
    assert world.machine.events == ["rng0 2 failed"]
    world.serve(3)
    assert world.machine.events[1] == "rng0 3 recovered"
    assert world.machine.told[-1] == "rng0: spec"  # not one that fails by order


def test_switch_that_fails_before_the_old_one_made_room_leaves_it_to_die_its_own_death() -> None:
    world = World(OnDeath.STOP_VM)
    world.swap()
    world.bound(2)
    world.offers(2)
    world.machine.requests[0][1](Failed("there is no successor"))
    assert world.supervisor.child("rng0") is world.child

    world.die(world.child)

    assert world.machine.events[1:] == ["rng0 1 died", "stop for rng0"]


def test_switch_to_what_does_not_fit_is_bad_input() -> None:
    world = World()
    world.swap()
    world.bound(2)
    world.offers(2)

    world.machine.requests[0][1](Unfit("it lacks negotiated features: 0x1"))

    assert refusals(world) == [(2, "m/rng0: it lacks negotiated features: 0x1")]
    assert world.supervisor.child("rng0") is world.child


def test_one_that_was_switched_to_and_died_before_that_was_heard_of_is_followed() -> None:
    world = World()
    world.swap()
    world.bound(2)
    world.offers(2)
    world.die(world.spares.given[0])

    world.attached(2)

    assert world.answers == [Served(2, 77, 5_000_000)]
    assert world.supervisor.child("rng0") is None
    assert world.machine.events[-1] == "rng0 2 died"
    world.serve(3)
    assert "rng0 3 recovered" in world.machine.events


def test_old_one_dies_before_the_switch_and_the_swap_goes_on() -> None:
    world = World()
    world.swap()
    world.bound(2)
    world.die(world.child)
    assert world.spares.given[1:] == []

    world.offers(2)

    assert len(world.machine.requests) == 1  # its place is empty, and it is looked at all the same
    world.attached(2)
    assert world.answers == [Served(2, 77, 5_000_000)]


@pytest.mark.parametrize(
    ("on_death", "event"),
    [
        (OnDeath.STOP_VM, "stop for rng0"),
        (OnDeath.PAUSE_VM, "pause for rng0"),
    ],
)
def test_policy_holds_when_a_swap_fails_over_a_dead_process(on_death: OnDeath, event: str) -> None:
    world = World(on_death)
    world.swap()
    world.die(world.child)

    world.die(world.spares.given[0])

    assert world.machine.events == ["rng0 1 died", "rng0 2 failed", event]


def test_both_die_in_a_swap_and_a_third_comes() -> None:
    world = World()
    world.swap()
    world.die(world.child)

    world.die(world.spares.given[0])

    assert len(world.answers) == 1
    world.serve(3)
    assert world.machine.events[-2] == "rng0 3 recovered"


def test_one_wish_at_a_time() -> None:
    world = World()
    world.swap()

    world.supervisor.restart("rng0", world.answers.append)

    assert refusals(world) == [(3, "m/rng0: another successor is on its way")]


def test_end_of_the_machine_in_the_middle_of_a_recovery() -> None:
    world = World()
    world.die(world.child)
    world.bound(2)

    world.supervisor.end()

    assert world.spares.given[0].is_killed
    assert world.machine.events == ["rng0 1 died"]
    world.die(world.spares.given[0])
    world.fire()
    world.swap()
    assert len(world.spares.given) == 1
    assert refusals(world) == [(3, "m/rng0: the machine ends")]


@pytest.mark.parametrize("on_death", OnDeath)
def test_after_one_by_hand_the_machines_own_comes_back_whatever_on_death_says(
    on_death: OnDeath,
) -> None:
    world = World(on_death)
    hand = world.volunteer(2)
    assert hand.told == [Notice(True)]
    assert world.supervisor.is_by_hand("rng0")
    assert world.wiring.waits == [True]
    assert world.spares.ready == 1

    world.die(hand, status=0)
    world.serve(3)

    assert world.machine.told[-1] == "rng0: spec"  # and not one that fails every request
    assert not world.supervisor.is_by_hand("rng0")
    assert world.supervisor.device("rng0") is world.device
    assert not any("stop" in event or "pause" in event for event in world.machine.events)


def test_one_by_hand_that_holds_its_place_is_followed_by_who_is_told_to() -> None:
    world = World()
    world.die(world.volunteer(2, holds=True), status=0)
    assert world.supervisor.child("rng0") is None
    assert world.spares.given == []

    hand = world.volunteer(3, holds=True)
    assert world.supervisor.child("rng0") is cast(Any, hand)
    world.die(hand, status=0)
    world.supervisor.restart("rng0", world.answers.append)
    world.serve(4)

    assert world.answers == [Served(4, 77, 5_000_000)]
    world.die(world.spares.given[-1])  # that one holds nothing
    assert len(world.spares.given) == 2


def test_one_by_hand_that_does_not_fit_is_told_why_before_it_is_killed() -> None:
    world = World()
    hand = FakeHand("hand")
    world.supervisor.volunteer("rng0", cast(Any, hand), "mine.py", holds=True)
    world.bound(2)
    world.offers(2, b"else")

    assert hand.told == [Notice(False, "b'else' is not b'fits'", 2)]
    assert not hand.is_killed
    world.fire()
    assert hand.is_killed
    assert world.supervisor.child("rng0") is cast(Any, world.child)
    world.die(hand, status=0)
    world.die(world.child)
    assert len(world.spares.given) == 1  # it never held anything


def test_one_by_hand_is_sent_away_while_another_is_on_its_way() -> None:
    world = World()
    world.swap()

    assert world.volunteer(3).told == [Notice(False, "another successor is on its way", 3)]


# ── several devices in one process ────────────────────────────────────────────────────────


class Shared(World):
    """rng0 and rng1 are served by process "both"."""

    def __init__(self, on_death: OnDeath = OnDeath.RESTART) -> None:
        super().__init__()
        self.child = FakeChild("both")
        self.supervisor = Supervisor(
            self.machine,
            cast(Wiring, self.wiring),
            cast(Spares, self.spares),
            {
                name: (
                    replace(DEVICE, name=name, on_death=on_death, process="both"),
                    cast(Any, self.child),
                )
                for name in ("rng0", "rng1")
            },
            0.0,
        )

    def come(self, number: int, *names: str) -> None:
        """The successors of that number go all their way, of these devices."""
        for name in names:
            self.supervisor.bound(DeviceBound(name, number))
        for name in names:
            self.supervisor.offers(DeviceOffers(name, number, 0, (64,), b"fits", 60, ()))
            self.supervisor.attached(DeviceAttached(name, number, 5000, 0, 0))


def test_devices_of_one_process_are_followed_by_one_process() -> None:
    world = Shared()

    world.die(world.child)
    world.come(2, "rng0", "rng1")

    (child,) = world.spares.given
    assert child.name == "both"
    assert world.machine.told == ["vmm: successor", "vmm: successor", "both: spec", "both: spec"]
    assert [world.supervisor.child(name) for name in ("rng0", "rng1")] == [child, child]
    assert world.machine.events == [
        "rng0 1 died",
        "rng1 1 died",
        "rng0 2 recovered",
        "rng1 2 recovered",
        "resume for both",
    ]


def test_a_process_that_dies_when_it_serves_one_of_its_devices_is_one_failure() -> None:
    world = Shared()
    world.die(world.child)
    (first,) = world.spares.given
    world.come(2, "rng0")

    world.die(first)

    assert world.machine.events[-2:] == ["rng0 2 died", "rng1 2 failed"]
    assert len([seconds for seconds in world.delays() if seconds < 0.1]) == 1
    world.fire()
    world.come(3, "rng0", "rng1")
    assert len(world.spares.given) == 2
    assert world.supervisor.child("rng1") is world.spares.given[1]


def test_one_that_is_of_no_use_to_a_device_is_killed_and_so_gone_for_all() -> None:
    world = Shared()
    world.die(world.child)
    (first,) = world.spares.given

    world.supervisor.failed(DeviceFailed("rng1", 2, "it is none", False))
    assert first.is_killed
    assert world.supervisor.why_busy("rng0") is not None
    world.die(first)

    world.fire()
    world.come(3, "rng0", "rng1")
    assert world.machine.events[-1] == "resume for both"


def test_a_restart_kills_a_process_and_tells_when_its_device_is_served_again() -> None:
    world = Shared(OnDeath.STOP_VM)

    world.supervisor.restart("rng1", world.answers.append)
    assert world.child.is_killed
    world.supervisor.restart("rng0", world.answers.append)
    assert refusals(world) == [(3, "m/rng0: another successor is on its way")]
    world.die(world.child)
    world.come(2, "rng0")
    assert len(world.answers) == 1
    world.come(2, "rng1")

    assert world.answers[1] == Served(2, 77, 5_000_000)
    assert "stop for both" not in world.machine.events


def test_a_restart_that_the_machine_does_not_live_to_see_is_answered() -> None:
    world = Shared()
    world.supervisor.restart("rng1", world.answers.append)

    world.supervisor.end()

    assert refusals(world) == [(3, "m/rng1: the machine ends")]


def test_a_machine_ends_or_waits_once_for_a_process_of_several_devices() -> None:
    for on_death, event in ((OnDeath.STOP_VM, "stop"), (OnDeath.PAUSE_VM, "pause")):
        world = Shared(on_death)
        world.die(world.child)
        assert world.machine.events == ["rng0 1 died", "rng1 1 died", f"{event} for both"]


def test_none_of_several_devices_is_replaced_by_hand() -> None:
    world = Shared()

    hand = world.volunteer(2)

    assert hand.told == [
        Notice(False, "it shares process both with rng1; restart takes them all", 3)
    ]


# Devices that are another program's.


@pytest.fixture
def external() -> World:
    """A device that connects."""
    world = World()
    ward = world.supervisor._wards["rng0"]
    ward.device = replace(world.device, model=replace(LOOK, connects=True))
    return world


def test_one_that_connects_is_connected_anew_compared_and_its_connection_given_away(
    external: World,
) -> None:
    external.die(external.child)
    device = external.supervisor.device("rng0")
    fd = device.fds["back-end"]
    external.bound(2)

    assert external.wiring.waits == [True]
    assert device.fds == {}
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    external.offers(2)
    assert [type(request).__name__ for request, _ in external.machine.requests] == ["Switch"]
    external.attached(2)
    assert external.machine.events[-2:] == ["rng0 2 recovered", "resume for rng0"]


def test_what_comes_back_and_is_something_else_is_tried_again(external: World) -> None:
    external.die(external.child)
    external.bound(2)
    external.offers(2, b"another disk")

    assert external.machine.requests == []
    assert "rng0 2 failed" in external.machine.events
    assert external.spares.given[0].is_killed


def test_somebody_who_does_not_listen_is_looked_for_and_told_of_once(external: World) -> None:
    external.machine.nobody_listens = True
    external.die(external.child)
    for _ in range(3):
        (look,) = [callback for seconds, callback in external.machine.timers if seconds == 0.1]
        external.machine.timers.clear()
        look()
    assert external.spares.given == []
    assert [event for event in external.machine.events if "failed" in event] == ["rng0 1 failed"]

    external.machine.nobody_listens = False
    external.machine.timers.pop()[1]()
    external.serve(2)
    assert "rng0 2 recovered" in external.machine.events
    # The next time it is news again.
    external.machine.nobody_listens = True
    external.die(external.spares.given[-1])
    external.machine.timers[-1][1]()  # it died young
    assert external.machine.events[-1] == "rng0 2 failed"


def test_who_wants_a_restart_is_told_that_nobody_listens(external: World) -> None:
    external.machine.nobody_listens = True
    external.supervisor.restart("rng0", external.answers.append)
    external.die(external.child)

    (answer,) = external.answers
    assert str(answer) == "m/rng0: --device: socket: nobody listens there"


@pytest.mark.parametrize("on_death", [OnDeath.PAUSE_VM, OnDeath.STOP_VM])
def test_under_another_policy_nobody_is_looked_for(external: World, on_death: OnDeath) -> None:
    ward = external.supervisor._wards["rng0"]
    ward.device = replace(ward.device, on_death=on_death)
    external.machine.nobody_listens = True
    external.die(external.child)
    external.supervisor.restart("rng0", external.answers.append)

    assert external.machine.timers == []
    assert len(external.answers) == 1


def test_a_connection_is_not_gone_on_with_by_another_process(external: World) -> None:
    external.die(external.child)
    assert external.supervisor.device("rng0").fds
    external.die(external.spares.given[0])
    assert external.supervisor.device("rng0").fds == {}


def test_one_by_hand_in_its_place_is_connected_to_nobody(external: World) -> None:
    external.machine.nobody_listens = True

    hand = external.volunteer(2)

    assert hand.told == [Notice(True)]


def test_a_restart_hangs_up_first_for_it_may_be_served_alone(external: World) -> None:
    external.supervisor.restart("rng0", external.answers.append)
    ((request, answer),) = external.machine.requests
    assert request == Retire("rng0")
    assert external.spares.given == []
    answer(Done())
    external.machine.timers[-1][1]()
    assert external.child.is_killed  # in case it does not quit

    external.die(external.child, 0)
    external.serve(2)
    assert [answer.generation for answer in external.answers if isinstance(answer, Served)] == [2]
