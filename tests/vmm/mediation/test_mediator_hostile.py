"""What a hostile device can do to its shadow ring, and the typed answer to each.

The device maps that ring whole, descriptors and avail too. These tests write raw structures.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.driver import NEXT, WRITE
from tests.support.mediated import SHADOW, Mediated, mediated
from vmm.mediation import MediatorBroken, MediatorError, Outcome, shadow_size

INTERRUPT = Outcome(ring_device=False, interrupt_guest=True)
SIZE = 8


@pytest.fixture
def them() -> Iterator[Mediated]:
    with mediated(SIZE) as them:
        yield them


def lend(them: Mediated, count: int = 3) -> list[int]:
    """Give the device chains of one readable and two writable descriptors, of 4 bytes each."""
    heads = [them.driver.add([b"in"], [1, 3], indirect=True) for _ in range(count)]
    them.driver.publish()
    them.mediator.kick()
    return heads


def use(them: Mediated, *elements: tuple[int, int], idx: int | None = None) -> None:
    """Write used entries from the first one on, and used.idx behind them, or ``idx``."""
    packed = b"".join(struct.pack("<II", *element) for element in elements)
    them.device_memory.write(them.shadow.used + 4, packed)
    count = len(elements) if idx is None else idx
    them.device_memory.write(them.shadow.used + 2, struct.pack("<H", count))


def broken_by(them: Mediated) -> MediatorError:
    """Why the mediator is broken; that it stays so, and that the guest saw nothing of it."""
    used_before, stale_before = them.driver.used_idx, list(them.stale)
    reasons = []
    for call in (them.mediator.complete, them.mediator.complete, them.mediator.kick):
        with pytest.raises(MediatorBroken) as caught:
            call()
        reasons.append(caught.value.reason)
    assert len(set(reasons)) == 1
    assert (them.driver.used_idx, them.stale) == (used_before, stale_before)
    return reasons[0]


@pytest.mark.parametrize("idx", [3, 8, 9, 0x7FFF, 0x8000, 0xFFFF])
def test_a_used_index_beyond_what_is_in_flight_costs_the_device(them: Mediated, idx: int) -> None:
    lend(them, 2)
    use(them, (0, 0), (3, 0), idx=idx)
    assert broken_by(them) == MediatorError.USED_JUMP


def test_a_used_index_without_anything_in_flight_costs_the_device(them: Mediated) -> None:
    use(them, (0, 0))
    assert broken_by(them) == MediatorError.USED_JUMP


def test_what_came_back_before_is_in_flight_no_more(them: Mediated) -> None:
    lend(them, 2)
    use(them, (0, 0))
    them.mediator.complete()
    use(them, (0, 0), (3, 0), (3, 0))
    assert broken_by(them) == MediatorError.USED_JUMP


def test_a_used_index_that_goes_back_costs_the_device(them: Mediated) -> None:
    lend(them, 2)
    use(them, (0, 0))
    them.mediator.complete()
    use(them, idx=0)
    assert broken_by(them) == MediatorError.USED_JUMP


@pytest.mark.parametrize("id_", [SIZE, SIZE + 1, 0x1_0000, 0x8000_0000, 0xFFFF_FFFF])
def test_an_id_outside_the_table_costs_the_device(them: Mediated, id_: int) -> None:
    lend(them)
    use(them, (id_, 0))
    assert broken_by(them) == MediatorError.ID_OUT_OF_RANGE


@pytest.mark.parametrize("id_", [1, 2, 4, 6, 7])
def test_an_id_that_is_no_head_in_flight_costs_the_device(them: Mediated, id_: int) -> None:
    lend(them, 2)  # heads 0 and 3; the others are inside of chains, or free
    use(them, (id_, 0))
    assert broken_by(them) == MediatorError.ID_NOT_IN_FLIGHT


def test_an_id_twice_in_a_batch_costs_the_device(them: Mediated) -> None:
    lend(them, 2)
    use(them, (3, 0), (3, 0))
    assert broken_by(them) == MediatorError.ID_NOT_IN_FLIGHT


def test_an_id_that_was_used_before_costs_the_device(them: Mediated) -> None:
    lend(them, 2)
    use(them, (3, 0))
    them.mediator.complete()
    use(them, (3, 0), (3, 0))
    assert broken_by(them) == MediatorError.ID_NOT_IN_FLIGHT


@pytest.mark.parametrize("written", [5, 0x1_0000, 0x8000_0000, 0xFFFF_FFFF])
def test_more_written_than_the_chain_takes_costs_the_device(them: Mediated, written: int) -> None:
    lend(them)
    use(them, (0, written))
    assert broken_by(them) == MediatorError.TOO_MUCH_WRITTEN


def test_anything_written_into_a_chain_without_room_costs_the_device(them: Mediated) -> None:
    them.driver.add([b"readable"])
    them.driver.publish()
    them.mediator.kick()
    use(them, (0, 1))
    assert broken_by(them) == MediatorError.TOO_MUCH_WRITTEN


def test_of_a_batch_with_one_fault_nothing_is_published_and_all_is_told_at_the_end(
    them: Mediated,
) -> None:
    lend(them, 2)
    use(them, (0, 4), (3, 5))

    assert broken_by(them) == MediatorError.TOO_MUCH_WRITTEN
    assert them.mediator.in_flight == 2
    them.mediator.close()

    assert sorted(length for _, length in them.stale) == [1, 1, 3, 3]


def test_what_came_before_the_fault_stays_published(them: Mediated) -> None:
    heads = lend(them, 2)
    use(them, (3, 0))
    assert them.mediator.complete() == INTERRUPT
    use(them, (3, 0), (99, 0))
    broken_by(them)
    assert [used.head for used in them.driver.collect()] == [heads[1]]


def test_descriptors_that_the_device_rewrites_change_nothing(them: Mediated) -> None:
    heads = lend(them, 2)
    honest = them.device_memory.read(them.shadow.desc, 16 * 6)
    forged = struct.pack("<QIHH", 0x1000, 0xFFFF_FFFF, WRITE | NEXT, 1)
    them.device_memory.write(them.shadow.desc, forged * SIZE)
    use(them, (3, 4), (0, 2))

    assert them.mediator.complete() == INTERRUPT
    used = them.driver.collect()

    buffers = [(gpa, length) for gpa, length, _, _ in struct.iter_unpack("<QIHH", honest)]
    assert [(one.head, one.written) for one in used] == [(heads[1], 4), (heads[0], 2)]
    assert them.stale == [*buffers[4:6], *buffers[1:3]]
    lend(them, 2)
    assert them.device_memory.read(them.shadow.desc, 16 * 6) == honest


def test_an_avail_ring_that_the_device_rewrites_is_not_read(them: Mediated) -> None:
    lend(them, 1)
    them.device_memory.write(them.shadow.avail, struct.pack("<HHH", 0xFFFF, 0x7777, 0x6666))
    use(them, (0, 4))
    assert them.mediator.complete() == INTERRUPT

    lend(them, 1)

    avail = them.device_memory.read(them.shadow.avail, 8)
    assert struct.unpack("<HHHH", avail)[1] == 2
    assert len(them.driver.collect()) == 1


elements = st.lists(
    st.tuples(
        st.one_of(st.sampled_from([0, 3, 6, SIZE]), st.integers(0, (1 << 32) - 1)),
        st.one_of(st.integers(0, 5), st.integers(0, (1 << 32) - 1)),
    ),
    max_size=SIZE,
)


@settings(max_examples=200, deadline=None)
@given(
    rounds=st.lists(
        st.tuples(elements, st.one_of(st.integers(0, 6), st.integers(0, 0xFFFF))), max_size=4
    ),
    scribble=st.binary(min_size=shadow_size(SIZE), max_size=shadow_size(SIZE)),
)
def test_whatever_a_device_writes_the_guest_sees_only_its_own_chains(
    rounds: list[tuple[list[tuple[int, int]], int]], scribble: bytes
) -> None:
    with mediated(SIZE) as them:
        for elements, idx in rounds:
            lend(them, min(2, SIZE - them.driver.pending))
            them.device_memory.write(SHADOW.gpa, scribble)
            use(them, *elements, idx=idx)
            try:
                them.mediator.complete()
            except MediatorBroken:
                break
            # Raises if a head was not offered, or more came back than its buffers hold.
            them.driver.collect()
            assert them.mediator.in_flight <= them.driver.pending
        them.mediator.close()
