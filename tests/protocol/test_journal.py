"""The journal's layout, and a ring that takes over from one that is gone."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from protocol import journal
from protocol.errors import ProtocolError
from protocol.journal import Journal
from protocol.ring import Ring, RingBroken, RingError, faults
from tests.support.driver import Driver
from tests.support.ring_pair import attach, guest_memory


@contextmanager
def journaled(size: int = 16, start: int = 0) -> Iterator[tuple[Driver, Journal]]:
    """A driver, and a fresh journal of one queue."""
    fd = journal.create("test", [size])
    try:
        with guest_memory() as memory, Journal(fd, [size]) as kept:
            yield Driver(memory, size, start=start), kept
    finally:
        os.close(fd)


def test_the_layout_is_a_page_of_positions_and_a_region_a_queue() -> None:
    sizes = [4, 1, 256]
    fd = journal.create("test", sizes)
    try:
        with Journal(fd, sizes) as kept:
            kept.queue(1).region[0] = 0xA1
            kept.queue(2).region[-1] = 0xA2
            kept.queue(2).positions[0] = 0xA3
        everything = os.pread(fd, 1 << 20, 0)
    finally:
        os.close(fd)

    # 16 and 16 for each descriptor, in lines of 64: 80, 32 and 4112 bytes.
    assert journal.size_of(sizes) == len(everything) == 4096 + 128 + 64 + 4160
    assert {at: byte for at, byte in enumerate(everything) if byte} == {
        4096 + 128: 0xA1,
        4096 + 128 + 64 + 4159: 0xA2,
        64 + 64 * 2: 0xA3,
    }


def test_the_file_is_sealed_like_guest_memory() -> None:
    fd = journal.create("test", [1])
    try:
        f_get_seals, all_but_write = 1034, 0x1 | 0x2 | 0x4
        assert fcntl.fcntl(fd, f_get_seals) == all_but_write
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def test_a_file_that_is_too_small_and_too_many_queues_are_refused() -> None:
    fd = journal.create("test", [1])
    try:
        with pytest.raises(ProtocolError, match="4160 bytes, not 4224"):
            Journal(fd, [4])
        with pytest.raises(ValueError, match="63 is the most"):
            Journal(fd, [1] * 64)
    finally:
        os.close(fd)


def test_a_queue_uses_what_vhost_user_says_and_where() -> None:
    with journaled(4, start=7) as (driver, kept), attach(driver, journal=kept.queue(0)) as ring:
        for _ in range(3):
            driver.add([b"x"])
        driver.publish()
        first, second, third = (chain.head for chain in ring.pop())
        ring.push([(third, 0), (second, 0)], position=99)

        region = kept.queue(0).region
        table = list(struct.iter_unpack("<B5xHQ", region[16:80]))
        assert struct.unpack_from("<Q4H", region) == (0, 1, 4, second, 9)
        assert [entry[0] for entry in table] == [1, 0, 0, 0]
        assert [entry[2] for entry in table] == [0, 1, 2, 0]
        assert table[second][1] == third
        assert first == 0
        assert struct.unpack_from("<QHxxxxxxQH", kept.queue(0).positions) == (0, 7, 99, 9)


def test_chains_left_in_flight_are_popped_again_in_order_and_first() -> None:
    with journaled() as (driver, kept):
        with attach(driver, journal=kept.queue(0), position=10) as ring:
            # What is used first, completed backwards, is offered again in that order: the heads
            # are in flight in another than that of their numbers.
            used = [driver.add([b"x"]) for _ in range(driver.size)]
            driver.publish()
            ring.pop(driver.size)
            ring.push([(head, 0) for head in reversed(used)])
            driver.collect()
            heads = [driver.add([bytes([i])]) for i in range(5)]
            driver.publish()
            assert heads == sorted(heads, reverse=True)
            ring.pop(4)
            ring.push([(heads[1], 0)], position=11)

        with attach(driver, journal=kept.queue(0), position=-1 & 0xFFFF) as successor:
            assert (successor.in_flight, successor.position) == (3, 11)
            assert successor.enable_kicks()
            with pytest.raises(ValueError, match="not in flight"):
                successor.push([(heads[0], 0)])  # not before it has been popped again

            chains = successor.pop(2) + successor.pop()
            read = [chain.readable.read() for chain in chains]
            successor.push([(chain.head, 0) for chain in reversed(chains)])

            assert [chain.head for chain in chains] == [heads[i] for i in (0, 2, 3, 4)]
            assert read == [b"\0", b"\2", b"\3", b"\4"]
            assert not successor.enable_kicks()
            assert (successor.in_flight, successor.position) == (0, 11)
        assert sorted(used.head for used in driver.collect()) == sorted(heads)


def test_a_cleared_journal_is_fresh() -> None:
    with journaled() as (driver, kept):
        driver.add([b"x"])
        driver.publish()
        with attach(driver, journal=kept.queue(0), position=5) as ring:
            ring.pop()
        kept.clear()

        with attach(driver, journal=kept.queue(0)) as successor:
            assert (successor.in_flight, successor.position) == (0, 0)
            assert len(successor.pop()) == 1


def test_position_moves_with_chains_only_and_needs_no_journal() -> None:
    with guest_memory() as memory:
        driver = Driver(memory)
        driver.add([b"x"])
        driver.publish()
        with attach(driver, position=1) as ring:
            (chain,) = ring.pop()
            ring.push([], position=2)
            with pytest.raises(ValueError, match="in flight"):
                ring.push([(chain.head + 1, 0)], position=3)
            assert ring.position == 1
            ring.push([(chain.head, 0)], position=(1 << 64) - 1)
            assert ring.position == (1 << 64) - 1


def test_a_journal_for_a_smaller_queue_is_refused() -> None:
    with journaled(16) as (driver, _), journaled(8) as (_, small):
        with pytest.raises(RingBroken, match="bad journal") as refused:
            attach(driver, journal=small.queue(0))
        assert refused.value.reason is RingError.JOURNAL_SIZE


def test_the_faulting_engine_names_every_store_in_order() -> None:
    with journaled(4) as (driver, kept):
        driver.add([b"x"])
        driver.publish()
        seen: list[str] = []
        faults.set_hook(seen.append)
        try:
            with attach(driver, journal=kept.queue(0), kind=faults.Ring) as ring:
                ring.push([(ring.pop()[0].head, 0)])
                ring.enable_kicks()
                ring.disable_kicks()
            with attach(driver, journal=kept.queue(0), kind=Ring) as ring:
                ring.enable_kicks()  # the other engine: not seen
        finally:
            faults.set_hook(None)

        assert seen == [name for name in faults.POINTS if not name.startswith("recover")]
