"""What a mediator with an arena lets a device see of a guest, and a guest of a device."""

from __future__ import annotations

import contextlib
import struct
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.messages import QueueSetup
from protocol.ring import Chain
from tests.support.driver import NEXT, WRITE, Driver, OutOfRoom
from tests.support.mediated import ARENA, SHADOW, Mediated, attach, mediated, memories, shadow_ring
from tests.support.ring_pair import HIGH, LOW
from vmm.mediation import (
    Arena,
    Mediator,
    MediatorBroken,
    MediatorError,
    largest_chain,
    lay_out,
)

SIZE = 4096


def descriptors(them: Mediated, count: int) -> list[tuple[int, int, int, int]]:
    table = them.device_memory.read(them.shadow.desc, 16 * count)
    return list(struct.iter_unpack("<QIHH", table))


def places(them: Mediated, head: int, writable: int) -> list[tuple[int, int]]:
    """Address and length of what is readable (0), or writable (WRITE), of a chain."""
    found, index, flags = [], head, NEXT
    while flags & NEXT:
        raw = them.driver.memory.read(them.driver.desc + 16 * index, 16)
        gpa, length, flags, index = struct.unpack("<QIHH", raw)
        if flags & WRITE == writable:
            found.append((gpa, length))
    return found


def bounce(them: Mediated) -> bytes:
    return bytes(them.device_memory.view(ARENA, SIZE))


def popped(them: Mediated) -> Chain:
    (chain,) = them.device.pop()
    return chain


# What crosses, and how far.


def test_a_request_and_its_answer_cross_as_one_buffer_each_way() -> None:
    with mediated(arena=SIZE) as them:
        head = them.driver.add([b"GET ", b"sector 7"], [3, 8, 1], indirect=True)
        them.driver.publish()
        assert them.mediator.kick().ring_device

        chain = popped(them)
        assert (chain.readable.read(), chain.writable.size) == (b"GET sector 7", 12)
        assert descriptors(them, 2) == [(ARENA, 12, NEXT, 1), (ARENA + 64, 12, WRITE, 0)]

        chain.writable.write(b"contents, 1!")
        them.device.push([(chain.head, 12)])
        assert them.mediator.complete().interrupt_guest
        (used,) = them.driver.collect()
        assert (used.head, used.written, used.data) == (head, 12, b"contents, 1!")


def test_no_address_of_the_guests_is_any_to_the_device() -> None:
    with mediated(arena=SIZE) as them:
        assert them.device_memory.regions == (SHADOW,)
        them.driver.add([b"x" * 100], [100])
        them.driver.publish()
        them.mediator.kick()
        for address, length, _, _ in descriptors(them, 2):
            assert ARENA <= address <= address + length <= ARENA + SIZE


@pytest.mark.parametrize("readable", [[], [b""], [b"r"]])
@pytest.mark.parametrize("writable", [[], [0], [1]])
def test_what_is_empty_takes_no_descriptor_but_the_first(
    readable: list[bytes], writable: list[int]
) -> None:
    if not readable and not writable:
        return  # no chain at all
    with mediated(arena=SIZE) as them:
        them.driver.add(readable, writable)
        them.driver.publish()
        them.mediator.kick()
        chain = popped(them)
        assert chain.error is None
        assert (chain.readable.size, chain.writable.size) == (
            len(b"".join(readable)),
            sum(writable),
        )
        chain.writable.write(b"w")
        them.device.push([(chain.head, chain.writable.written)])
        them.mediator.complete()
        (used,) = them.driver.collect()
        assert used.data == b"w"[: sum(writable)]


def test_no_more_comes_back_than_the_device_says_it_wrote() -> None:
    with mediated(arena=SIZE) as them:
        head = them.driver.add([], [4, 4, 4])
        where = places(them, head, WRITE)
        for gpa, length in where:
            them.driver.memory.write(gpa, b"." * length)
        them.driver.publish()
        them.mediator.kick()
        chain = popped(them)
        chain.writable.write(b"ABCDEFGHIJKL")
        them.device.push([(chain.head, 6)])
        them.mediator.complete()

        found = [them.driver.memory.read(gpa, length) for gpa, length in where]
        assert found == [b"ABCD", b"EF..", b"...."]
        assert them.stale == [(where[0][0], 4), (where[1][0], 2)], "and told of just that"


def test_a_length_that_says_more_than_there_is_room_for_breaks_the_ring() -> None:
    with mediated(arena=SIZE) as them:
        head = them.driver.add([], [4])
        ((gpa, _),) = places(them, head, WRITE)
        them.driver.memory.write(gpa, b"." * 8)
        them.driver.publish()
        them.mediator.kick()
        them.device_memory.write(them.shadow.used + 4, struct.pack("<II", 0, 5))
        them.device_memory.write(them.shadow.used + 2, struct.pack("<H", 1))
        with pytest.raises(MediatorBroken) as caught:
            them.mediator.complete()
        assert caught.value.reason == MediatorError.TOO_MUCH_WRITTEN
        assert them.driver.memory.read(gpa, 8) == b"." * 8


def test_a_length_that_says_more_than_was_written_gives_what_was_there_before_of_this_device() -> (
    None
):
    with mediated(arena=SIZE) as them:
        for answer in (b"first...", b"2nd"):
            them.driver.add([], [8])
            them.driver.publish()
            them.mediator.kick()
            chain = popped(them)
            chain.writable.write(answer)
            them.device.push([(chain.head, 8)])
            them.mediator.complete()
        assert [used.data for used in them.driver.collect()] == [b"first...", b"2ndst..."]


def test_a_late_write_does_not_reach_the_guest() -> None:
    with mediated(arena=SIZE) as them:
        head = them.driver.add([], [8])
        ((gpa, _),) = places(them, head, WRITE)
        them.driver.publish()
        them.mediator.kick()
        buffer = popped(them).writable.buffers()[0]
        buffer[:] = b"in time."
        them.device.push([(0, 8)])
        them.mediator.complete()
        buffer[:] = b"too late"
        them.mediator.complete()
        assert them.driver.memory.read(gpa, 8) == b"in time."


def test_what_was_written_and_not_published_does_not_reach_the_guest() -> None:
    with mediated(arena=SIZE) as them:
        head = them.driver.add([], [8])
        ((gpa, _),) = places(them, head, WRITE)
        them.driver.memory.write(gpa, b"." * 8)
        them.driver.publish()
        them.mediator.kick()
        popped(them).writable.write(b"half way")
        them.mediator.complete()
        them.mediator.close()
        assert them.driver.memory.read(gpa, 8) == b"." * 8
        assert them.stale == []


def test_what_may_be_read_is_a_copy_in_both_directions() -> None:
    with mediated(arena=SIZE) as them:
        head = them.driver.add([b"the guest's"])
        ((gpa, _),) = places(them, head, 0)
        them.driver.publish()
        them.mediator.kick()
        assert bounce(them)[:11] == b"the guest's"
        them.device_memory.write(ARENA, b"device's...")
        assert them.driver.memory.read(gpa, 11) == b"the guest's"
        them.driver.memory.write(gpa, b"changed now")
        assert bounce(them)[:11] == b"device's..."


def test_nothing_but_what_was_lent_is_in_the_arena() -> None:
    with mediated(arena=SIZE) as them:
        them.driver.memory.write(LOW.gpa + 0x8000, b"\xa5" * 0x1000)
        them.driver.add([b"lent"], [32])
        them.driver.publish()
        them.mediator.kick()
        assert bounce(them) == b"lent".ljust(SIZE, b"\0")


def test_a_broken_used_ring_reaches_nothing() -> None:
    with mediated(arena=SIZE) as them:
        head = them.driver.add([], [8])
        ((gpa, _),) = places(them, head, WRITE)
        them.driver.memory.write(gpa, b"." * 8)
        them.driver.publish()
        them.mediator.kick()
        for used_id in (99, 1):
            them.device_memory.write(them.shadow.used + 4, struct.pack("<II", used_id, 8))
            them.device_memory.write(them.shadow.used + 2, struct.pack("<H", 1))
            with pytest.raises(MediatorBroken):
                them.mediator.complete()
        assert them.driver.memory.read(gpa, 8) == b"." * 8


# Where there is no room.


def test_chains_that_do_not_fit_wait_and_all_come_through_in_order() -> None:
    with mediated(64, arena=SIZE) as them:
        for index in range(32):
            them.driver.add([bytes([index]) * 700], [600])
        them.driver.publish()
        seen = []
        outcome = them.mediator.kick()
        while outcome.ring_device:
            chains = them.device.pop()
            assert len(chains) <= 3, "4096 bytes hold no more"
            for chain in chains:
                seen.append(chain.readable.read())
                chain.writable.write(bytes([seen[-1][0] ^ 0xFF]) * 600)
            them.device.push([(chain.head, 600) for chain in chains])
            outcome = them.mediator.complete()
        assert seen == [bytes([index]) * 700 for index in range(32)]
        assert [used.data for used in them.driver.collect()] == [
            bytes([index ^ 0xFF]) * 600 for index in range(32)
        ]


def test_a_chain_that_stays_is_in_nobodys_way() -> None:
    with mediated(16, arena=SIZE) as them:
        them.driver.add([], [16])
        them.driver.publish()
        them.mediator.kick()
        held = popped(them)
        for turn in range(100):
            them.driver.add([b"%d" % turn * 500], [SIZE // 3])
            them.driver.publish()
            assert them.mediator.kick().ring_device
            chain = popped(them)
            assert chain.readable.read() == b"%d" % turn * 500
            them.device.push([(chain.head, 0)])
            them.mediator.complete()
            them.driver.collect()
        held.writable.write(b"late, but right.")
        them.device.push([(held.head, 16)])
        them.mediator.complete()
        assert [used.data for used in them.driver.collect()] == [b"late, but right."]


def test_what_is_given_back_out_of_order_is_used_again() -> None:
    with mediated(16, arena=SIZE) as them:
        for _ in range(4):
            them.driver.add([b"x" * 1024])
        them.driver.publish()
        them.mediator.kick()
        chains = them.device.pop()
        them.device.push([(chains[position].head, 0) for position in (2, 1)])
        them.mediator.complete()
        them.driver.add([b"y" * 2048])
        them.driver.publish()
        assert them.mediator.kick().ring_device, "the two were neighbours"
        assert popped(them).readable.read() == b"y" * 2048
        assert [chains[position].readable.read() for position in (0, 3)] == [b"x" * 1024] * 2


@pytest.mark.parametrize(("readable", "writable"), [(SIZE + 1, 0), (0, SIZE + 1), (64, SIZE)])
def test_a_chain_larger_than_the_arena_is_refused_and_counted(readable: int, writable: int) -> None:
    with mediated(arena=SIZE) as them:
        refused = them.driver.add(
            [b"x" * readable] if readable else [], [writable] if writable else []
        )
        them.driver.add([b"fits"])
        them.driver.publish()
        outcome = them.mediator.kick()
        assert (outcome.ring_device, outcome.interrupt_guest) == (True, True)
        assert [(used.head, used.written) for used in them.driver.collect()] == [(refused, 0)]
        assert popped(them).readable.read() == b"fits"
        assert (them.mediator.too_large, them.mediator.counters.errors) == (1, 1)


def test_the_largest_chain_fits_however_it_is_divided() -> None:
    largest = largest_chain(SIZE)
    for readable in (0, 1, 63, 64, 65, 1000, largest):
        with mediated(arena=SIZE) as them:
            them.driver.add([b"x" * readable] if readable else [], [largest - readable])
            them.driver.publish()
            assert them.mediator.kick().ring_device
            assert them.mediator.too_large == 0
    assert largest_chain(100) == 0


# Those who come after.


def test_a_successor_finds_what_the_guest_said_whatever_the_dead_one_left() -> None:
    with mediated(arena=SIZE) as them:
        them.driver.add([b"first"], [5])
        them.driver.add([b"second"], [5])
        them.driver.publish()
        them.mediator.kick()
        used = them.shadow.used - SHADOW.gpa
        view = them.device_memory.view(SHADOW.gpa, SHADOW.size)
        view[:used] = b"\xa5" * used
        view[ARENA - SHADOW.gpa :][:SIZE] = b"\xa5" * SIZE

        them.mediator.restore()
        with shadow_ring(them.device_memory, them.shadow) as successor:
            chains = successor.pop()
            assert [chain.readable.read() for chain in chains] == [b"first", b"second"]
            for chain in chains:
                chain.writable.write(b"right")
            successor.push([(chain.head, 5) for chain in chains])
        them.mediator.complete()
        assert [used.data for used in them.driver.collect()] == [b"right"] * 2


@pytest.mark.parametrize("arena", [0, SIZE])
def test_those_without_a_journal_lose_and_repeat_nothing_whenever_they_die(arena: int) -> None:
    # Each goes by the ring alone, from used.idx on. Requests stay with it for longer than a round
    # of the ring, and come back in any order, seen by the mediator or not when it dies.
    dice, lent, answered = Random(arena), list[bytes](), 0
    with mediated(size=16, arena=arena) as them, contextlib.ExitStack() as successors:
        device, has = them.device, list[tuple[int, bytes]]()
        for number in range(2000):
            content = b"%d" % number
            with contextlib.suppress(OutOfRoom):
                them.driver.add([content], [1])
                them.driver.publish()
                them.mediator.kick()
                lent.append(content)
            has += [(chain.head, chain.readable.read()) for chain in device.pop(dice.randint(0, 4))]
            for head, content in dice.sample(has, dice.randint(0, len(has))):
                has.remove((head, content))
                lent.remove(content)
                device.push([(head, 0)])
                answered += 1
            if dice.random() < 0.3:
                them.mediator.restore()
                device = successors.enter_context(shadow_ring(them.device_memory, them.shadow))
                has = [(chain.head, chain.readable.read()) for chain in device.pop(16)]
                assert [content for _, content in has] == lent
            if dice.random() < 0.5:
                them.mediator.complete()
                them.driver.collect()
        assert answered > 1000
        assert them.mediator.counters.chains == answered + len(lent)


def test_what_a_dead_one_broke_breaks_nothing_further_and_is_told_afterwards() -> None:
    with mediated(arena=SIZE) as them:
        them.driver.add([b"x"], [1])
        them.driver.publish()
        them.mediator.kick()
        them.device_memory.write(them.shadow.used + 2, (9).to_bytes(2, "little"))

        them.mediator.restore()
        with pytest.raises(MediatorBroken, match="USED_JUMP"):
            them.mediator.complete()


# Misplaced.


@pytest.mark.parametrize(
    "arena",
    [
        Arena(ARENA + 8, SIZE),
        Arena(SHADOW.gpa + SHADOW.size - 64, SIZE),
        Arena(SHADOW.gpa - 64, SIZE),
        Arena(LOW.gpa, SIZE),
    ],
)
def test_an_arena_is_where_the_device_can_see_it(arena: Arena) -> None:
    with memories() as (guest, shadow_memory, _):
        driver = Driver(guest, 16)
        with pytest.raises(ValueError, match="misplaced"):
            Mediator(
                guest,
                QueueSetup(0, 16, driver.desc, driver.avail, driver.used),
                lay_out(SHADOW.gpa, 16),
                shadow_memory,
                hook=None,
                arena=arena,
                event_idx=False,
                indirect=False,
            )


def test_without_a_hook_nobody_is_told() -> None:
    with memories(bounced=True) as (guest, shadow_memory, device_memory):
        shadow, driver = lay_out(SHADOW.gpa, 16), Driver(guest, 16)
        with (
            attach(driver, shadow, shadow_memory, None, arena=SIZE) as mediator,
            shadow_ring(device_memory, shadow) as device,
        ):
            driver.add([], [3])
            driver.publish()
            mediator.kick()
            (chain,) = device.pop()
            chain.writable.write(b"abc")
            device.push([(chain.head, 3)])
            mediator.complete()
            assert [used.data for used in driver.collect()] == [b"abc"]


# Whatever guest and device say, the guest finds what it would find without the copies.

requests = st.lists(
    st.tuples(
        st.lists(st.binary(max_size=300), max_size=4),
        st.lists(st.integers(0, 300), max_size=4),
        st.booleans(),
        st.binary(max_size=400),
    ),
    min_size=1,
    max_size=12,
)


def conversation(
    asked: list[tuple[list[bytes], list[int], bool, bytes]], order: list[int], arena: int
) -> tuple[list[bytes], list[tuple[int, int, bytes]], bytes]:
    with mediated(32, arena=arena) as them:
        sent: list[bytes] = []
        found: list[tuple[int, int, bytes]] = []
        waiting: list[Chain] = []
        for turn, (readable, writable, indirect, _) in enumerate(asked):
            if not readable and not writable:
                continue
            with contextlib.suppress(OutOfRoom):
                them.driver.add(readable, writable, indirect=indirect)
            them.driver.publish()
            them.mediator.kick()
            new = them.device.pop()
            sent += [chain.readable.read() for chain in new]
            waiting += new
            if waiting and order[turn % len(order)] % 2:
                chain = waiting.pop(order[turn % len(order)] % len(waiting))
                chain.writable.write(asked[turn][3])
                them.device.push([(chain.head, chain.writable.written)])
                them.mediator.complete()
                found += [(used.head, used.written, used.data) for used in them.driver.collect()]
        ram = [them.driver.memory.read(region.gpa, region.size) for region in (LOW, HIGH)]
        return sent, found, b"".join(ram)


@settings(max_examples=60, deadline=None)
@given(asked=requests, order=st.lists(st.integers(0, 20), min_size=1, max_size=6))
def test_an_arena_changes_nothing_for_the_guest(
    asked: list[tuple[list[bytes], list[int], bool, bytes]], order: list[int]
) -> None:
    direct = conversation(asked, order, 0)
    assert conversation(asked, order, 0x2_0000) == direct
