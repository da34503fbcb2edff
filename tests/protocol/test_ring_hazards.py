"""What a hostile driver can do to a ring, and the typed answer to each.

The fixtures write raw structures: a driver that keeps the rules cannot make these.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator

import pytest

from protocol.memory import Region
from protocol.ring import MAX_SEGMENTS, ChainError, Ring, RingBroken, RingError
from tests.support.driver import INDIRECT, NEXT, WRITE, Driver
from tests.support.ring_pair import HIGH, LOW, attach, guest_memory, ring_pair

DATA = 0x2_0000
TABLE = 0x3_0000

MIB = 1 << 20

Pair = tuple[Driver, Ring]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with ring_pair(8) as pair:
        yield pair


def error_of(pair: Pair, head: int = 0) -> ChainError | None:
    """Offer ``head``, pop it, check the promises about faulty chains, complete it."""
    driver, ring = pair
    driver.offer(head)
    driver.publish()
    (chain,) = ring.pop()
    assert chain.head == head
    if chain.error is not None:
        assert (chain.readable.size, chain.writable.size) == (0, 0)
        assert chain.readable.buffers() == chain.writable.buffers() == []
    before = driver.used_idx
    ring.push([(head, 0)])
    assert driver.used_idx == before + 1
    return chain.error


def broken_by(pair: Pair) -> RingError:
    with pytest.raises(RingBroken) as caught:
        pair[1].pop()
    return caught.value.reason


# Row 1: loops, and chains longer than the queue.


@pytest.mark.parametrize("length", [1, 2, 8])
def test_a_descriptor_loop_costs_the_request(pair: Pair, length: int) -> None:
    for index in range(length):
        pair[0].write_descriptor(index, DATA, 1, NEXT, (index + 1) % length)
    assert error_of(pair) == ChainError.TOO_LONG


def test_a_loop_inside_an_indirect_table_costs_the_request(pair: Pair) -> None:
    pair[0].write_descriptor(0, TABLE, 32, INDIRECT, 0)
    pair[0].write_descriptor(0, DATA, 1, NEXT, 1, table=TABLE)
    pair[0].write_descriptor(1, DATA, 0, NEXT, 0, table=TABLE)
    assert error_of(pair) == ChainError.TOO_LONG


def test_a_loop_of_empty_descriptors_costs_the_request(pair: Pair) -> None:
    pair[0].write_descriptor(0, DATA, 0, NEXT, 0)
    assert error_of(pair) == ChainError.TOO_LONG


@pytest.mark.parametrize(("direct", "expected"), [(3, None), (4, ChainError.TOO_LONG)])
def test_direct_and_indirect_descriptors_count_together(
    pair: Pair, direct: int, expected: ChainError | None
) -> None:
    for index in range(direct):
        pair[0].write_descriptor(index, DATA, 1, NEXT, index + 1)
    pair[0].write_descriptor(direct, TABLE, 5 * 16, INDIRECT, 0)
    for index in range(5):
        pair[0].write_descriptor(index, DATA, 1, NEXT * (index < 4), index + 1, table=TABLE)
    assert error_of(pair) == expected


@pytest.mark.parametrize(
    ("length", "expected"), [(MAX_SEGMENTS, None), (MAX_SEGMENTS + 1, ChainError.TOO_LONG)]
)
def test_no_chain_is_longer_than_preadv_takes(length: int, expected: ChainError | None) -> None:
    with ring_pair(2048) as pair:
        for index in range(length):
            pair[0].write_descriptor(index, DATA, 1, NEXT * (index < length - 1), index + 1)
        assert error_of(pair) == expected


# Row 2: indirect tables.


def test_an_indirect_descriptor_without_the_feature_costs_the_request() -> None:
    with ring_pair(8, indirect=False) as pair:
        pair[0].write_descriptor(0, TABLE, 16, INDIRECT, 0)
        assert error_of(pair) == ChainError.INDIRECT_UNEXPECTED


def test_a_nested_indirect_table_costs_the_request(pair: Pair) -> None:
    pair[0].write_descriptor(0, TABLE, 16, INDIRECT, 0)
    pair[0].write_descriptor(0, TABLE, 16, INDIRECT, 0, table=TABLE)
    assert error_of(pair) == ChainError.INDIRECT_NESTED


def test_indirect_with_next_costs_the_request(pair: Pair) -> None:
    pair[0].write_descriptor(0, TABLE, 16, INDIRECT | NEXT, 1)
    assert error_of(pair) == ChainError.INDIRECT_WITH_NEXT


@pytest.mark.parametrize("length", [0, 1, 15, 17, 0xFFFF_FFFF])
def test_an_indirect_table_of_no_whole_descriptors_costs_the_request(
    pair: Pair, length: int
) -> None:
    pair[0].write_descriptor(0, TABLE, length, INDIRECT, 0)
    assert error_of(pair) == ChainError.INDIRECT_LENGTH


@pytest.mark.parametrize("length", [9 * 16, 0xFFFF_FFF0])
def test_an_indirect_table_larger_than_the_queue_costs_the_request(pair: Pair, length: int) -> None:
    pair[0].write_descriptor(0, TABLE, length, INDIRECT, 0)
    assert error_of(pair) == ChainError.INDIRECT_TOO_LARGE


@pytest.mark.parametrize(
    "address", [LOW.end, LOW.end - 16, HIGH.gpa - 1, HIGH.end - 31, 1 << 63, (1 << 64) - 16]
)
def test_an_indirect_table_outside_ram_costs_the_request(pair: Pair, address: int) -> None:
    pair[0].write_descriptor(0, address, 32, INDIRECT, 0)
    assert error_of(pair) == ChainError.INDIRECT_OUTSIDE_RAM


def test_an_indirect_table_that_ends_with_ram_is_fine(pair: Pair) -> None:
    pair[0].write_descriptor(0, HIGH.end - 16, 16, INDIRECT, 0)
    pair[0].write_descriptor(0, DATA, 1, 0, 0, table=HIGH.end - 16)
    assert error_of(pair) is None


@pytest.mark.parametrize("next_", [2, 8, 0xFFFF])
def test_next_is_limited_by_the_indirect_table_not_by_the_queue(pair: Pair, next_: int) -> None:
    pair[0].write_descriptor(0, TABLE, 32, INDIRECT, 0)
    pair[0].write_descriptor(0, DATA, 1, NEXT, next_, table=TABLE)
    assert error_of(pair) == ChainError.NEXT_OUT_OF_RANGE


@pytest.mark.parametrize("next_", [8, 9, 0xFFFF])
def test_next_outside_the_descriptor_table_costs_the_request(pair: Pair, next_: int) -> None:
    pair[0].write_descriptor(0, DATA, 1, NEXT, next_)
    assert error_of(pair) == ChainError.NEXT_OUT_OF_RANGE


# Rows 3 and 4: the avail ring. Without a head there is nobody to answer: the device is lost.


@pytest.mark.parametrize("jump", [9, 0x8000, 0xFFFF])
def test_an_avail_index_that_jumps_costs_the_device(pair: Pair, jump: int) -> None:
    driver, ring = pair
    driver.write16(driver.avail + 2, jump)

    assert broken_by(pair) == RingError.AVAIL_JUMP
    driver.write16(driver.avail + 2, 0)
    assert broken_by(pair) == RingError.AVAIL_JUMP, "only a reset helps"
    assert ring.enable_kicks(), "the owner must not go to sleep on it"


def test_an_avail_index_that_goes_back_costs_the_device(pair: Pair) -> None:
    driver, ring = pair
    for _ in range(2):
        driver.add([b"x"])
    driver.publish()
    ring.pop()
    driver.write16(driver.avail + 2, 1)
    assert broken_by(pair) == RingError.AVAIL_JUMP


@pytest.mark.parametrize("head", [8, 0x7FFF, 0xFFFF])
def test_a_head_outside_the_table_costs_the_device(pair: Pair, head: int) -> None:
    pair[0].offer(head)
    pair[0].publish()
    assert broken_by(pair) == RingError.HEAD_OUT_OF_RANGE


def test_a_head_offered_again_while_in_flight_costs_the_device(pair: Pair) -> None:
    driver, ring = pair
    driver.write_descriptor(3, DATA, 1, 0, 0)
    driver.offer(3)
    driver.offer(3)
    driver.publish()

    (chain,) = ring.pop()

    assert (chain.head, chain.error) == (3, None)
    assert broken_by(pair) == RingError.HEAD_IN_FLIGHT


def test_chains_before_the_fault_are_served_and_can_be_completed(pair: Pair) -> None:
    driver, ring = pair
    driver.add([b"good"])
    driver.offer(99)
    driver.publish()

    (chain,) = ring.pop()
    assert chain.readable.read() == b"good"
    assert broken_by(pair) == RingError.HEAD_OUT_OF_RANGE
    ring.push([(chain.head, 0)])
    assert len(driver.collect()) == 1


# Row 5: double fetches. A second thread rewrites descriptors between two legal and two
# illegal states while they are walked; what comes out was legal as a whole, or has an error.


def test_descriptors_that_change_during_the_walk_never_lead_outside_ram() -> None:
    with ring_pair(256) as (driver, ring):
        legal = struct.pack("<QIHH", LOW.end - 256, 256, WRITE, 0)
        illegal = struct.pack("<QIHH", LOW.end - 16, 0xFFFF_0000, WRITE, 0)
        table = driver.memory.view(driver.desc, 16 * 256)
        images = (legal * 256, illegal * 256, (legal + illegal) * 128)
        done = threading.Event()

        def rewrite() -> None:
            while not done.is_set():
                for image in images:
                    table[:] = image

        table[:] = images[0]
        for index in range(256):
            driver.write16(driver.avail + 4 + 2 * index, index)
        mutator = threading.Thread(target=rewrite)
        mutator.start()
        outcomes = set()
        try:
            # As often as it takes for both to be met: the other thread may be given no time.
            for _ in range(20_000):
                if len(outcomes) > 1:
                    break
                driver.write16(driver.avail + 2, (driver.avail_idx + 256) & 0xFFFF)
                chains = ring.pop(256)
                outcomes |= {(chain.error, chain.writable.size) for chain in chains}
                ring.push([(chain.head, 0) for chain in chains])
        finally:
            done.set()
            mutator.join()
    assert outcomes == {(None, 256), (ChainError.BUFFER_OUTSIDE_RAM, 0)}


# Rows 6 and 19: addresses. What is not RAM, a register page for one, cannot be named.


@pytest.mark.parametrize(
    ("address", "length"),
    [
        (LOW.end - 1, 2),
        (LOW.end, 1),
        (LOW.end - 0x1000, 0xFFFF_FFFF),
        (HIGH.gpa - 1, 1),
        (HIGH.gpa - 1, 2),
        (HIGH.end - 1, 2),
        (HIGH.end, 1),
        ((1 << 64) - 1, 1),
        ((1 << 64) - 1, 0xFFFF_FFFF),
        ((1 << 64) - 0x1000, 0x2000),
        (LOW.gpa, LOW.size + 1),
        (LOW.gpa, HIGH.end),
    ],
)
@pytest.mark.parametrize("flags", [0, WRITE])
def test_a_buffer_that_leaves_its_region_costs_the_request(
    pair: Pair, address: int, length: int, flags: int
) -> None:
    pair[0].write_descriptor(0, address, length, flags, 0)
    assert error_of(pair) == ChainError.BUFFER_OUTSIDE_RAM


@pytest.mark.parametrize(
    ("address", "length"),
    [(LOW.end - 1, 1), (HIGH.gpa, 1), (HIGH.end - 1, 1), (LOW.gpa, LOW.size)],
)
def test_a_buffer_that_ends_with_its_region_is_fine(pair: Pair, address: int, length: int) -> None:
    pair[0].write_descriptor(0, address, length, 0, 0)
    assert error_of(pair) is None


@pytest.mark.parametrize(
    ("address", "length", "expected"),
    [(MIB, 1, None), (MIB - 1, 2, ChainError.BUFFER_OUTSIDE_RAM), (2 * MIB - 1, 1, None)],
)
def test_regions_that_touch_are_still_two(
    address: int, length: int, expected: ChainError | None
) -> None:
    with guest_memory([Region(0, MIB, MIB), Region(MIB, MIB, 0)]) as memory:
        driver = Driver(memory, 8, length=0x1_0000)
        driver.write_descriptor(0, address, length, 0, 0)
        with attach(driver) as ring:
            assert error_of((driver, ring)) == expected


# Row 7: what a chain claims is bounded before anything is made of it.


@pytest.mark.parametrize(
    ("last", "size", "expected"),
    [(0xFF_FFFF, 0xFFFF_FFFF, None), (0x100_0000, 0, ChainError.TOO_MANY_BYTES)],
)
def test_a_chain_of_four_gibibytes_costs_the_request(
    last: int, size: int, expected: ChainError | None
) -> None:
    with guest_memory([Region(0, 16 * MIB, 0)]) as memory:
        driver = Driver(memory, 256)
        for index in range(255):
            driver.write_descriptor(index, 0, 16 * MIB, NEXT, index + 1)
        driver.write_descriptor(255, 0, last, WRITE, 0)
        driver.offer(0)
        driver.publish()
        with attach(driver) as ring:
            (chain,) = ring.pop()
            assert chain.error == expected
            assert chain.readable.size + chain.writable.size == size


def test_the_device_cannot_claim_more_than_the_chain_takes(pair: Pair) -> None:
    driver, ring = pair
    head = driver.add([b"in"], [3])
    driver.publish()
    ring.pop()
    with pytest.raises(ValueError, match="more written"):
        ring.push([(head, 4)])
    ring.push([(head, 3)])


# Rows 14 to 16: order of the parts, nothing in them, too little.


def test_readable_after_writable_costs_the_request(pair: Pair) -> None:
    pair[0].write_descriptor(0, DATA, 1, WRITE | NEXT, 1)
    pair[0].write_descriptor(1, DATA, 1, 0, 0)
    assert error_of(pair) == ChainError.READABLE_AFTER_WRITABLE


def test_the_order_holds_across_an_indirect_table_and_for_empty_descriptors(pair: Pair) -> None:
    pair[0].write_descriptor(0, DATA, 0, WRITE | NEXT, 1)
    pair[0].write_descriptor(1, TABLE, 16, INDIRECT, 0)
    pair[0].write_descriptor(0, DATA, 0, 0, 0, table=TABLE)
    assert error_of(pair) == ChainError.READABLE_AFTER_WRITABLE


def test_a_missing_part_is_an_empty_reader_or_writer(pair: Pair) -> None:
    driver, ring = pair
    driver.write_descriptor(0, DATA, 0, 0, 0)
    driver.offer(0)
    driver.publish()

    (chain,) = ring.pop()

    assert chain.error is None
    assert (chain.readable.read(16), chain.writable.write(b"status")) == (b"", 0)
    ring.push([(0, chain.writable.written)])


# The ring itself.


@pytest.mark.parametrize("size", [0, 3, 6, 24, 32769, 65536, (1 << 32) - 1])
def test_a_queue_size_that_is_no_power_of_two_up_to_32768_is_refused(size: int) -> None:
    with guest_memory() as memory, pytest.raises(RingBroken) as caught:
        Ring(memory, size, 0, 0x1000, 0x2000, event_idx=False)
    assert caught.value.reason == RingError.SIZE


@pytest.mark.parametrize(
    ("part", "address", "reason"),
    [
        ("desc", 8, RingError.DESC_MISALIGNED),
        ("avail", 1, RingError.AVAIL_MISALIGNED),
        ("used", 2, RingError.USED_MISALIGNED),
        ("desc", LOW.end, RingError.DESC_OUTSIDE_RAM),
        ("desc", LOW.end - 16, RingError.DESC_OUTSIDE_RAM),
        ("avail", LOW.end - 20, RingError.AVAIL_OUTSIDE_RAM),
        ("used", LOW.end - 68, RingError.USED_OUTSIDE_RAM),
        ("used", HIGH.end, RingError.USED_OUTSIDE_RAM),
        ("desc", (1 << 64) - 16, RingError.DESC_OUTSIDE_RAM),
        ("avail", (1 << 64) - 2, RingError.AVAIL_OUTSIDE_RAM),
        ("used", (1 << 64) - 4, RingError.USED_OUTSIDE_RAM),
    ],
)
def test_a_misplaced_part_is_refused(part: str, address: int, reason: RingError) -> None:
    parts = {"desc": 0, "avail": 0x1000, "used": 0x2000} | {part: address}
    with guest_memory() as memory, pytest.raises(RingBroken, match=reason.name) as caught:
        Ring(memory, 8, parts["desc"], parts["avail"], parts["used"], event_idx=True)
    assert caught.value.reason == reason


def test_parts_may_end_with_their_region() -> None:
    with guest_memory() as memory:
        Ring(memory, 8, LOW.end - 128, HIGH.end - 22, HIGH.end - 100, event_idx=True).close()


def test_parts_that_overlap_harm_only_the_driver() -> None:
    with guest_memory() as memory, Ring(memory, 8, 0, 0, 0, event_idx=True) as ring:
        memory.write(0, struct.pack("<HHHHH", 0, 8, 0, 1, 2))
        for _ in range(100):
            try:
                chains = ring.pop()
            except RingBroken:
                break
            ring.push([(chain.head, 0) for chain in chains])


def test_errors_are_counted() -> None:
    with ring_pair(8) as pair:
        pair[0].write_descriptor(0, DATA, 1, NEXT, 0)
        error_of(pair)
        error_of(pair)
        pair[0].write_descriptor(0, DATA, 1, 0, 0)
        error_of(pair)
        assert pair[1].counters.errors == 2
