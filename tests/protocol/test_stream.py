"""Streams: a log's two ends, whoever of them dies, and whoever of them lies."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import stream
from protocol.errors import ProtocolError
from protocol.memory import PAGE_SIZE
from protocol.stream import CAPACITY, Consumer, Producer

LOG_SIZE = PAGE_SIZE + CAPACITY
HEAD, TAIL = 0, 64

# Where a log may stand: fresh, at a ring's end, beyond 32 bits, and as far as one may be.
STARTS = [0, CAPACITY - 2, (1 << 32) - 3, (1 << 63) - 4 * CAPACITY - 1]


def word(value: int) -> bytes:
    return value.to_bytes(8, "little")


def log(start: int = 0, capacity: int = CAPACITY) -> memoryview:
    """The memory of an empty log that stands at ``start``."""
    memory = memoryview(bytearray(PAGE_SIZE + capacity))
    memory[HEAD : HEAD + 8] = memory[TAIL : TAIL + 8] = word(start)
    return memory


def take(consumer: Consumer, size: int = CAPACITY) -> bytes:
    """Consume ``size`` bytes, or all that there are."""
    data = b"".join(consumer.peek())[:size]
    consumer.consume(consumer.tail + len(data))
    return data


# What both ends do.


@pytest.mark.parametrize("start", STARTS)
def test_bytes_come_out_as_they_went_in(start: int) -> None:
    memory = log(start)
    producer, consumer = Producer(memory), Consumer(memory)

    assert producer.write(start, [b"one ", b"", memoryview(b"two ")]) == 8
    assert producer.write(start + 8, [b"three"]) == 5

    assert take(consumer) == b"one two three"
    assert take(consumer) == b""
    assert producer.head == consumer.tail == start + 13


@pytest.mark.parametrize("start", STARTS)
def test_a_full_log_takes_what_fits_and_the_rest_later(start: int) -> None:
    memory = log(start)
    producer, consumer = Producer(memory), Consumer(memory)
    data = os.urandom(CAPACITY + 100)

    assert producer.write(start, [data]) == CAPACITY
    assert producer.room == 0
    assert producer.write(start, [data]) == CAPACITY
    first = take(consumer, 40)
    assert producer.write(start, [data]) == CAPACITY + 40
    second = take(consumer)
    assert producer.write(start, [data]) == len(data)

    assert first + second + take(consumer) == data


def test_what_is_done_again_is_counted_and_not_written_again() -> None:
    memory = log()
    producer, consumer = Producer(memory), Consumer(memory)
    data = os.urandom(CAPACITY + 10)
    producer.write(0, [data])
    consumer.consume(10)
    producer.write(0, [data])
    before = bytes(memory)

    successor = Producer(memory)

    # Of its first ten bytes the places hold the last ten.
    assert successor.write(0, [data[:4], data[4:]]) == len(data)
    assert successor.write(3, [data[3:9]]) == 6
    assert bytes(memory) == before


def test_input_is_read_ahead_and_consumed_when_it_is_published() -> None:
    memory = log()
    producer, consumer = Producer(memory), Consumer(memory)
    producer.write(0, [b"abcdef"])

    assert b"".join(consumer.peek(4)) == b"ef"
    assert consumer.tail == 0

    consumer.consume(4)
    assert b"".join(Consumer(memory).peek()) == b"ef"
    assert consumer.peek(6) == []


def test_a_place_that_nobody_wrote_up_to_is_refused() -> None:
    memory = log()
    producer, consumer = Producer(memory), Consumer(memory)
    producer.write(0, [b"abc"])
    consumer.consume(1)

    with pytest.raises(ProtocolError, match="cannot go on at 4"):
        producer.write(4, [b"x"])
    for at in (0, 4):
        with pytest.raises(ProtocolError):
            consumer.peek(at)
        with pytest.raises(ProtocolError, match=f"consumed up to {at}"):
            consumer.consume(at)
    assert take(consumer) == b"bc"


# The file, and waking.


@pytest.fixture
def file() -> Iterator[int]:
    fd = stream.create("test")
    yield fd
    os.close(fd)


def test_the_file_has_two_logs_and_no_other_size(file: int) -> None:
    mapped = stream.Stream(file)
    assert [len(mapped.output), len(mapped.input)] == [LOG_SIZE, LOG_SIZE]
    Producer(mapped.output).write(0, [b"x" * CAPACITY])
    Producer(mapped.input).write(0, [b"y" * CAPACITY])
    again = stream.Stream(file)

    assert take(Consumer(again.output)) == b"x" * CAPACITY
    assert take(Consumer(again.input)) == b"y" * CAPACITY
    with pytest.raises(PermissionError):
        os.ftruncate(file, 0)
    again.close()
    mapped.close()


@pytest.fixture
def pair() -> Iterator[tuple[int, int]]:
    ours, theirs = stream.wake_pair()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def test_a_wake_up_is_noticed_until_it_is_drained(pair: tuple[int, int]) -> None:
    ours, theirs = pair
    stream.wake(theirs)
    assert select.select([ours], [], [], 0)[0]

    stream.drain(ours)
    stream.drain(ours)

    assert not select.select([ours], [], [], 0)[0]


def test_a_flood_of_wake_ups_holds_nobody_up_and_is_drained_at_once(
    pair: tuple[int, int],
) -> None:
    ours, theirs = pair
    for _ in range(10_000):  # far more than a socket holds
        stream.wake(theirs)

    stream.drain(ours)

    assert not select.select([ours], [], [], 0)[0]
    stream.wake(theirs)
    assert select.select([ours], [], [], 0)[0]


def test_waking_and_draining_who_is_gone_is_no_error(pair: tuple[int, int]) -> None:
    ours, theirs = stream.wake_pair()
    stream.wake(ours)
    os.close(theirs)  # with a byte unread

    stream.wake(ours)
    stream.drain(ours)
    stream.drain(ours)

    os.close(ours)


# A hostile other end.

# By how much a cursor is wrong: ahead of where the other end is, or too far behind.
LIES = [CAPACITY + 1, 1 << 63, -CAPACITY - 1]


@pytest.mark.parametrize("lie", [1, *LIES])
def test_a_tail_that_cannot_be_is_refused_and_nothing_written(lie: int) -> None:
    memory = log(start=2 * CAPACITY)
    producer = Producer(memory)
    memory[TAIL : TAIL + 8] = word((2 * CAPACITY + lie) % (1 << 64))
    before = bytes(memory)

    for look in (lambda: producer.room, lambda: producer.write(2 * CAPACITY, [b"x"])):
        with pytest.raises(ProtocolError):
            look()

    assert bytes(memory) == before


@pytest.mark.parametrize("lie", [-1, *LIES])
def test_a_head_that_cannot_be_is_refused_and_nothing_read(lie: int) -> None:
    memory = log(start=2 * CAPACITY)
    consumer = Consumer(memory)
    memory[HEAD : HEAD + 8] = word((2 * CAPACITY + lie) % (1 << 64))

    for look in (consumer.peek, lambda: consumer.consume(2 * CAPACITY)):
        with pytest.raises(ProtocolError):
            look()


def test_what_the_other_end_writes_over_our_cursor_is_not_believed() -> None:
    memory = log()
    producer, consumer = Producer(memory), Consumer(memory)
    producer.write(0, [b"abc"])
    memory[TAIL : TAIL + 8] = word(3)
    assert take(consumer) == b"abc"
    memory[HEAD : HEAD + 8] = word(0)
    producer.write(3, [b"def"])

    assert take(consumer) == b"def"


@pytest.mark.parametrize("end", [Producer, Consumer])
def test_a_log_older_than_any_can_be_is_refused(end: type[Producer | Consumer]) -> None:
    with pytest.raises(ProtocolError, match="a log of"):
        end(log(start=1 << 63))


@given(st.data())
def test_no_lie_reaches_beyond_the_log(data: st.DataObject) -> None:
    """Whatever the cursors are, and whenever they change: garbage or ProtocolError, and not a
    byte outside the half that is the end's to write."""
    cursor = st.one_of(
        st.integers(0, (1 << 64) - 1), st.integers(0, 3 * CAPACITY), st.sampled_from(STARTS)
    )
    memory = log()
    ends: list[Producer | Consumer] = [Producer(memory), Consumer(memory)]
    for _ in range(data.draw(st.integers(1, 6))):
        memory[HEAD : HEAD + 8] = word(data.draw(cursor))
        memory[TAIL : TAIL + 8] = word(data.draw(cursor))
        end = data.draw(st.sampled_from(ends))
        before = bytes(memory[:PAGE_SIZE])
        at = data.draw(cursor)
        size = data.draw(st.integers(0, 2 * CAPACITY))
        try:
            if isinstance(end, Producer):
                assert 0 <= end.write(at, [bytes(size)]) <= size
            else:
                assert sum(map(len, end.peek(at))) <= CAPACITY
                end.consume(at)
        except ProtocolError:
            assert bytes(memory[:PAGE_SIZE]) == before
        mine = HEAD if isinstance(end, Producer) else TAIL
        for byte in range(PAGE_SIZE):
            if not mine <= byte < mine + 8:
                assert memory[byte] == before[byte]


# Every interleaving of a small model.
#
# A log of four bytes; requests whose completion and whose position in the stream are published
# in one step, as the ring engine does it. Between any two stores a process may die, and a
# successor does what was not published again. The launcher lives, and keeps its own cursor.

SMALL = 4
REQUESTS = (b"abc", b"defghi", b"j")
ALL = b"".join(REQUESTS)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CAPACITY", SMALL)
    monkeypatch.setattr(stream, "_LOG_SIZE", PAGE_SIZE + SMALL)


class Died(Exception):
    """Between two stores."""


@dataclass(frozen=True)
class State:
    """All that outlives a device (what the log holds, the requests published, what was moved on
    the other side), and what does not: ``volatile``, of the request that is being done."""

    head: int
    tail: int
    ring: bytes
    published: int
    moved: bytes
    volatile: int = 0

    def memory(self) -> memoryview:
        memory = log(capacity=SMALL)
        memory[HEAD : HEAD + 8], memory[TAIL : TAIL + 8] = word(self.head), word(self.tail)
        memory[PAGE_SIZE:] = self.ring
        return memory

    def after(self, memory: memoryview, **changes: object) -> State:
        head, tail = (int.from_bytes(memory[at : at + 8], "little") for at in (HEAD, TAIL))
        fields = {"published": self.published, "moved": self.moved} | changes
        return State(head, tail, bytes(memory[PAGE_SIZE:]), **fields)  # type: ignore[arg-type]

    @property
    def position(self) -> int:
        return sum(map(len, REQUESTS[: self.published]))


def die(*_: object) -> None:
    raise Died


def output_steps(state: State) -> Iterator[State]:
    """What may happen next when a device prints."""
    memory = state.memory()
    producer, consumer = Producer(memory), Consumer(memory)
    if state.published < len(REQUESTS):
        request = REQUESTS[state.published]
        if state.volatile == len(request):
            yield state.after(memory, published=state.published + 1)
        else:
            rest = request[state.volatile :]
            done = producer.write(state.position + state.volatile, [rest])
            yield state.after(memory, volatile=state.volatile + done)
            # It dies when the bytes are there, and the head is not moved.
            memory = state.memory()
            producer = Producer(memory)
            producer._move = die  # type: ignore[method-assign]
            try:
                producer.write(state.position + state.volatile, [rest])
            except Died:
                yield state.after(memory)
        # It dies here.
        yield state.after(state.memory())
    for size in range(1, len(b"".join(consumer.peek())) + 1):
        memory = state.memory()
        data = take(Consumer(memory), size)
        yield state.after(memory, moved=state.moved + data, volatile=state.volatile)


def input_steps(state: State) -> Iterator[State]:
    """What may happen next when a device reads. ``moved`` is what drivers were given; the
    requests are buffers of these sizes, of which each is published with what is there."""
    memory = state.memory()
    producer, consumer = Producer(memory), Consumer(memory)
    given = len(state.moved)
    if state.head < len(ALL):
        for size in range(1, min(producer.room, len(ALL) - state.head) + 1):
            memory = state.memory()
            Producer(memory).write(state.head, [ALL[state.head : state.head + size]])
            yield state.after(memory, volatile=state.volatile)
    if not state.volatile:
        # The position is published with the buffer; the tail follows it, now or never.
        if data := b"".join(consumer.peek(given))[: len(REQUESTS[state.published % 3])]:
            published, moved = state.published + 1, state.moved + data
            yield state.after(state.memory(), published=published, moved=moved, volatile=1)
    else:
        memory = state.memory()
        Consumer(memory).consume(given)
        yield state.after(memory)
        # It died before that: a successor does it when it begins.
        yield state.after(state.memory(), volatile=1)


@pytest.mark.parametrize("steps", [output_steps, input_steps])
@pytest.mark.usefixtures("small")
def test_no_interleaving_and_no_death_loses_or_repeats_a_byte(
    steps: Callable[[State], Iterator[State]],
) -> None:
    begin = State(0, 0, bytes(SMALL), 0, b"")
    before: dict[State, list[State]] = {begin: []}
    todo = [begin]
    while todo:
        state = todo.pop()
        for after in steps(state):
            assert ALL.startswith(after.moved), f"{state} and then {after}"
            assert after.head >= state.head
            assert after.tail >= state.tail
            assert after.tail <= after.head <= after.tail + SMALL
            if after not in before:
                before[after] = []
                todo.append(after)
            before[after].append(state)

    # From wherever one is, all of it can still arrive.
    arriving = {state for state in before if state.moved == ALL}
    todo = list(arriving)
    while todo:
        earlier = [state for state in before[todo.pop()] if state not in arriving]
        arriving.update(earlier)
        todo += earlier
    assert arriving == set(before)
    assert len(before) > 100, f"only {len(before)} states"


def test_end_that_stood_by_goes_on_where_the_one_before_left_it() -> None:
    memory = log()
    producer, consumer = Producer(memory), Consumer(memory)
    Producer(memory).write(0, [b"one before, "])
    other = Consumer(memory)
    other.consume(other.tail + 4)

    producer.take_over()
    consumer.take_over()

    assert producer.write(producer.head, [b"and on"]) == 6
    assert take(consumer) == b"before, and on"
