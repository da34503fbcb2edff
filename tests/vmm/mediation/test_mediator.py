"""What a mediator does for a guest and a device that keep the rules."""

from __future__ import annotations

import ctypes
import struct
import threading

import pytest

from protocol.messages import QueueSetup
from protocol.ring import RingBroken, RingError
from tests.support.driver import INDIRECT, NEXT, WRITE, Driver
from tests.support.mediated import (
    SHADOW,
    Mediated,
    attach,
    mediated,
    memories,
    shadow_ring,
)
from tests.support.ring_pair import HIGH, LOW
from vmm.mediation import NativeHook, Outcome, ShadowMemory, lay_out, shadow_size

NOTHING = Outcome(ring_device=False, interrupt_guest=False)
KICK = Outcome(ring_device=True, interrupt_guest=False)
INTERRUPT = Outcome(ring_device=False, interrupt_guest=True)
BOTH = Outcome(ring_device=True, interrupt_guest=True)

DATA = 0x2_0000


def shadow_descriptors(them: Mediated, count: int) -> list[tuple[int, int, int, int]]:
    table = them.device_memory.read(them.shadow.desc, 16 * count)
    return list(struct.iter_unpack("<QIHH", table))


# From the guest to the device and back.


def test_a_request_reaches_the_device_and_its_answer_the_guest() -> None:
    with mediated() as them:
        head = them.driver.add([b"GET ", b"sector 7"], [8, 1])
        them.driver.publish()

        kick = them.mediator.kick()
        (chain,) = them.device.pop()
        sent = chain.readable.read()
        chain.writable.write(b"contents!")
        them.device.push([(chain.head, 9)])
        in_flight = them.mediator.in_flight
        completion = them.mediator.complete()
        (used,) = them.driver.collect()

        assert (kick, completion) == (KICK, INTERRUPT)
        assert (sent, chain.writable.size) == (b"GET sector 7", 9)
        assert (used.head, used.written, used.data) == (head, 9, b"contents!")
        assert (in_flight, them.mediator.in_flight) == (1, 0)


def test_without_news_nobody_is_told_anything() -> None:
    with mediated() as them:
        assert them.mediator.kick() == NOTHING
        assert them.mediator.complete() == NOTHING

        them.driver.add([b"x"])
        them.driver.publish()
        them.mediator.kick()

        assert them.mediator.kick() == NOTHING
        assert them.mediator.complete() == NOTHING
        assert them.driver.used_idx == 0


def test_chains_reach_the_device_in_avail_order() -> None:
    with mediated() as them:
        for index in range(10):
            them.driver.add([bytes([index])])
        them.driver.publish()

        them.mediator.kick()

        sent = [chain.readable.read() for chain in them.device.pop()]
        assert sent == [bytes([index]) for index in range(10)]


def test_chains_complete_in_the_order_of_the_device() -> None:
    with mediated() as them:
        heads = [them.driver.add([], [4]) for _ in range(4)]
        them.driver.publish()
        them.mediator.kick()
        chains = them.device.pop()

        for position in (2, 0, 3, 1):
            chains[position].writable.write(b"#%d" % position)
            them.device.push([(chains[position].head, 2)])
        outcome = them.mediator.complete()

        assert outcome == INTERRUPT
        assert [(used.head, used.data) for used in them.driver.collect()] == [
            (heads[position], b"#%d" % position) for position in (2, 0, 3, 1)
        ]


def test_a_chain_stays_in_flight_while_thousands_of_others_come_and_go() -> None:
    with mediated(8) as them:
        them.driver.add([], [16])
        them.driver.publish()
        them.mediator.kick()
        (held,) = them.device.pop()

        for turn in range(2000):
            them.driver.add([b"%d" % turn, b"!"], [8], indirect=turn % 2 == 0)
            them.driver.publish()
            assert them.mediator.kick() == KICK
            (chain,) = them.device.pop()
            assert chain.readable.read() == b"%d!" % turn
            them.device.push([(chain.head, 0)])
            assert them.mediator.complete() == INTERRUPT
            them.driver.collect()
        held.writable.write(b"late, but right.")
        them.device.push([(held.head, held.writable.written)])
        them.mediator.complete()

        (used,) = them.driver.collect()
        assert used.data == b"late, but right."


def test_the_device_sees_the_guests_own_addresses_and_no_indirect_table() -> None:
    with mediated(8) as them:
        them.driver.write_descriptor(2, DATA, 7, NEXT, 5)
        them.driver.write_descriptor(5, 0x3_0000, 32, INDIRECT, 0)
        them.driver.write_descriptor(0, HIGH.gpa + 5, 8, NEXT, 1, table=0x3_0000)
        them.driver.write_descriptor(1, LOW.end - 9, 9, WRITE, 0, table=0x3_0000)
        them.driver.offer(2)
        them.driver.publish()

        them.mediator.kick()

        assert shadow_descriptors(them, 3) == [
            (DATA, 7, NEXT, 1),
            (HIGH.gpa + 5, 8, NEXT, 2),
            (LOW.end - 9, 9, WRITE, 0),
        ]
        assert [chain.writable.size for chain in them.device.pop()] == [9]


def test_a_chain_of_empty_descriptors_is_an_empty_chain_for_the_device() -> None:
    with mediated() as them:
        them.driver.write_descriptor(3, 0xFFFF_FFFF_FFFF_FFFF, 0, NEXT, 4)
        them.driver.write_descriptor(4, DATA, 0, WRITE, 0)
        them.driver.adopt(3)
        them.driver.publish()

        assert them.mediator.kick() == KICK
        (chain,) = them.device.pop()
        them.device.push([(chain.head, 0)])
        them.mediator.complete()

        assert (chain.error, chain.readable.size, chain.writable.size) == (None, 0, 0)
        assert [(used.head, used.written) for used in them.driver.collect()] == [(3, 0)]
        assert them.stale == []


def test_a_device_that_wants_no_kicks_gets_them_all_the_same() -> None:
    with mediated() as them:
        them.device.disable_kicks()
        them.driver.add([b"x"])
        them.driver.publish()
        assert them.mediator.kick() == KICK


# More than the shadow ring can hold.


def test_a_chain_as_long_as_the_queue_goes_through_and_the_next_one_waits() -> None:
    with mediated(4) as them:
        first = them.driver.add([b"a", b"b"], [1, 1], indirect=True)
        second = them.driver.add([b"c"], [1, 1, 1], indirect=True)
        third = them.driver.add([b"d"], [1])
        them.driver.publish()

        assert them.mediator.kick() == KICK
        assert len(them.device.pop()) == 1
        assert them.mediator.in_flight == 2, "the one that waits is the guest's no more"
        assert them.mediator.kick() == NOTHING

        them.device.push([(0, 0)])
        assert them.mediator.complete() == BOTH
        assert [chain.readable.read() for chain in them.device.pop()] == [b"c"]

        them.device.push([(0, 0)])
        assert them.mediator.complete() == BOTH
        assert [chain.readable.read() for chain in them.device.pop()] == [b"d"]

        them.device.push([(0, 0)])
        assert them.mediator.complete() == INTERRUPT
        assert [used.head for used in them.driver.collect()] == [first, second, third]


def test_what_does_not_fit_waits_in_order_and_nothing_starves() -> None:
    with mediated(16) as them:
        expected = []
        for index in range(16):
            them.driver.add([b"%d" % index] * (1 + 5 * index % 16), indirect=True)
            expected.append(b"%d" % index * (1 + 5 * index % 16))
        them.driver.publish()

        seen = []
        outcome = them.mediator.kick()
        while outcome.ring_device:
            chains = them.device.pop()
            seen += [chain.readable.read() for chain in chains]
            them.device.push([(chain.head, 0) for chain in chains])
            outcome = them.mediator.complete()

        assert seen == expected
        assert len(them.driver.collect()) == 16


def test_a_larger_shadow_ring_lets_more_be_in_flight() -> None:
    with mediated(4, shadow_size=16) as them:
        for _ in range(4):
            them.driver.add([b"a", b"b", b"c"], [1], indirect=True)
        them.driver.publish()

        them.mediator.kick()

        assert len(them.device.pop()) == 4


def test_a_full_queue_of_direct_chains_is_in_flight_at_once() -> None:
    with mediated(256) as them:
        for _ in range(256):
            them.driver.add([b"x"])
        them.driver.publish()

        them.mediator.kick()

        assert len(them.device.pop(256)) == 256


@pytest.mark.parametrize("event_idx", [False, True])
def test_while_a_chain_waits_the_guest_need_not_kick(event_idx: bool) -> None:
    with mediated(4, event_idx=event_idx) as them:
        them.driver.add([b"abcd"] * 4, indirect=True)
        them.driver.add([b"efgh"] * 2, indirect=True)
        them.driver.publish()
        them.mediator.kick()
        them.driver.add([b"ijkl"])
        assert not them.driver.publish()

        them.serve()
        assert them.mediator.complete() == BOTH

        assert len(them.serve()) == 2
        them.driver.add([b"mnop"])
        assert them.driver.publish()


# Notifications of the guest.


@pytest.mark.parametrize("event_idx", [False, True])
def test_a_guest_that_was_heard_out_kicks_for_what_comes_next(event_idx: bool) -> None:
    with mediated(event_idx=event_idx) as them:
        for _ in range(3):
            them.driver.add([b"x"])
            assert them.driver.publish()
            assert them.mediator.kick() == KICK


@pytest.mark.parametrize("event_idx", [False, True])
def test_a_guest_that_wants_no_interrupts_gets_none(event_idx: bool) -> None:
    with mediated(event_idx=event_idx) as them:
        them.driver.suppress_interrupts()
        for _ in range(2):
            them.driver.add([b"x"])
            them.driver.publish()
            them.mediator.kick()
            them.serve()
            assert them.mediator.complete() == NOTHING
            assert len(them.driver.collect()) == 1


@pytest.mark.parametrize("start", [0, 0x7FFE, 0xFFFD, 0xFFFF])
def test_an_interrupt_is_due_exactly_when_the_event_is_in_the_batch(start: int) -> None:
    for event in (-1, 0, 1, 3, 4, 5, 0x8000):
        with mediated(event_idx=True, start=start) as them:
            them.driver.write16(them.driver.avail + 4 + 2 * 16, (start + event) & 0xFFFF)
            for _ in range(5):
                them.driver.add([b"x"])
            them.driver.publish()
            them.mediator.kick()
            them.serve()
            assert them.mediator.complete().interrupt_guest == (0 <= event < 5), event


@pytest.mark.parametrize("event_idx", [False, True])
def test_the_guests_indices_wrap_at_sixteen_bits(event_idx: bool) -> None:
    with mediated(4, event_idx=event_idx, start=0xFFFE) as them:
        for turn in range(8):
            them.driver.add([b"%d" % turn], [1])
            kick = them.driver.publish()
            assert them.mediator.kick() == KICK
            them.serve(b"%d" % turn)
            assert them.mediator.complete() == INTERRUPT
            (used,) = them.driver.collect()
            assert (kick, used.data) == (True, b"%d" % turn)
            them.driver.want_interrupts()
        assert them.driver.used_idx == 6


def test_the_shadows_indices_wrap_at_sixteen_bits() -> None:
    size, turns = 64, 0x1_0000 // 64 + 3
    with mediated(size) as them:
        driver = them.driver
        for index in range(size):
            driver.write_descriptor(index, DATA, 8, WRITE, 0)
            driver.write16(driver.avail + 4 + 2 * index, index)
        for turn in range(turns):
            driver.write16(driver.avail + 2, size * (turn + 1) & 0xFFFF)
            assert them.mediator.kick() == KICK
            assert len(them.serve(b"12345678")) == size
            assert them.mediator.complete() == INTERRUPT
        assert driver.used_idx == size * turns & 0xFFFF == 192
        assert them.mediator.counters.chains == size * turns
        assert len(them.stale) == size * turns


# Mistakes of the guest.


def test_a_malformed_chain_is_answered_at_once_and_the_device_never_sees_it() -> None:
    with mediated() as them:
        them.driver.write_descriptor(5, LOW.end, 1, WRITE, 0)
        them.driver.adopt(5)
        them.driver.publish()

        assert them.mediator.kick() == INTERRUPT

        assert them.device.pop() == []
        assert [(used.head, used.written) for used in them.driver.collect()] == [(5, 0)]
        assert (them.mediator.counters.errors, them.mediator.in_flight) == (1, 0)


def test_malformed_chains_among_others_cost_only_themselves() -> None:
    with mediated() as them:
        them.driver.add([b"one"])
        for index in (13, 14):
            them.driver.write_descriptor(index, DATA, 1, NEXT, index)
            them.driver.adopt(index)
        them.driver.add([b"two"])
        them.driver.publish()

        assert them.mediator.kick() == BOTH

        assert [chain.readable.read() for chain in them.device.pop()] == [b"one", b"two"]
        assert [used.head for used in them.driver.collect()] == [13, 14]


def test_a_malformed_chain_interrupts_only_a_guest_that_wants_it() -> None:
    with mediated() as them:
        them.driver.suppress_interrupts()
        them.driver.write_descriptor(5, DATA, 1, NEXT, 99)
        them.driver.adopt(5)
        them.driver.publish()
        assert them.mediator.kick() == NOTHING
        assert len(them.driver.collect()) == 1


def test_indirect_that_was_not_negotiated_is_malformed() -> None:
    with mediated(indirect=False) as them:
        them.driver.add([b"x"], indirect=True)
        them.driver.publish()
        assert them.mediator.kick() == INTERRUPT


def test_an_address_of_the_shadow_ring_is_not_guest_memory() -> None:
    with mediated() as them:
        them.driver.write_descriptor(0, SHADOW.gpa, 16, WRITE, 0)
        them.driver.adopt(0)
        them.driver.publish()
        assert them.mediator.kick() == INTERRUPT
        assert them.mediator.counters.errors == 1


def test_chains_before_a_broken_ring_are_moved_and_can_be_completed() -> None:
    with mediated() as them:
        head = them.driver.add([b"good"])
        them.driver.offer(99)
        them.driver.publish()

        for _ in range(2):
            with pytest.raises(RingBroken) as caught:
                them.mediator.kick()
            assert caught.value.reason == RingError.HEAD_OUT_OF_RANGE
        them.serve()

        assert them.mediator.complete() == INTERRUPT
        assert [used.head for used in them.driver.collect()] == [head]


def test_a_ring_that_is_broken_behind_a_chain_that_waits_is_noticed_then() -> None:
    with mediated(4) as them:
        them.driver.add([b"a"] * 4, indirect=True)
        them.driver.add([b"b"] * 4, indirect=True)
        them.driver.offer(99)
        them.driver.publish()
        assert them.mediator.kick() == KICK

        them.serve()
        with pytest.raises(RingBroken):
            them.mediator.complete()
        assert len(them.driver.collect()) == 1, "published, nevertheless"
        assert len(them.serve()) == 1, "and moved"

        assert them.mediator.complete() == INTERRUPT
        assert len(them.driver.collect()) == 1


# The hook.


def test_the_hook_is_told_of_every_writable_buffer_before_the_guest_can_see_its_use() -> None:
    told = []

    def hook(gpa: int, length: int) -> None:
        told.append((gpa, length, them.driver.used_idx))

    with mediated(hook=hook) as them:
        them.driver.write_descriptor(10, DATA, 16, NEXT, 11)
        them.driver.write_descriptor(11, DATA + 0x100, 512, NEXT | WRITE, 12)
        them.driver.write_descriptor(12, HIGH.gpa, 1, WRITE, 0)
        them.driver.adopt(10)
        them.driver.add([b"x"], [3])
        them.driver.publish()
        them.mediator.kick()
        them.serve(b"abc")
        assert told == []

        them.mediator.complete()

        assert told[:2] == [(DATA + 0x100, 512, 0), (HIGH.gpa, 1, 0)]
        assert [(length, used) for _, length, used in told[2:]] == [(3, 0)]
        assert them.driver.used_idx == 2


@pytest.mark.parametrize("written", [0, 1, 8])
def test_the_hook_is_told_of_whole_buffers_whatever_the_device_reports(written: int) -> None:
    with mediated() as them:
        them.driver.write_descriptor(0, DATA, 4, WRITE | NEXT, 1)
        them.driver.write_descriptor(1, DATA + 64, 4, WRITE, 0)
        them.driver.adopt(0)
        them.driver.publish()
        them.mediator.kick()
        (chain,) = them.device.pop()
        them.device.push([(chain.head, written)])

        them.mediator.complete()

        assert them.stale == [(DATA, 4), (DATA + 64, 4)]


def test_what_the_device_still_has_at_the_end_is_told_and_what_it_never_got_is_not() -> None:
    with mediated(4) as them:
        for index, address in enumerate((DATA, DATA + 0x1000, DATA + 0x2000)):
            table = 0x3_0000 + 0x100 * index
            for entry in range(2):
                where = address + 0x10 * entry
                them.driver.write_descriptor(
                    entry, where, 8, WRITE | (NEXT if not entry else 0), 1, table=table
                )
            them.driver.write_descriptor(index, table, 32, INDIRECT, 0)
            them.driver.adopt(index)
        them.driver.publish()
        them.mediator.kick()
        first, second = them.device.pop()
        them.device.push([(second.head, 0)])
        assert them.mediator.complete() == BOTH
        them.device.push([(first.head, 0)])
        them.mediator.complete()
        told_before = list(them.stale)
        assert told_before == [
            (DATA + 0x1000, 8),
            (DATA + 0x1010, 8),
            (DATA, 8),
            (DATA + 0x10, 8),
        ]

        them.mediator.close()
        them.mediator.close()

        assert them.stale[4:] == [(DATA + 0x2000, 8), (DATA + 0x2010, 8)]


def test_a_chain_that_waits_was_never_the_devices() -> None:
    with mediated(2) as them:
        them.driver.add([], [1, 1], indirect=True)
        them.driver.add([], [1, 2], indirect=True)
        them.driver.publish()
        them.mediator.kick()

        them.mediator.close()

        assert [length for _, length in them.stale] == [1, 1]


def test_a_hook_may_be_a_c_function_of_the_callers() -> None:
    told: list[tuple[int, int, int]] = []
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64)
    function = kind(lambda *arguments: told.append(arguments))
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None

    with mediated(hook=NativeHook(address, 0x1234)) as them:
        them.driver.write_descriptor(0, DATA, 4, WRITE, 0)
        them.driver.adopt(0)
        them.driver.publish()
        them.mediator.kick()
        them.serve()
        them.mediator.complete()

    assert told == [(0x1234, DATA, 4)]


def test_what_a_python_hook_raises_is_raised_once() -> None:
    def hook(gpa: int, length: int) -> None:
        raise LookupError(f"{length} bytes")

    with mediated(hook=hook) as them:
        them.driver.add([], [3])
        them.driver.add([], [4])
        them.driver.publish()
        them.mediator.kick()
        them.serve()

        with pytest.raises(LookupError, match="3 bytes"):
            them.mediator.complete()
        assert them.mediator.complete() == NOTHING


# Birth and death.


@pytest.mark.parametrize("size", [1, 2, 4, 256, 1024, 32768])
def test_a_layout_keeps_the_alignments_and_its_parts_apart(size: int) -> None:
    setup = lay_out(0x8000_0010, size, 3)

    assert (setup.index, setup.size, setup.desc) == (3, size, 0x8000_0010)
    assert (setup.desc % 16, setup.avail % 2, setup.used % 4) == (0, 0, 0)
    assert setup.avail >= setup.desc + 16 * size
    assert setup.used >= setup.avail + 6 + 2 * size
    assert setup.desc + shadow_size(size) == setup.used + 6 + 8 * size


def test_a_layout_that_could_not_be_aligned_is_refused() -> None:
    with pytest.raises(ValueError, match="0x8000008"):
        lay_out(0x8000008, 4)


@pytest.mark.parametrize(
    "shadow",
    [
        lay_out(SHADOW.gpa, 8),
        lay_out(SHADOW.gpa, 24),
        lay_out(SHADOW.gpa, 65536),
        lay_out(SHADOW.gpa - 16, 16),
        lay_out(SHADOW.end, 16),
        lay_out(SHADOW.end - 16 * 16, 16),
        lay_out(SHADOW.end - shadow_size(16) // 16 * 16, 16),
        lay_out(0, 16),
        lay_out((1 << 64) - 4096, 16),
        QueueSetup(0, 16, SHADOW.gpa + 8, SHADOW.gpa + 0x1000, SHADOW.gpa + 0x2000),
        QueueSetup(0, 16, SHADOW.gpa, SHADOW.gpa + 0x1001, SHADOW.gpa + 0x2000),
        QueueSetup(0, 16, SHADOW.gpa, SHADOW.gpa + 0x1000, SHADOW.gpa + 0x2002),
    ],
)
def test_a_shadow_ring_that_is_misplaced_or_too_small_is_refused(shadow: QueueSetup) -> None:
    with memories() as (guest, shadow_memory, _):
        driver = Driver(guest, 16)
        with pytest.raises(ValueError, match="shadow ring"):
            attach(driver, shadow, shadow_memory, print)


def test_shadow_memory_that_is_not_aligned_on_the_host_is_refused() -> None:
    with memories() as (guest, (gpa, view), _):
        driver = Driver(guest, 16)
        with view[1:] as odd, pytest.raises(ValueError, match="shadow ring"):
            attach(driver, lay_out(gpa, 16), ShadowMemory(gpa, odd), print)


def test_addresses_of_the_shadow_ring_are_aligned_like_its_place_on_the_host() -> None:
    with memories() as (guest, (gpa, view), _):
        driver = Driver(guest, 16)
        shadow = QueueSetup(0, 16, gpa + 8, gpa + 0x1008, gpa + 0x2008)
        with pytest.raises(ValueError, match="shadow ring"):
            attach(driver, shadow, ShadowMemory(gpa + 8, view), print)


def test_a_guest_that_misplaced_its_ring_hears_of_it() -> None:
    with memories() as (guest, shadow_memory, _):
        driver = Driver(guest, 16)
        driver.used = LOW.end
        with pytest.raises(RingBroken) as caught:
            attach(driver, lay_out(SHADOW.gpa, 16), shadow_memory, print)
        assert caught.value.reason == RingError.USED_OUTSIDE_RAM


def test_a_new_mediator_begins_with_an_empty_shadow_ring() -> None:
    with memories() as (guest, shadow_memory, device_memory):
        shadow_memory.view[:] = b"\xa5" * SHADOW.size
        shadow = lay_out(SHADOW.gpa, 16)
        driver = Driver(guest, 16)
        with attach(driver, shadow, shadow_memory, print) as mediator:
            assert mediator.complete() == NOTHING
            with shadow_ring(device_memory, shadow) as device:
                assert device.pop() == []
        end = shadow_size(16)
        assert bytes(shadow_memory.view[:end]).count(0xA5) <= 3, "padding of the layout"
        assert set(shadow_memory.view[end:]) == {0xA5}


def test_a_mediator_goes_on_where_used_idx_stands() -> None:
    with mediated(start=7) as them:
        them.driver.add([b"first"])
        them.driver.publish()
        them.mediator.kick()
        assert [chain.readable.read() for chain in them.device.pop()] == [b"first"]


def test_a_closed_mediator_refuses_everything_and_lets_memory_go() -> None:
    with memories() as (guest, shadow_memory, _):
        driver = Driver(guest, 16)
        mediator = attach(driver, lay_out(SHADOW.gpa, 16), shadow_memory, print)
        mediator.close()

        calls = (
            mediator.kick,
            mediator.complete,
            lambda: mediator.in_flight,
            lambda: mediator.counters,
        )
        for call in calls:
            with pytest.raises(ValueError, match="closed"):
                call()
        shadow_memory.view.release()  # BufferError if it is held


# Two that really run at the same time.


def test_a_device_in_another_thread_loses_and_repeats_nothing() -> None:
    total, stop, rung = 5000, threading.Event(), threading.Semaphore(0)
    with mediated(32) as them:
        deaf = threading.Semaphore(0)

        def device() -> None:
            while not stop.is_set():
                rung.acquire()
                for chain in them.device.pop():
                    chain.writable.write(chain.readable.read()[::-1])
                    them.device.push([(chain.head, chain.writable.written)])
                    deaf.release()

        thread = threading.Thread(target=device)
        thread.start()
        expected: dict[int, bytes] = {}
        added = collected = 0
        try:
            while collected < total:
                while added < total and them.driver.pending < 8:
                    text = b"request %d" % added
                    head = them.driver.add([text[:4], text[4:]], [20], indirect=added % 3 == 0)
                    expected[head] = text[::-1]
                    added += 1
                them.driver.publish()
                if them.mediator.kick().ring_device:
                    rung.release()
                assert deaf.acquire(timeout=30)
                if them.mediator.complete().ring_device:
                    rung.release()
                for used in them.driver.collect():
                    assert used.data == expected.pop(used.head)
                    collected += 1
        finally:
            stop.set()
            rung.release()
            thread.join()
        assert (collected, them.mediator.in_flight, expected) == (total, 0, {})
