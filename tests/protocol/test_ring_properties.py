"""Whatever a driver and a device do in whatever order, the ring keeps its promises."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from protocol.ring import Chain, ChainError, Ring, RingBroken
from tests.support.driver import Driver, OutOfRoom
from tests.support.ring_pair import HIGH, LOW, attach, guest_memory, ring_pair

contents = st.lists(st.binary(max_size=40), max_size=5)
lengths = st.lists(st.integers(0, 40), max_size=5)


class Conversation(RuleBasedStateMachine):
    """A driver that keeps the rules and a device that answers in any order: every chain arrives
    once, in avail order, with its bytes; every answer comes back; nobody sleeps on work."""

    @initialize(
        size=st.sampled_from([1, 2, 4, 16, 64]),
        event_idx=st.booleans(),
        start=st.sampled_from([0, 1, 0x7FFF, 0xFFF0, 0xFFFF]),
    )
    def begin(self, size: int, event_idx: bool, start: int) -> None:
        self.context = ring_pair(size, event_idx=event_idx, start=start)
        self.driver, self.ring = self.context.__enter__()
        self.expected: list[tuple[int, bytes, int]] = []  # added, not yet popped
        self.published = 0
        self.in_flight: list[Chain] = []
        self.answers: dict[int, bytes] = {}
        self.device_awake = True
        self.driver_awake = True

    def teardown(self) -> None:
        if hasattr(self, "context"):
            self.in_flight.clear()
            self.context.__exit__(None, None, None)

    @rule(readable=contents, writable=lengths, indirect=st.booleans())
    def add(self, readable: list[bytes], writable: list[int], indirect: bool) -> None:
        try:
            head = self.driver.add(readable, writable, indirect=indirect)
        except OutOfRoom:
            return
        self.expected.append((head, b"".join(readable), sum(writable)))

    @rule()
    def publish(self) -> None:
        self.device_awake |= self.driver.publish()
        self.published = len(self.expected)

    @rule(limit=st.integers(0, 70))
    def pop(self, limit: int) -> None:
        for chain in self.ring.pop(limit):
            head, sent, room = self.expected.pop(0)
            self.published -= 1
            assert (chain.head, chain.error) == (head, None)
            assert (chain.readable.read(), chain.writable.size) == (sent, room)
            self.in_flight.append(chain)
        assert self.published >= 0

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        batch = data.draw(st.lists(st.sampled_from(self.in_flight), min_size=1, unique=True))
        before = self.driver.used_idx
        for chain in batch:
            answer = data.draw(st.binary(max_size=chain.writable.size + 3))
            chain.writable.write(answer)
            self.answers[chain.head] = answer[: chain.writable.size]
            self.in_flight.remove(chain)
        wanted = self.ring.push([(chain.head, chain.writable.written) for chain in batch])
        assert wanted == self.driver.interrupt_due(before, self.driver.used_idx)
        self.driver_awake |= wanted

    @rule()
    def collect(self) -> None:
        for used in self.driver.collect():
            assert used.data == self.answers.pop(used.head)
        assert not self.answers

    @rule()
    def driver_sleeps(self) -> None:
        self.driver_awake = self.driver.want_interrupts()

    @rule()
    def driver_is_busy(self) -> None:
        self.driver.suppress_interrupts()
        self.driver_awake = True

    @rule()
    def device_sleeps(self) -> None:
        self.device_awake = self.ring.enable_kicks()

    @rule()
    def device_is_busy(self) -> None:
        self.ring.disable_kicks()
        self.device_awake = True

    @invariant()
    def nobody_sleeps_on_work(self) -> None:
        if hasattr(self, "context"):
            assert self.device_awake or not self.published
            assert self.driver_awake or not self.answers
            assert self.ring.in_flight == len(self.in_flight)


TestConversation = Conversation.TestCase
TestConversation.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


# Malformed rings. Values are drawn near the interesting ones, or nothing would be hit.

addresses = st.one_of(
    st.sampled_from([0, LOW.end - 16, LOW.end - 1, LOW.end, HIGH.gpa, HIGH.end - 1, 0x3_0000]),
    st.integers(0, (1 << 64) - 1),
)
sizes = st.one_of(
    st.sampled_from([0, 1, 15, 16, 32, 128, 144, LOW.size, 0xFFFF_FFFF]),
    st.integers(0, (1 << 32) - 1),
)
flags = st.one_of(st.integers(0, 7), st.integers(0, 0xFFFF))
nexts = st.one_of(st.integers(0, 9), st.integers(0, 0xFFFF))
descriptors = st.builds(struct.Struct("<QIHH").pack, addresses, sizes, flags, nexts)
tables = st.lists(descriptors, min_size=8, max_size=8).map(b"".join)


@settings(max_examples=300, deadline=None)
@given(
    table=st.one_of(tables, st.binary(min_size=128, max_size=128)),
    indirect=st.one_of(tables, st.binary(min_size=128, max_size=128)),
    heads=st.lists(st.one_of(st.integers(0, 7), st.integers(0, 0xFFFF)), min_size=8, max_size=8),
    idx=st.one_of(st.integers(0, 9), st.integers(0, 0xFFFF)),
    negotiated=st.booleans(),
)
def test_a_ring_of_arbitrary_bytes_gives_typed_results(
    table: bytes, indirect: bytes, heads: list[int], idx: int, negotiated: bool
) -> None:
    with guest_memory() as memory:
        driver = Driver(memory, 8)
        memory.write(driver.desc, table)
        memory.write(0x3_0000, indirect)
        memory.write(driver.avail, struct.pack("<10H", 0, idx, *heads))
        with attach(driver, indirect=negotiated) as ring:
            for chain in served(ring):
                assert chain.head == heads.pop(0)
                assert chain.error is None or isinstance(chain.error, ChainError)
                for part in (chain.readable, chain.writable):
                    views = part.buffers()
                    assert sum(map(len, views)) == part.size
                    assert len(views) <= 8
                    assert all(views)
                    for view in views:
                        bytes(view[-1:])  # faults if it is not mapped
            assert memory.read(driver.desc, 128) == table, "the engine writes only the used ring"


def served(ring: Ring) -> Iterator[Chain]:
    """Every chain until the ring is empty or broken, each completed before the next pop."""
    for _ in range(16):
        try:
            chains = ring.pop(3)
        except RingBroken:
            return
        yield from chains
        ring.push([(chain.head, 0) for chain in chains])
