"""Whatever guest and device do in whatever order, what is between them keeps its promises."""

from __future__ import annotations

import contextlib

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from protocol.ring import Chain
from tests.support.driver import NEXT, OutOfRoom
from tests.support.mediated import mediated
from vmm.mediation import Outcome

contents = st.lists(st.binary(max_size=40), max_size=5)
lengths = st.lists(st.integers(0, 40), max_size=5)


class Conversation(RuleBasedStateMachine):
    """A guest and a device that keep the rules, apart from a malformed chain now and then: each
    good chain reaches the device once, in order, with its bytes; each answer reaches the guest,
    after the hook; and all is done when everybody who was told of something has acted on it."""

    @initialize(
        size=st.sampled_from([1, 2, 4, 16, 64]),
        larger=st.sampled_from([1, 2, 8]),
        event_idx=st.booleans(),
        start=st.sampled_from([0, 1, 0x7FFF, 0xFFF0, 0xFFFF]),
    )
    def begin(self, size: int, larger: int, event_idx: bool, start: int) -> None:
        self.context = mediated(size, shadow_size=size * larger, event_idx=event_idx, start=start)
        self.them = self.context.__enter__()
        self.collected = start
        self.malformed: set[int] = set()
        self.expected: list[tuple[int, bytes, list[int]]] = []  # not yet seen by the device
        self.with_device: list[tuple[int, Chain, list[int]]] = []
        self.returned: list[tuple[int, bytes, list[int]]] = []  # by the device, not yet taken
        self.answers: dict[int, bytes] = {}  # for the guest to find
        # Who was told of something, and did not act on it yet.
        self.kicked = self.called = self.device_awake = False
        self.guest_awake = True

    def teardown(self) -> None:
        if hasattr(self, "context"):
            self.with_device.clear()
            self.context.__exit__(None, None, None)

    # The guest.

    @rule(readable=contents, writable=lengths, indirect=st.booleans())
    def add(self, readable: list[bytes], writable: list[int], indirect: bool) -> None:
        with contextlib.suppress(OutOfRoom):
            head = self.them.driver.add(readable, writable, indirect=indirect)
            self.expected.append(
                (head, b"".join(readable), [length for length in writable if length])
            )

    @rule()
    def add_malformed(self) -> None:
        with contextlib.suppress(OutOfRoom):
            head = self.them.driver.add([b"x"])
            self.them.driver.write_descriptor(head, 0, 1, NEXT, head)
            self.malformed.add(head)

    @rule()
    def publish(self) -> None:
        self.kicked |= self.them.driver.publish()

    @rule()
    def collect(self) -> None:
        for used in self.them.driver.collect():
            self.collected = (self.collected + 1) & 0xFFFF
            if used.head in self.malformed:
                self.malformed.remove(used.head)
                assert used.written == 0
            else:
                assert used.data == self.answers.pop(used.head)
        assert not self.answers

    @rule()
    def guest_sleeps(self) -> None:
        self.guest_awake = self.them.driver.want_interrupts()

    @rule()
    def guest_is_busy(self) -> None:
        self.them.driver.suppress_interrupts()
        self.guest_awake = True

    # The mediator.

    @precondition(lambda self: self.kicked)
    @rule()
    def kick(self) -> None:
        self.kicked = False
        before = self.them.driver.used_idx
        self.hear(self.them.mediator.kick(), before)

    @precondition(lambda self: self.called)
    @rule()
    def complete(self) -> None:
        self.called = False
        before, told = self.them.driver.used_idx, len(self.them.stale)
        outcome = self.them.mediator.complete()
        stale = [length for _, _, lengths in self.returned for length in lengths]
        assert [length for _, length in self.them.stale[told:]] == stale
        self.answers |= {head: answer for head, answer, _ in self.returned}
        self.returned.clear()
        self.hear(outcome, before)

    def hear(self, outcome: Outcome, before: int) -> None:
        driver = self.them.driver
        assert outcome.interrupt_guest == driver.interrupt_due(before, driver.used_idx)
        self.guest_awake |= outcome.interrupt_guest
        self.device_awake |= outcome.ring_device

    # The device.

    @precondition(lambda self: self.device_awake)
    @rule(limit=st.integers(1, 70))
    def pop(self, limit: int) -> None:
        chains = self.them.device.pop(limit)
        self.device_awake = bool(chains)
        for chain in chains:
            head, sent, lengths = self.expected.pop(0)
            assert (chain.error, chain.readable.read()) == (None, sent)
            assert [len(view) for view in chain.writable.buffers()] == lengths
            self.with_device.append((head, chain, lengths))

    @precondition(lambda self: self.with_device)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        batch = data.draw(st.lists(st.sampled_from(self.with_device), min_size=1, unique_by=id))
        done = []
        for one in batch:
            head, chain, lengths = one
            answer = data.draw(st.binary(max_size=chain.writable.size + 3))
            chain.writable.write(answer)
            done.append((chain.head, chain.writable.written))
            self.returned.append((head, answer[: chain.writable.size], lengths))
            self.with_device.remove(one)
        assert self.them.device.push(done), "the mediator always wants to know"
        self.called = True

    @invariant()
    def nobody_sleeps_on_work(self) -> None:
        if not hasattr(self, "context"):
            return
        driver = self.them.driver
        assert self.guest_awake or self.collected == driver.used_idx
        if not (self.kicked or self.called or self.device_awake or self.with_device):
            assert driver.avail_idx == driver.used_idx
            assert self.them.mediator.in_flight == 0


TestConversation = Conversation.TestCase
TestConversation.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
