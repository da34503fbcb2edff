"""What every kind of device promises, tried on each of them in a real, sealed process."""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from devices import blk, net
from devices.kinds import KINDS
from protocol import doorbell, messages
from protocol.virtio import RING_FEATURES, Feature, bit
from tests.support.device_host import DeviceHost
from tests.support.driver import INDIRECT, NEXT, WRITE, Driver

Boot = Callable[..., DeviceHost]

# Guest memory that no driver uses, a place in the hole, and an indirect table.
DATA, HOLE, TABLE = 0x2000, 10 << 20, 0x4000


@dataclass(frozen=True)
class Sample:
    """A request that every healthy device of a kind answers with ``written`` bytes."""

    queue: int
    readable: tuple[bytes, ...]
    writable: tuple[int, ...]
    written: int


SAMPLES = {
    "blk": Sample(0, (struct.pack("<IIQ", 0, 0, 0),), (512, 1), 513),
    "blk-mapped": Sample(0, (struct.pack("<IIQ", 0, 0, 0),), (512, 1), 513),
    "console": Sample(1, (b"hello",), (), 0),
    "net": Sample(1, (bytes(72),), (), 0),
    "null": Sample(0, (b"x",), (1,), 0),
    "rng": Sample(0, (), (16,), 16),
}


def test_every_kind_is_tried() -> None:
    assert set(SAMPLES) == set(KINDS)


@pytest.fixture(scope="module", params=sorted(KINDS))
def process(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[DeviceHost]:
    """One process of each kind. That all tests can share it is one more promise."""
    folder = tmp_path_factory.mktemp(request.param)
    config: object = None
    if request.param.startswith("blk"):
        (folder / "image").write_bytes(bytes(1 << 20))
        config = blk.Config(str(folder / "image"))
    if request.param == "net":
        config = net.Config(join=str(folder / "lan"))
    with DeviceHost(request.param, folder, config) as host:
        yield host


@pytest.fixture
def host(process: DeviceHost) -> Iterator[DeviceHost]:
    """A sealed device of each kind, not started; it has survived when the test ends."""
    process.events.clear()
    yield process
    process.stop()


def serves(host: DeviceHost) -> bool:
    """Whether it answers its sample."""
    sample = SAMPLES[host.kind]
    used = host.send(sample.readable, sample.writable, sample.queue)
    return used.written == sample.written


def test_hello_says_what_the_device_is(host: DeviceHost) -> None:
    assert host.hello is not None
    assert host.hello.kind == host.kind
    assert host.hello.device_id == int(host.type.device_id)
    assert host.hello.features & RING_FEATURES == RING_FEATURES
    assert host.hello.queue_sizes == tuple(queue.size for queue in host.type.queues)


def test_it_holds_what_it_was_handed_and_says_so(host: DeviceHost) -> None:
    assert host.sealed is not None
    assert set(host.sealed.descriptors) == host.handed


def test_a_driver_that_is_not_of_virtio_1_is_refused(host: DeviceHost) -> None:
    host.start()
    host.stop()
    answer = host.request(messages.Start(0, host.setups()), messages.Failed)

    assert "before virtio 1.0" in answer.reason


def test_a_feature_that_was_not_offered_is_refused(host: DeviceHost) -> None:
    features = bit(Feature.VERSION_1) | bit(Feature.RING_PACKED)
    answer = host.request(messages.Start(features, ()), messages.Failed)

    assert "were not offered" in answer.reason


@pytest.mark.parametrize("features", [(), (Feature.EVENT_IDX,)])
def test_it_starts_stops_and_starts_again(host: DeviceHost, features: tuple[int, ...]) -> None:
    for _ in range(3):
        host.start(*features)
        assert serves(host)
        assert serves(host)
        host.stop()


def test_starting_twice_fails_and_changes_nothing(host: DeviceHost) -> None:
    host.start()
    answer = host.request(messages.Start(bit(Feature.VERSION_1), host.setups()), messages.Failed)

    assert "makes no sense while running" in answer.reason
    assert serves(host)


def test_stopping_what_was_never_started_is_allowed(host: DeviceHost) -> None:
    host.stop()
    host.stop()
    host.start()
    assert serves(host)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"index": 7}, "no queue 7"),
        ({"size": 1024}, "has no 1024 entries"),
        ({"size": 3}, "SIZE"),
        ({"desc": 0x1008}, "DESC_MISALIGNED"),
        ({"used": HOLE}, "USED_OUTSIDE_RAM"),
        ({"avail": 1 << 63}, "AVAIL_OUTSIDE_RAM"),
    ],
)
def test_a_misplaced_queue_is_refused_and_a_good_one_served_then(
    host: DeviceHost, change: dict[str, int], complaint: str
) -> None:
    fields = {"index": 0, "size": 8, "desc": 0x1000, "avail": 0x2000, "used": 0x3000} | change
    answer = host.request(
        messages.Start(bit(Feature.VERSION_1), (messages.QueueSetup(**fields),)), messages.Failed
    )

    assert complaint in answer.reason
    host.start()
    assert serves(host)


def test_a_queue_set_up_twice_is_refused(host: DeviceHost) -> None:
    setup = messages.QueueSetup(0, 8, 0x1000, 0x2000, 0x3000)
    answer = host.request(messages.Start(bit(Feature.VERSION_1), (setup, setup)), messages.Failed)

    assert "twice" in answer.reason


# What a hostile driver offers (hazards 1, 2, 6, 14): entries as (address, length, flags, next).
MALFORMED = {
    "loop": [(DATA, 16, NEXT, 0)],
    "next out of range": [(DATA, 16, NEXT, 99)],
    "in the hole": [(HOLE, 16, WRITE, 0)],
    "across the end": [((16 << 20) - 8, 16, WRITE, 0)],
    "address overflows": [((1 << 64) - 8, 16, WRITE, 0)],
    "readable after writable": [(DATA, 16, WRITE | NEXT, 1), (DATA, 16, 0, 0)],
    "indirect with next": [(TABLE, 16, INDIRECT | NEXT, 1), (DATA, 16, 0, 0)],
    "indirect of no length": [(TABLE, 0, INDIRECT, 0)],
    "indirect of odd length": [(TABLE, 17, INDIRECT, 0)],
    "indirect nested": [(TABLE, 16, INDIRECT, 0)],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_chain_costs_that_request_and_no_other(host: DeviceHost, name: str) -> None:
    host.start(Feature.INDIRECT_DESC)
    before = host.counters()
    # The table of "indirect nested": an entry that is itself a table.
    host.memory.write(TABLE, struct.pack("<QIHH", TABLE, 16, INDIRECT, 0))
    for index, driver in host.drivers.items():
        for entry, (address, length, flags, following) in enumerate(MALFORMED[name]):
            # From the end of the table, which the driver has not come to.
            at = driver.size - 2 + entry
            target = driver.size - 2 + following if following < 2 else following
            driver.write_descriptor(at, address, length, flags, target)
        driver.adopt(driver.size - 2)
        driver.publish()
        host.kick(index)
        (used,) = host.collect(1, index)
        assert used.written == 0

    assert serves(host)
    after = host.counters()
    for queue in host.type.queues:
        assert after[f"{queue.name}.errors"] == before[f"{queue.name}.errors"] + 1
    assert not host.events


@pytest.mark.parametrize(
    ("readable", "writable"),
    [((b"",), ()), ((), (0,)), ((b"", b""), (0, 0)), ((b"x",), (0,)), ((b"",), (1,))],
    ids=str,
)
def test_empty_buffers_do_no_harm(
    host: DeviceHost, readable: tuple[bytes, ...], writable: tuple[int, ...]
) -> None:
    # Hazards 15 and 16, on every queue. The console keeps room for input until there is some.
    host.start()
    for index, driver in host.drivers.items():
        driver.add(readable, writable)
        host.publish(index)
        if (host.kind, index, sum(writable)) != ("console", 0, 1):
            host.collect(1, index)

    assert serves(host)


def jump(driver: Driver) -> None:
    driver.write16(driver.avail + 2, driver.size + 1)


def name_no_descriptor(driver: Driver) -> None:
    driver.offer(driver.size)
    driver.publish()


@pytest.mark.parametrize("break_ring", [jump, name_no_descriptor])
def test_a_broken_ring_costs_the_device_until_its_reset(
    host: DeviceHost, break_ring: Callable[[Driver], None]
) -> None:
    # Hazards 3 and 4.
    host.start()
    break_ring(host.drivers[0])
    host.kick(0)

    assert "broken by its driver" in host.expect(messages.NeedsReset).reason
    sample = SAMPLES[host.kind]
    host.drivers[sample.queue].add(sample.readable, sample.writable)
    host.kick(sample.queue)
    host.request(messages.Ping(), messages.Done)
    assert host.drivers[sample.queue].used_idx == 0
    host.stop()
    host.start()
    assert serves(host)


def test_a_queue_that_is_stopped_is_left_alone_and_the_device_lives(host: DeviceHost) -> None:
    host.start()
    for index in host.drivers:
        host.request(messages.StopQueue(index), messages.Done)
    sample = SAMPLES[host.kind]
    driver = host.drivers[sample.queue]
    driver.add(sample.readable, sample.writable)
    driver.publish()
    host.kick(sample.queue)
    answer = host.request(messages.StopQueue(9), messages.Failed)

    assert driver.used_idx == 0
    assert "no queue 9" in answer.reason
    host.stop()
    host.start()
    assert serves(host)


def test_a_reset_with_work_in_every_queue_is_quiet_afterwards(host: DeviceHost) -> None:
    # Hazard 13: what the driver frees after a reset is not written any more.
    for _ in range(5):
        host.start()
        sample = SAMPLES[host.kind]
        driver = host.drivers[sample.queue]
        for _ in range(4):
            driver.add(sample.readable, sample.writable)
        host.publish(sample.queue)
        host.stop()
        before = bytes(host.memory.whole)
        host.kick(sample.queue)
        host.request(messages.Ping(), messages.Done)
        assert bytes(host.memory.whole) == before


def test_the_counters_count(host: DeviceHost) -> None:
    sample = SAMPLES[host.kind]
    doorbell.drain(host.kicks[sample.queue])  # what the driver before this one has left in it
    host.start()
    name = host.type.queues[sample.queue].name
    before = host.counters()
    for _ in range(3):
        assert serves(host)

    after = host.counters()
    counted = {key: value - before.get(key, 0) for key, value in after.items()}
    assert counted[f"{name}.chains"] == 3
    assert counted[f"{name}.errors"] == 0
    assert counted[f"{name}.bytes_read"] == 3 * sum(map(len, sample.readable))
    assert counted[f"{name}.bytes_written"] == 3 * sample.written
    assert 1 <= counted[f"{name}.batches"] <= 3
    assert 1 <= counted[f"{name}.interrupts"] <= 3
    assert counted[f"{name}.kicks"] <= 3


def test_a_driver_that_wants_no_interrupt_gets_none(host: DeviceHost) -> None:
    host.start()
    sample = SAMPLES[host.kind]
    driver = host.drivers[sample.queue]
    driver.suppress_interrupts()
    driver.add(sample.readable, sample.writable)
    host.publish(sample.queue)
    while driver.used_idx == 0:
        host.request(messages.Ping(), messages.Done)

    assert not select.select([host.call], [], [], 0)[0]


def test_more_chains_than_a_batch_all_come_back(host: DeviceHost) -> None:
    host.start(Feature.EVENT_IDX, size=64)
    sample = SAMPLES[host.kind]
    driver = host.drivers[sample.queue]
    segments = len(sample.readable) + len(sample.writable)
    heads = [driver.add(sample.readable, sample.writable) for _ in range(64 // segments)]
    host.publish(sample.queue)

    used = host.collect(len(heads), sample.queue)
    assert {item.head for item in used} == set(heads)
    assert {item.written for item in used} == {sample.written}


def test_a_configuration_write_of_any_shape_is_answered(host: DeviceHost) -> None:
    assert host.hello is not None
    for offset, data in ((0, b"\1"), (1 << 40, b"\1\2\3"), (3, b"")):
        answer = host.request(messages.WriteConfig(offset, data), messages.ConfigChanged)
        assert answer.config == host.hello.config


def test_nothing_stays_open_after_many_starts(host: DeviceHost) -> None:
    host.start()
    assert serves(host)
    folder = f"/proc/{host.process.pid}/fd"
    before = sorted(os.listdir(folder))
    for _ in range(10):
        host.stop()
        host.start()
        assert serves(host)

    assert sorted(os.listdir(folder)) == before


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_quit_ends_it_with_status_0_and_nothing_to_say(kind: str, boot: Boot) -> None:
    host = boot(kind)
    host.start()
    assert serves(host)

    assert host.quit() == 0
    assert [line[0] for line in host.log().splitlines()] == ["I"]
