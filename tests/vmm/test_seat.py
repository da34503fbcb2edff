"""The place of a device: who comes, who goes, and what a driver asks for meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.seats import QUEUES, FakeRemote, Place, place


@pytest.fixture
def here() -> Iterator[Place]:
    with place() as made:
        yield made


def attach(here: Place, remote: FakeRemote) -> str | None:
    return here.seat.attach(remote)  # type: ignore[arg-type]


def switch(here: Place, remote: FakeRemote) -> str | None:
    return here.seat.switch(remote)  # type: ignore[arg-type]


def lose(here: Place, remote: FakeRemote) -> bool:
    return here.seat.lost(remote)  # type: ignore[arg-type]


# ── a process dies, and another comes ─────────────────────────────────────────────────


def test_successor_is_told_what_the_driver_wanted(here: Place) -> None:
    first = here.sit(FakeRemote())
    assert lose(here, first)
    successor = FakeRemote()

    assert attach(here, successor) is None

    assert successor.calls == [("start", [0, 1], b"")]
    assert here.wires.connected == [first.bells, successor.bells]


def test_successor_of_a_device_that_was_never_started_waits(here: Place) -> None:
    lose(here, here.sit(FakeRemote(), running=False))
    successor = FakeRemote()

    assert attach(here, successor) is None

    assert successor.calls == []
    assert here.seat.start(7, QUEUES) is None
    assert successor.calls == [("start", [0, 1], b"")]


def test_driver_starts_resets_and_starts_while_nobody_is_there(here: Place) -> None:
    lose(here, here.sit(FakeRemote()))
    here.note()

    here.seat.stop()
    assert here.noted == [0, 0]
    assert here.seat.start(7, QUEUES[:1]) is None

    successor = FakeRemote()
    assert attach(here, successor) is None
    assert successor.calls == [("start", [0], b"")]


def test_queue_that_was_stopped_while_nobody_was_there_stays_so(here: Place) -> None:
    lose(here, here.sit(FakeRemote()))
    here.note()

    here.seat.stop_queue(0)

    assert here.noted == [0, 1]
    successor = FakeRemote()
    assert attach(here, successor) is None
    assert successor.calls == [("start", [1], b"")]


def test_configuration_is_written_once_there_is_somebody(here: Place) -> None:
    lose(here, here.sit(FakeRemote(config=b"old")))
    assert here.seat.write_config(0, b"new") == b"old"
    successor = FakeRemote(config=b"old")

    assert attach(here, successor) is None

    assert successor.calls == [("write_config", 0, b"new"), ("start", [0, 1], b"")]
    assert here.configs[-1] == b"new"


@pytest.mark.parametrize("how", ["dies", "is replaced"])
def test_every_successor_is_told_what_the_driver_has_written(here: Place, how: str) -> None:
    first = here.sit(FakeRemote(config=b"old"))
    here.seat.write_config(1, b"x")
    here.seat.write_config(0, b"a")
    here.seat.write_config(1, b"b")

    for _ in range(2):
        successor = FakeRemote(config=b"old")
        if how == "dies":
            lose(here, first)
            assert attach(here, successor) is None
        else:
            assert switch(here, successor) is None
        assert successor.calls == [("write_config", 0, b"ab"), ("start", [0, 1], b"")]
        first = successor


def test_one_that_comes_after_a_swap_that_failed_is_told_of_it_too(here: Place) -> None:
    here.sit(FakeRemote())
    here.seat.write_config(0, b"a")
    second, third = FakeRemote(), FakeRemote()
    second.refuses = "no"

    assert switch(here, second) == "no"
    assert attach(here, third) is None

    assert third.calls == [("write_config", 0, b"a"), ("start", [0, 1], b"")]


@pytest.mark.parametrize("written", [False, True])
def test_one_that_was_written_to_and_never_started_is_told_of_the_reset(
    here: Place, written: bool
) -> None:
    first = here.sit(FakeRemote(), running=False)
    if written:
        here.seat.write_config(0, b"a")
    first.calls.clear()

    here.seat.forget()

    assert first.calls == (["stop"] if written else [])


@pytest.mark.parametrize("call", ["stop", "forget"])
def test_what_was_written_before_a_reset_is_nobodys(here: Place, call: str) -> None:
    lose(here, here.sit(FakeRemote(config=b"old"), running=call == "stop"))
    here.seat.write_config(0, b"new")

    getattr(here.seat, call)()

    assert here.seat.start(7, QUEUES) is None
    successor = FakeRemote(config=b"old")
    assert attach(here, successor) is None
    assert successor.calls == [("start", [0, 1], b"")]
    assert here.seat.config == b"old"


@pytest.mark.parametrize("call", ["start", "stop", "stop_queue", "write_config"])
def test_death_in_the_middle_of_a_call_costs_the_driver_nothing(here: Place, call: str) -> None:
    first = here.sit(FakeRemote(), running=call != "start")
    first.dies_in = call
    actions = {
        "start": lambda: here.seat.start(7, QUEUES),
        "stop": here.seat.stop,
        "stop_queue": lambda: here.seat.stop_queue(0),
        "write_config": lambda: here.seat.write_config(0, b"x"),
    }

    actions[call]()

    lose(here, first)
    successor = FakeRemote()
    assert attach(here, successor) is None
    wanted: dict[str, list[object]] = {
        "start": [("start", [0, 1], b"")],
        "stop": [],
        "stop_queue": [("start", [1], b"")],
        "write_config": [("write_config", 0, b"x"), ("start", [0, 1], b"")],
    }
    assert successor.calls == wanted[call]
    assert here.broken == []


def test_death_while_started_is_noted_when_it_happens(here: Place) -> None:
    first = here.sit(FakeRemote(), running=False)
    first.dies_in = "start"

    here.seat.start(7, QUEUES)

    assert here.seat.remote is None
    assert here.seat.empty_since > 0


def test_a_place_is_not_empty_while_something_goes_on_for_the_dead(here: Place) -> None:
    first = here.sit(FakeRemote(), running=False)
    first.dies_in, first.lingers = "start", True

    assert here.seat.start(7, QUEUES) is None

    assert here.seat.remote is first
    first.lingers = False
    assert here.seat.lost(first)  # type: ignore[arg-type]
    assert here.seat.running == QUEUES


def test_successor_that_dies_while_it_is_started_is_not_called_attached(here: Place) -> None:
    lose(here, here.sit(FakeRemote()))
    successor = FakeRemote()
    successor.dies_in = "start"

    assert attach(here, successor) == "rng0 ended while it was started"

    assert here.seat.remote is None
    third = FakeRemote()
    assert attach(here, third) is None
    assert third.calls == [("start", [0, 1], b"")]


def test_what_no_successor_can_read_needs_a_reset(here: Place) -> None:
    lose(here, here.sit(FakeRemote()))
    successor = FakeRemote()
    successor.refuses = "its journal makes no sense"

    assert attach(here, successor) is None

    assert here.broken == ["its journal makes no sense"]
    lose(here, successor)
    third = FakeRemote()
    assert attach(here, third) is None
    assert third.calls == []


def test_successor_without_a_negotiated_feature_is_refused(here: Place) -> None:
    lose(here, here.sit(FakeRemote()))

    assert attach(here, FakeRemote(features=3)) == "it lacks negotiated features: 0x4"
    assert here.seat.remote is None


def test_successor_with_smaller_queues_is_refused(here: Place) -> None:
    lose(here, here.sit(FakeRemote()))
    successor = FakeRemote()
    successor.queue_sizes = (32, 16)

    assert attach(here, successor) == "queue 0 has 64 entries, and it takes fewer"


def test_larger_queues_are_no_larger_than_the_journal(here: Place) -> None:
    successor = FakeRemote()
    successor.queue_sizes = (256, 8)

    here.sit(successor, running=False)

    assert here.seat.queue_sizes == (64, 8)


# ── what a process says unasked ───────────────────────────────────────────────────────


def test_ring_that_is_broken_stays_so_for_a_successor(here: Place) -> None:
    first = here.sit(FakeRemote())
    first.on_broken("the ring is broken")
    assert here.broken == ["the ring is broken"]
    lose(here, first)
    successor = FakeRemote()

    assert attach(here, successor) is None

    assert successor.calls == []
    here.seat.stop()
    assert here.seat.start(7, QUEUES) is None
    assert successor.calls == ["stop", ("start", [0, 1], b"")]


def test_ring_that_breaks_while_a_queue_is_stopped(here: Place) -> None:
    first = here.sit(FakeRemote())
    first.before = lambda call: first.on_broken("broken") if call == "stop_queue" else None

    here.seat.stop_queue(0)
    here.seat.stop_queue(1)

    assert here.seat.running == ()


def test_who_sits_here_no_more_has_no_say(here: Place) -> None:
    first = here.sit(FakeRemote(config=b"mine"))
    successor = FakeRemote(config=b"mine")
    assert switch(here, successor) is None
    before = list(here.configs)

    first.on_config(b"forged")
    first.on_broken("forged")

    assert (here.configs, here.broken) == (before, [])
    assert here.seat.config == b"mine"
    assert len(here.seat.running) == 2


def test_condemned_device_needs_a_reset(here: Place) -> None:
    first = here.sit(FakeRemote())

    here.seat.condemn("it lied in its ring")

    assert first.fenced == "it lied in its ring"
    assert here.broken == ["it lied in its ring"]
    assert here.seat.running == ()


# ── swaps ─────────────────────────────────────────────────────────────────────────────


def test_old_one_is_dead_before_the_new_one_is_led_to_the_guest_and_has_its_state(
    here: Place,
) -> None:
    old, new = here.sit(FakeRemote()), FakeRemote()
    old.leaves = b"state"
    led: list[int] = []
    old.before = lambda call: led.append(len(here.wires.connected))
    new.before = lambda call: old.calls.append(f"new {call}")

    assert switch(here, new) is None

    assert old.calls == ["quiesce", "end", "new start"]
    assert led == [1, 1]  # of the old one alone
    assert new.calls == [("start", [0, 1], b"state")]
    assert here.wires.connected[-1] is new.bells


@pytest.mark.parametrize(
    ("failure", "reason"),
    [("refuses", "no such state"), ("dies_in", "rng0 ended while it was started")],
)
def test_what_the_old_one_left_is_for_who_comes_after_one_that_cannot_serve(
    here: Place, failure: str, reason: str
) -> None:
    old, new = here.sit(FakeRemote()), FakeRemote()
    old.leaves = b"state"
    setattr(new, failure, "no such state" if failure == "refuses" else "start")

    assert switch(here, new) == reason

    assert new.fenced == reason
    assert here.seat.remote is None
    assert here.broken == []
    third, fourth = FakeRemote(), FakeRemote()
    assert attach(here, third) is None
    assert third.calls == [("start", [0, 1], b"state")]
    lose(here, third)
    assert attach(here, fourth) is None
    assert fourth.calls == [("start", [0, 1], b"")]  # what is taken over is not left any more


def test_what_one_left_is_forgotten_with_the_reset_of_its_device(here: Place) -> None:
    old, new = here.sit(FakeRemote()), FakeRemote()
    old.leaves, new.refuses = b"state", "no such state"
    switch(here, new)

    here.seat.stop()

    assert here.seat.start(7, QUEUES) is None
    third = FakeRemote()
    assert attach(here, third) is None
    assert third.calls == [("start", [0, 1], b"")]


def test_unfit_new_one_does_not_disturb_the_old_one(here: Place) -> None:
    old = here.sit(FakeRemote())

    assert switch(here, FakeRemote(features=1)) == "it lacks negotiated features: 0x6"

    assert old.calls == []


def test_old_one_that_dies_in_quiesce_is_a_crash(here: Place) -> None:
    old, new = here.sit(FakeRemote()), FakeRemote()
    old.dies_in = "quiesce"

    assert switch(here, new) is None

    assert new.calls == [("start", [0, 1], b"")]
    assert here.seat.remote is new
    assert old.calls == ["quiesce"]


@pytest.mark.parametrize("dies_in", ["", "quiesce"])
def test_nobody_is_switched_to_while_something_goes_on_for_the_old_one(
    here: Place, dies_in: str
) -> None:
    old, new = here.sit(FakeRemote()), FakeRemote()
    old.dies_in, old.lingers, old.leaves = dies_in, True, b"state"

    reason = switch(here, new)

    assert reason == "rng0 has not come to its end, with what the kernel does for it"
    assert (new.calls, here.seat.remote) == ([], old)
    assert here.seat.lost(old)  # type: ignore[arg-type]
    third = FakeRemote()
    assert attach(here, third) is None
    assert third.calls == [("start", [0, 1], b"" if dies_in else b"state")]


def test_a_place_is_not_empty_while_something_goes_on_for_one_that_refused(here: Place) -> None:
    here.sit(FakeRemote())
    new = FakeRemote()
    new.refuses, new.lingers = "no such state", True

    assert switch(here, new) == "no such state"

    assert here.seat.remote is new


def test_both_die_in_a_switch_and_the_place_is_empty(here: Place) -> None:
    old, new = here.sit(FakeRemote()), FakeRemote()
    old.dies_in, new.dies_in = "quiesce", "start"

    assert switch(here, new) is not None

    assert here.seat.remote is None
    third = FakeRemote()
    assert attach(here, third) is None
    assert third.calls == [("start", [0, 1], b"")]


def test_nothing_new_comes_to_one_that_is_to_be_quiet(here: Place) -> None:
    old = here.sit(FakeRemote())
    halted: list[int] = []
    quiesce = old.quiesce
    old.quiesce = lambda: (halted.append(here.wires.halted), quiesce())[1]  # type: ignore[method-assign]

    assert switch(here, FakeRemote()) is None
    assert halted == [1]


@pytest.mark.parametrize("dies", ["", "quiesce"])
def test_one_that_retires_is_given_nothing_new_and_quits(here: Place, dies: str) -> None:
    old, new = here.sit(FakeRemote()), FakeRemote()
    old.leaves, old.dies_in = b"state", dies

    here.seat.retire()

    assert here.wires.halted == 1
    assert old.calls == ["quiesce", "Quit"]
    here.seat.lost(old)  # type: ignore[arg-type]
    here.seat.retire()  # nobody is there
    assert switch(here, new) is None
    assert new.calls == [("start", [0, 1], b"" if dies else b"state")]


def test_switch_into_a_place_that_has_become_empty(here: Place) -> None:
    lose(here, here.sit(FakeRemote()))
    new = FakeRemote()

    assert switch(here, new) is None

    assert new.calls == [("start", [0, 1], b"")]


def test_death_of_somebody_else_is_none_of_this_place(here: Place) -> None:
    first = here.sit(FakeRemote())

    assert not lose(here, FakeRemote())

    assert here.seat.remote is first
