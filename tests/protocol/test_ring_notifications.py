"""Who is told when: suppression by flags and by EVENT_IDX, at its boundaries."""

from __future__ import annotations

import pytest

from protocol.ring import Ring
from tests.support.driver import Driver
from tests.support.ring_pair import ring_pair


def complete(driver: Driver, ring: Ring, count: int) -> bool:
    """Let ``count`` chains through in one batch; whether an interrupt was asked for."""
    for _ in range(count):
        driver.add([b"x"])
    driver.publish()
    chains = ring.pop()
    assert len(chains) == count
    wanted = ring.push([(chain.head, 0) for chain in chains])
    driver.collect()
    return wanted


# Without EVENT_IDX: one bit each way.


def test_an_interrupt_is_wanted_unless_the_driver_says_otherwise() -> None:
    with ring_pair() as (driver, ring):
        assert complete(driver, ring, 1)
        driver.suppress_interrupts()
        assert not complete(driver, ring, 1)
        driver.want_interrupts()
        assert complete(driver, ring, 1)


def test_used_event_means_nothing_without_the_feature() -> None:
    with ring_pair() as (driver, ring):
        driver.write16(driver.avail + 4 + 2 * driver.size, 0x4000)
        assert complete(driver, ring, 1)


def test_kicks_are_switched_by_the_flag() -> None:
    with ring_pair() as (driver, ring):
        driver.add([b"x"])
        assert driver.publish()
        ring.disable_kicks()
        driver.add([b"x"])
        assert not driver.publish()
        ring.pop()
        assert not ring.enable_kicks()
        driver.add([b"x"])
        assert driver.publish()


@pytest.mark.parametrize("event_idx", [False, True])
def test_work_that_came_before_kicks_were_enabled_is_not_lost(event_idx: bool) -> None:
    with ring_pair(event_idx=event_idx) as (driver, ring):
        ring.disable_kicks()
        driver.add([b"x"])
        driver.publish()
        assert ring.enable_kicks()
        ring.pop()
        assert not ring.enable_kicks()


# With EVENT_IDX: an interrupt is due when the batch writes the entry at used_event.


@pytest.mark.parametrize("start", [0, 0x7FFE, 0xFFFD, 0xFFFF])
@pytest.mark.parametrize("batch", [1, 2, 5, 16])
def test_an_interrupt_is_wanted_exactly_when_the_event_is_in_the_batch(
    start: int, batch: int
) -> None:
    for event in (-2, -1, 0, 1, batch - 1, batch, batch + 1, 0x7FFF, 0x8000):
        with ring_pair(event_idx=True, start=start) as (driver, ring):
            driver.write16(driver.avail + 4 + 2 * driver.size, (start + event) & 0xFFFF)
            assert complete(driver, ring, batch) == (0 <= event < batch), event


def test_the_first_buffer_interrupts_when_used_event_is_zero() -> None:
    with ring_pair(event_idx=True) as (driver, ring):
        assert complete(driver, ring, 1)
        assert not complete(driver, ring, 1)


def test_the_flag_means_nothing_with_the_feature() -> None:
    with ring_pair(event_idx=True) as (driver, ring):
        driver.write16(driver.avail, 1)
        assert complete(driver, ring, 1)


def test_a_largest_queue_completed_at_once_reaches_every_event_in_it() -> None:
    with ring_pair(32, event_idx=True, start=0xFFF0) as (driver, ring):
        driver.write16(driver.avail + 4 + 2 * driver.size, 0x000F)
        assert complete(driver, ring, 32)
        assert not complete(driver, ring, 32)


@pytest.mark.parametrize("start", [0, 0xFFFF, 0x8000])
def test_one_kick_wakes_the_device_and_the_rest_are_spared(start: int) -> None:
    with ring_pair(event_idx=True, start=start) as (driver, ring):
        kicks = []
        for _ in range(4):
            driver.add([b"x"])
            kicks.append(driver.publish())
        ring.disable_kicks()
        assert len(ring.pop()) == 4
        driver.add([b"x"])
        kicks.append(driver.publish())
        assert ring.enable_kicks()
        ring.pop()
        assert not ring.enable_kicks()
        driver.add([b"x"])
        kicks.append(driver.publish())
        assert kicks == [True, False, False, False, False, True]


def test_the_used_flags_stay_zero_with_the_feature() -> None:
    with ring_pair(event_idx=True) as (driver, ring):
        ring.disable_kicks()
        assert driver.read16(driver.used) == 0
        ring.enable_kicks()
        assert driver.read16(driver.used) == 0


def test_chains_in_flight_count_for_the_event_that_is_armed() -> None:
    with ring_pair(event_idx=True) as (driver, ring):
        for _ in range(3):
            driver.add([b"x"])
        driver.publish()
        ring.pop()
        ring.enable_kicks()
        assert driver.avail_event == 3
        driver.add([b"x"])
        assert driver.publish()
