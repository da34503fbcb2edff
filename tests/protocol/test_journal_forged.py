"""Journals that no working engine left are refused with a reason, and not a byte is changed."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import journal
from protocol.journal import Journal, QueueJournal
from protocol.ring import RingBroken, RingError
from tests.support.driver import Driver
from tests.support.ring_pair import attach, guest_memory

SIZE = 4


@contextmanager
def left_behind() -> Iterator[tuple[Driver, QueueJournal]]:
    """Of four chains 0, 1 and 2 were popped, 2 and then 1 completed in one batch, as 10 and 11 of
    used.idx; the device died before it had settled them."""
    fd = journal.create("test", [SIZE])
    try:
        with guest_memory() as memory, Journal(fd, [SIZE]) as kept:
            driver = Driver(memory, SIZE, start=10)
            for _ in range(4):
                driver.add([b"x"])
            driver.publish()
            queue = kept.queue(0)
            with attach(driver, journal=queue) as ring:
                ring.pop(3)
                ring.push([(2, 0), (1, 0)], position=77)
            put(queue, used_idx=10)
            for head in (1, 2):
                put_entry(queue, head, inflight=1)
            yield driver, queue
    finally:
        os.close(fd)


HEADER = {"features": "Q", "version": "H", "desc_num": "H", "last_batch_head": "H", "used_idx": "H"}
ENTRY = {"inflight": "B5x", "next": "H", "counter": "Q"}


def put(queue: QueueJournal, at: int = 0, fields: dict[str, str] = HEADER, **values: int) -> None:
    """Overwrite fields of the header."""
    for name, value in values.items():
        before = "<" + "".join(list(fields.values())[: list(fields).index(name)])
        where = at + struct.calcsize(before)
        struct.pack_into("<" + fields[name][0], queue.region, where, value)


def put_entry(queue: QueueJournal, head: int, **values: int) -> None:
    """Overwrite fields of a descriptor's entry."""
    put(queue, 16 + 16 * head, ENTRY, **values)


def put_slot(queue: QueueJournal, slot: int, used_idx: int) -> None:
    struct.pack_into("<H", queue.positions, 16 * slot + 8, used_idx)


def test_the_journal_is_good_before_it_is_forged() -> None:
    with left_behind() as (driver, queue), attach(driver, journal=queue) as ring:
        assert (ring.in_flight, ring.position) == (1, 77)
        assert [chain.head for chain in ring.pop()] == [0, 3]


FORGERIES = {
    "a version of the future": (RingError.JOURNAL_VERSION, lambda q: put(q, version=2)),
    "the greatest version": (RingError.JOURNAL_VERSION, lambda q: put(q, version=0xFFFF)),
    "a feature": (RingError.JOURNAL_VERSION, lambda q: put(q, features=1)),
    "the last feature": (RingError.JOURNAL_VERSION, lambda q: put(q, features=1 << 63)),
    "of a smaller queue": (RingError.JOURNAL_SIZE, lambda q: put(q, desc_num=2)),
    "of a larger queue": (RingError.JOURNAL_SIZE, lambda q: put(q, desc_num=8)),
    "of no queue": (RingError.JOURNAL_SIZE, lambda q: put(q, desc_num=0)),
    "too far behind": (RingError.JOURNAL_USED_IDX, lambda q: put(q, used_idx=12 - SIZE - 1)),
    "ahead": (RingError.JOURNAL_USED_IDX, lambda q: put(q, used_idx=13)),
    "a batch that begins nowhere": (RingError.JOURNAL_LINK, lambda q: put(q, last_batch_head=SIZE)),
    "a batch that leads nowhere": (RingError.JOURNAL_LINK, lambda q: put_entry(q, 1, next=0xFFFF)),
    "a batch that leads to itself": (RingError.JOURNAL_LINK, lambda q: put_entry(q, 1, next=1)),
    "a batch of all that comes round": (
        RingError.JOURNAL_LINK,
        lambda q: (put(q, used_idx=12 - SIZE), put_entry(q, 2, next=1)),
    ),
    "a flag of 2": (RingError.JOURNAL_INFLIGHT, lambda q: put_entry(q, 3, inflight=2)),
    "a flag of 255": (RingError.JOURNAL_INFLIGHT, lambda q: put_entry(q, 0, inflight=255)),
    "a flag of 128 in the last batch": (
        RingError.JOURNAL_INFLIGHT,
        lambda q: put_entry(q, 1, inflight=128),
    ),
    "more in flight than made available": (
        RingError.JOURNAL_TOO_MANY,
        lambda q: (put(q, used_idx=12), put_entry(q, 1, counter=50)),
    ),
    "a counter twice": (
        RingError.JOURNAL_COUNTER,
        lambda q: put_entry(q, 3, inflight=1, counter=0),
    ),
    "a counter beyond all": (
        RingError.JOURNAL_COUNTER,
        lambda q: put_entry(q, 0, counter=1 << 63),
    ),
    "the greatest counter": (
        RingError.JOURNAL_COUNTER,
        lambda q: put_entry(q, 0, counter=(1 << 64) - 1),
    ),
    "no position": (RingError.JOURNAL_POSITION, lambda q: (put_slot(q, 0, 9), put_slot(q, 1, 13))),
}


@pytest.mark.parametrize(("reason", "forge"), FORGERIES.values(), ids=FORGERIES)
def test_a_forged_journal_is_refused_and_left_alone(reason: RingError, forge: object) -> None:
    with left_behind() as (driver, queue):
        assert callable(forge)
        forge(queue)
        before = bytes(queue.region), bytes(queue.positions)
        ram = driver.memory.read(driver.desc, 4096)

        with pytest.raises(RingBroken, match="bad journal") as refused:
            attach(driver, journal=queue)

        assert refused.value.reason is reason
        assert (bytes(queue.region), bytes(queue.positions)) == before
        assert driver.memory.read(driver.desc, 4096) == ram


def test_every_reason_is_in_the_table() -> None:
    reasons = {reason for reason in RingError if reason.name.startswith("JOURNAL")}
    assert {reason for reason, _ in FORGERIES.values()} == reasons


def test_the_rest_of_a_larger_journal_is_not_looked_at() -> None:
    fd = journal.create("test", [16])
    try:
        with guest_memory() as memory, Journal(fd, [16]) as kept:
            put_entry(kept.queue(0), SIZE, inflight=0xFF)
            driver = Driver(memory, SIZE)
            for _ in range(2):
                with attach(driver, journal=kept.queue(0)) as ring:
                    assert ring.pop() == []
    finally:
        os.close(fd)


# Arbitrary ones. Values are drawn near the good ones, or all would end at the version.

near = st.one_of(st.integers(0, SIZE + 1), st.integers(8, 13), st.integers(0, 0xFFFF))
entries = st.tuples(st.sampled_from([0, 0, 1, 1, 2]), near, st.integers(0, 6))


@settings(max_examples=500, deadline=None)
@given(
    header=st.tuples(st.just(0), st.just(1), st.just(SIZE), near, st.integers(7, 13)),
    table=st.lists(entries, min_size=SIZE, max_size=SIZE),
    slots=st.lists(st.tuples(st.integers(0, 9), st.integers(10, 14)), min_size=2, max_size=2),
    stray=st.one_of(st.none(), st.tuples(st.integers(0, 79), st.integers(0, 255))),
)
def test_any_journal_is_refused_or_makes_a_ring_that_works(
    header: tuple[int, ...],
    table: list[tuple[int, int, int]],
    slots: list[tuple[int, int]],
    stray: tuple[int, int] | None,
) -> None:
    with left_behind() as (driver, queue):
        struct.pack_into("<Q4H", queue.region, 0, *header)
        for head, entry in enumerate(table):
            struct.pack_into("<B5xHQ", queue.region, 16 + 16 * head, *entry)
        struct.pack_into("<QHxxxxxxQH", queue.positions, 0, *slots[0], *slots[1])
        if stray:
            queue.region[stray[0]] = stray[1]
        left = [head for head, (inflight, _, _) in enumerate(table) if inflight]
        try:
            ring = attach(driver, journal=queue)
        except RingBroken as refused:
            reason = refused.reason
            ring = None
        if ring is None:
            assert reason.name.startswith("JOURNAL")
            return
        with ring:
            assert ring.in_flight <= 2
            chains = ring.pop(ring.in_flight)
            assert ring.in_flight == len(chains)
            if not stray:
                assert {chain.head for chain in chains} <= set(left)
                counters = [table[chain.head][2] for chain in chains]
                assert counters == sorted(set(counters))
            ring.push([(chain.head, 0) for chain in chains])
            assert ring.in_flight == 0
            put_back = struct.unpack_from("<H", queue.region, 14)[0]
            assert put_back == driver.used_idx == 12 + len(chains)
