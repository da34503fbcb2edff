"""The console: bytes both ways through a stream, whoever is slow. Where streams lead is the
launcher's: tests/launcher/test_streams.py."""

from __future__ import annotations

import select
import struct
import time
from collections.abc import Callable

import pytest

from devices.console import Config, Console
from launcher.streams import LogEnd
from protocol import messages
from protocol.stream import CAPACITY, Consumer, Producer, Stream
from tests.support.device_host import DeviceHost
from tests.support.driving import DEADLINE

Boot = Callable[..., DeviceHost]

RECEIVEQ, TRANSMITQ = 0, 1


def give_room(host: DeviceHost, *sizes: int) -> None:
    """Offer buffers for input."""
    for size in sizes:
        host.drivers[RECEIVEQ].add([], [size])
    host.publish(RECEIVEQ)


def read(end: LogEnd, size: int) -> bytes:
    """Exactly ``size`` bytes."""
    data = b""
    while len(data) < size:
        assert select.select([end], [], [], DEADLINE)[0], f"only {len(data)} bytes came"
        end.drain()
        data += end.receive() or b""
    assert len(data) == size
    return data


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process does."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def console(boot: Boot) -> DeviceHost:
    """A started console."""
    host = boot("console", Config(cols=132, rows=43))
    host.start()
    return host


@pytest.fixture
def end(console: DeviceHost) -> LogEnd:
    """The launcher's end of its stream."""
    return console.host.streams[0]


def test_it_has_one_port_and_its_size(console: DeviceHost) -> None:
    assert console.hello is not None

    assert struct.unpack("<HHII", console.hello.config) == (132, 43, 1, 0)
    assert console.hello.features & 1  # VIRTIO_CONSOLE_F_SIZE


def test_output_comes_out_in_order_whatever_its_buffers(console: DeviceHost, end: LogEnd) -> None:
    driver = console.drivers[TRANSMITQ]
    driver.add([b"one ", b"two "])
    driver.add([b"three"])
    console.publish(TRANSMITQ)

    assert read(end, 13) == b"one two three"
    assert [used.written for used in console.collect(2, TRANSMITQ)] == [0, 0]


def test_input_fills_the_buffers_in_order(console: DeviceHost, end: LogEnd) -> None:
    give_room(console, 3, 100)
    end.send(b"abcdef")

    assert [used.data for used in console.collect(2, RECEIVEQ)] == [b"abc", b"def"]


def test_input_waits_in_the_stream_until_there_is_room_for_it(
    console: DeviceHost, end: LogEnd
) -> None:
    data = bytes(range(256)) * 300  # more than the stream holds
    sent = end.send(data)
    assert sent == CAPACITY
    assert end.send(data[sent:]) == 0

    received = b""
    while len(received) < len(data):
        give_room(console, 4096)
        received += console.collect(1, RECEIVEQ)[0].data
        sent += end.send(data[sent:])
    assert received == data
    assert console.counters()["input_bytes"] == len(data)


def test_a_slow_reader_loses_nothing_and_holds_up_nobody_else(
    console: DeviceHost, end: LogEnd
) -> None:
    blocks = [bytes([number]) * 50_000 for number in range(16)]
    driver = console.drivers[TRANSMITQ]
    for block in blocks:
        driver.add([block])
    console.publish(TRANSMITQ)
    until(lambda: console.counters().get("output_bytes", 0) == CAPACITY)
    until(lambda: driver.used_idx == 1)  # published after it is counted

    give_room(console, 16)
    end.send(b"typed meanwhile")
    assert console.collect(1, RECEIVEQ)[0].data == b"typed meanwhile"
    output = read(end, 16 * 50_000)

    assert output == b"".join(blocks)
    assert len(console.collect(16, TRANSMITQ)) == 16


def test_a_reset_drops_what_was_not_written_and_starts_clean(
    console: DeviceHost, end: LogEnd
) -> None:
    # Hazard 13: half of a chain is out, the driver takes its memory back.
    for _ in range(2):
        console.drivers[TRANSMITQ].add([b"x" * 50_000])
    console.publish(TRANSMITQ)
    until(lambda: console.counters().get("output_bytes", 0) == CAPACITY)

    console.stop()
    assert read(end, CAPACITY) == b"x" * CAPACITY
    console.start()
    console.drivers[TRANSMITQ].add([b"fresh"])
    console.publish(TRANSMITQ)

    assert read(end, 5) == b"fresh"
    console.collect(1, TRANSMITQ)


def test_input_that_no_driver_has_seen_is_the_next_ones(console: DeviceHost, end: LogEnd) -> None:
    give_room(console, 5)
    end.send(b"firstsecond")
    assert console.collect(1, RECEIVEQ)[0].data == b"first"

    console.stop()
    console.start()
    give_room(console, 16)

    assert console.collect(1, RECEIVEQ)[0].data == b"second"


def test_a_driver_without_a_receive_queue_can_print(console: DeviceHost, end: LogEnd) -> None:
    give_room(console, 5)
    end.send(b"typed")
    console.collect(1, RECEIVEQ)
    console.stop()
    console.start()
    console.stop()
    features = 1 << 32
    setup = console.setups()[TRANSMITQ]

    console.request(messages.Start(features, (setup,)), messages.Done)
    console.drivers[TRANSMITQ].add([b"printed"])
    console.publish(TRANSMITQ)

    assert read(end, 7) == b"printed"


def test_a_stream_that_makes_no_sense_ends_the_device_and_names_it(
    console: DeviceHost, end: LogEnd
) -> None:
    # The launcher would not; a device that was here before may have.
    end._stream.output[64:72] = (1 << 40).to_bytes(8, "little")
    console.drivers[TRANSMITQ].add([b"x"])
    console.publish(TRANSMITQ)

    assert console.wait() == 3
    assert "a log whose consumer is" in console.log()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"backend": "socket"}, "needs one"),
        ({"backend": "pty", "path": "x"}, "take none"),
        ({"cols": 65536}, "65536 by "),
    ],
)
def test_options_that_make_no_console_are_refused(
    options: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        Config(**options)  # type: ignore[arg-type]


def test_what_was_printed_and_read_while_it_stood_by_is_not_its_own(boot: Boot) -> None:
    host = boot("console", Config(cols=80, rows=25))
    end = host.host.streams[0]
    # The process that serves meanwhile: until this one starts, the ends are its own.
    logs = Stream(end.fds["stream"])
    Producer(logs.output).write(0, [b"from the one before, "])
    end.send(b"typed")
    Consumer(logs.input).consume(2)

    host.start()
    host.drivers[TRANSMITQ].add([b"and on"])
    host.publish(TRANSMITQ)
    give_room(host, 16)

    assert read(end, 27) == b"from the one before, and on"
    assert host.collect(1, TRANSMITQ)
    assert host.collect(1, RECEIVEQ)[0].written == 3
    logs.close()


def test_neither_queue_owes_progress() -> None:
    # Nobody may type for hours, and a reader may hold a terminal with Ctrl-S for as long.
    assert [queue.owes for queue in Console.queues] == [False, False]
