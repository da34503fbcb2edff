"""What the ring engine does for a driver that keeps the rules."""

from __future__ import annotations

import os

import pytest

from protocol.ring import MAX_BATCH, Counters
from tests.support.driver import Driver
from tests.support.ring_pair import attach, guest_memory, ring_pair


def test_a_chain_brings_what_the_driver_sent_and_takes_the_answer_back() -> None:
    with ring_pair() as (driver, ring):
        driver.add([b"GET ", b"sector 7"], [8, 1])
        driver.publish()

        (chain,) = ring.pop()
        sent = chain.readable.read()
        accepted = chain.writable.write(b"contents!")
        ring.push([(chain.head, chain.writable.written)])
        (used,) = driver.collect()

        assert (sent, accepted) == (b"GET sector 7", 9)
        assert (used.head, used.written, used.data) == (chain.head, 9, b"contents!")


def test_an_indirect_chain_reads_like_a_direct_one() -> None:
    with ring_pair(4) as (driver, ring):
        driver.add([b"a", b"bc", b"d"], [2], indirect=True)
        driver.publish()

        (chain,) = ring.pop()

        assert chain.error is None
        assert chain.readable.read() == b"abcd"
        assert chain.writable.size == 2


def test_direct_descriptors_may_be_followed_by_an_indirect_table() -> None:
    with ring_pair() as (driver, ring):
        driver.memory.write(0x2_0000, b"direct,indirect")
        driver.write_descriptor(0, 0x2_0000, 7, 1, 1)
        driver.write_descriptor(1, 0x3_0000, 32, 4 | 2, 0)  # WRITE has to be ignored there
        driver.write_descriptor(0, 0x2_0007, 8, 1, 1, table=0x3_0000)
        driver.write_descriptor(1, 0x2_0100, 5, 2, 0, table=0x3_0000)
        driver.offer(0)
        driver.publish()

        (chain,) = ring.pop()

        assert chain.error is None
        assert chain.readable.read() == b"direct,indirect"
        assert chain.writable.size == 5


def test_an_indirect_table_may_lie_at_any_address() -> None:
    with ring_pair() as (driver, ring):
        driver.memory.write(0x2_0000, b"odd")
        driver.write_descriptor(0, 0x3_0001, 16, 4, 0)
        driver.write_descriptor(0, 0x2_0000, 3, 0, 0, table=0x3_0001)
        driver.offer(0)
        driver.publish()

        (chain,) = ring.pop()

        assert chain.readable.read() == b"odd"


def test_chains_come_in_avail_order_and_a_batch_is_limited() -> None:
    with ring_pair() as (driver, ring):
        heads = [driver.add([bytes([i])]) for i in range(10)]
        driver.publish()

        first, rest, nothing = ring.pop(limit=4), ring.pop(), ring.pop()

        assert [chain.head for chain in first] == heads[:4]
        assert [chain.head for chain in rest] == heads[4:]
        assert nothing == []


def test_a_full_queue_of_longest_chains_arrives_in_several_pops() -> None:
    with ring_pair(256) as (driver, ring):
        for index in range(256):
            driver.write_descriptor(index, 0x4_0000, 256 * 16, 4, 0)
            driver.offer(index)
        for index in range(256):
            more = index < 255
            driver.write_descriptor(
                index, 0x8_0000 + index, 1, int(more), index + 1, table=0x4_0000
            )
        driver.memory.write(0x8_0000, bytes(range(256)))
        driver.publish()

        chains = []
        while batch := ring.pop(MAX_BATCH):
            chains += batch

        assert [chain.head for chain in chains] == list(range(256))
        assert {chain.readable.read() for chain in chains} == {bytes(range(256))}


def test_chains_complete_in_any_order() -> None:
    with ring_pair() as (driver, ring):
        heads = [driver.add([], [4]) for _ in range(3)]
        driver.publish()
        chains = {chain.head: chain for chain in ring.pop()}

        for head in reversed(heads):
            chains[head].writable.write(f"#{head}".encode())
            ring.push([(head, chains[head].writable.written)])

        assert [(used.head, used.data) for used in driver.collect()] == [
            (head, f"#{head}".encode()) for head in reversed(heads)
        ]


def test_a_chain_stays_valid_while_thousands_of_others_come_and_go() -> None:
    with ring_pair(8) as (driver, ring):
        driver.add([], [16])
        driver.publish()
        (held,) = ring.pop()

        for turn in range(3000):
            driver.add([b"%d" % turn], [8], indirect=turn % 2 == 0)
            driver.publish()
            (chain,) = ring.pop()
            assert chain.readable.read() == b"%d" % turn
            ring.push([(chain.head, 0)])
            driver.collect()
        held.writable.write(b"late, but right.")
        ring.push([(held.head, held.writable.written)])

        (used,) = driver.collect()
        assert used.data == b"late, but right."


@pytest.mark.parametrize("event_idx", [False, True])
def test_indices_wrap_at_sixteen_bits(event_idx: bool) -> None:
    with ring_pair(4, event_idx=event_idx, start=0xFFFE) as (driver, ring):
        for turn in range(8):
            driver.add([b"%d" % turn], [1])
            kick = driver.publish()
            (chain,) = ring.pop()
            assert chain.readable.read() == b"%d" % turn
            interrupt = ring.push([(chain.head, 0)])
            assert len(driver.collect()) == 1
            assert not ring.enable_kicks()
            assert not driver.want_interrupts()
            assert (kick, interrupt) == (True, True)
        assert driver.used_idx == driver.avail_idx == 6


def test_a_queue_of_one_works_more_than_65536_times() -> None:
    with ring_pair(1) as (driver, ring):
        for _ in range(65537):
            driver.write16(driver.avail + 2, (driver.avail_idx + 1) & 0xFFFF)
            (chain,) = ring.pop()
            ring.push([(chain.head, 0)])
        assert driver.used_idx == 1
        assert ring.counters.chains == 65537


def test_the_largest_queue_takes_all_its_chains_at_once() -> None:
    with guest_memory() as memory:
        driver = Driver(memory, 32768, base=0, length=0x20_0000)
        with attach(driver) as ring:
            for index in range(32768):
                driver.write_descriptor(index, 0, 1, 0, 0)
                driver.write16(driver.avail + 4 + 2 * index, index)
            driver.write16(driver.avail + 2, 32768)

            heads = []
            while batch := ring.pop(MAX_BATCH):
                heads += [chain.head for chain in batch]
            ring.push([(head, 0) for head in heads])

            assert heads == list(range(32768))
            assert (driver.used_idx, ring.in_flight) == (32768, 0)


def test_a_ring_goes_on_where_used_idx_stands() -> None:
    with ring_pair() as (driver, ring):
        driver.add([b"first"])
        driver.publish()
        ring.push([(ring.pop()[0].head, 0)])
        driver.collect()
        ring.close()

        driver.add([b"second"])
        driver.publish()
        with attach(driver) as successor:
            (chain,) = successor.pop()
            assert chain.readable.read() == b"second"


def test_counters_count() -> None:
    with ring_pair() as (driver, ring):
        for _ in range(3):
            driver.add([b"x"])
        driver.publish()

        first = ring.pop(2)
        ring.pop()
        ring.push([(chain.head, 0) for chain in first])

        assert ring.counters == Counters(chains=3, batches=2, errors=0)
        assert ring.in_flight == 1


def test_zero_length_descriptors_are_tolerated_and_carry_nothing() -> None:
    with ring_pair() as (driver, ring):
        driver.write_descriptor(0, 0xFFFF_FFFF_FFFF_FFFF, 0, 1, 1)  # no byte of it is reached
        driver.write_descriptor(1, 0x2_0000, 4, 1, 2)
        driver.write_descriptor(2, 0x2_0100, 0, 2, 0)
        driver.memory.write(0x2_0000, b"data")
        driver.offer(0)
        driver.publish()

        (chain,) = ring.pop()

        assert chain.error is None
        assert chain.readable.read() == b"data"
        assert (chain.writable.size, chain.writable.buffers()) == (0, [])


# Completions that are the device's own mistake.


def test_completing_a_head_that_is_not_in_flight_raises() -> None:
    with ring_pair() as (driver, ring):
        driver.add([b"x"])
        driver.publish()
        (chain,) = ring.pop()
        ring.push([(chain.head, 0)])

        for head in (chain.head, 5, 16, 0xFFFF_FFFF, -1, 1 << 32):
            with pytest.raises(ValueError, match="head"):
                ring.push([(head, 0)])
        assert driver.used_idx == 1


def test_a_batch_with_one_wrong_completion_publishes_nothing_and_can_be_repeated() -> None:
    with ring_pair() as (driver, ring):
        heads = [driver.add([b"x"]) for _ in range(3)]
        driver.publish()
        ring.pop()

        with pytest.raises(ValueError, match="twice"):
            ring.push([(heads[0], 0), (heads[1], 0), (heads[0], 0)])
        with pytest.raises(ValueError, match="more written"):
            ring.push([(heads[0], 0), (heads[1], 1)])
        assert (driver.used_idx, ring.in_flight) == (0, 3)

        ring.push([(head, 0) for head in heads])
        assert [used.head for used in driver.collect()] == heads


def test_an_empty_push_is_nothing() -> None:
    with ring_pair() as (driver, ring):
        assert ring.push([]) is False
        assert driver.used_idx == 0


def test_a_closed_ring_refuses_everything_and_lets_memory_go() -> None:
    with guest_memory() as memory:
        driver = Driver(memory)
        ring = attach(driver)
        ring.close()
        ring.close()

        for call in (ring.pop, ring.enable_kicks, ring.disable_kicks, lambda: ring.push([])):
            with pytest.raises(ValueError, match="closed"):
                call()


# Readers and writers.


def test_a_reader_reads_across_segments_in_pieces() -> None:
    with ring_pair() as (driver, ring):
        driver.add([b"abc", b"d", b"efgh"])
        driver.publish()
        reader = ring.pop()[0].readable

        assert (reader.size, reader.left) == (8, 8)
        assert [reader.read(2), reader.read(3), reader.read(0)] == [b"ab", b"cde", b""]
        assert (reader.size, reader.left) == (8, 3)
        assert (reader.read(100), reader.read(), reader.read(1)) == (b"fgh", b"", b"")


def test_a_writer_writes_short_when_it_is_full() -> None:
    with ring_pair() as (driver, ring):
        driver.add([], [3, 2])
        driver.publish()
        (chain,) = ring.pop()
        writer = chain.writable

        assert [writer.write(b"ab"), writer.write(b"cdef"), writer.write(b"g")] == [2, 3, 0]
        assert (writer.size, writer.left, writer.written) == (5, 0, 5)

        ring.push([(chain.head, 5)])
        assert driver.collect()[0].data == b"abcde"


def test_buffers_are_guest_memory_itself_and_fit_preadv_and_pwritev() -> None:
    fd = os.memfd_create("file")
    try:
        with ring_pair() as (driver, ring):
            driver.add([b"head", b"to the ", b"file"], [6, 20])
            driver.publish()
            (chain,) = ring.pop()

            chain.readable.read(4)
            written = os.pwritev(fd, chain.readable.buffers(), 0)
            read = os.preadv(fd, chain.writable.buffers(), 0)
            chain.writable.advance(read)
            ring.push([(chain.head, chain.writable.written)])

            assert (written, read) == (11, 11)
            assert driver.collect()[0].data == b"to the file"
    finally:
        os.close(fd)


def test_buffers_can_be_limited_and_consume_nothing() -> None:
    with ring_pair() as (driver, ring):
        driver.add([b"abc", b"def"])
        driver.publish()
        reader = ring.pop()[0].readable

        limited = [bytes(view) for view in reader.buffers(4)]

        assert limited == [b"abc", b"d"]
        assert [bytes(view) for view in reader.buffers(0)] == []
        assert [bytes(view) for view in reader.buffers(99)] == [b"abc", b"def"]
        assert reader.left == 6


@pytest.mark.parametrize("at", range(6))
def test_split_cuts_anywhere_and_both_sides_are_whole(at: int) -> None:
    with ring_pair() as (driver, ring):
        driver.add([], [2, 3])
        driver.publish()
        (chain,) = ring.pop()

        front = chain.writable
        tail = front.split(at)
        tail.write(b"TAIL."[: tail.size])
        front.write(b"front"[: front.size])
        ring.push([(chain.head, front.written + tail.written)])

        assert (front.size, tail.size) == (at, 5 - at)
        assert driver.collect()[0].data == b"front"[:at] + b"TAIL."[: 5 - at]


def test_split_after_reading_keeps_the_count_of_what_was_read() -> None:
    with ring_pair() as (driver, ring):
        driver.add([b"header", b"payload", b"trailer"])
        driver.publish()
        reader = ring.pop()[0].readable

        reader.read(6)
        trailer = reader.split(7)

        assert (reader.size, reader.left, reader.read()) == (13, 7, b"payload")
        assert trailer.read() == b"trailer"


@pytest.mark.parametrize("size", [-1, 6])
def test_more_than_is_left_can_be_neither_advanced_nor_split(size: int) -> None:
    with ring_pair() as (driver, ring):
        driver.add([b"abcde"])
        driver.publish()
        reader = ring.pop()[0].readable

        with pytest.raises(ValueError, match="asked of 5"):
            reader.advance(size)
        with pytest.raises(ValueError, match="asked of 5"):
            reader.split(size)
        assert reader.read() == b"abcde"


def test_a_ring_may_lie_in_any_region() -> None:
    with guest_memory() as memory:
        driver = Driver(memory, base=0x48_0000, length=0x1_0000)
        with attach(driver) as ring:
            driver.add([b"high"])
            driver.publish()
            assert ring.pop()[0].readable.read() == b"high"
