"""Every row of the table of faults, in a real, sealed device process."""

from __future__ import annotations

import os
import signal
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from devices.blk import Status
from protocol import doorbell, faults
from protocol.faults import Board, Fault
from protocol.memory import GuestMemory
from protocol.messages import (
    Done,
    GetStats,
    Ping,
    QueueSetup,
    Quiesce,
    Quit,
    Start,
    Stop,
    StopQueue,
    WriteConfig,
)
from protocol.ring.faults import POINTS as ENGINE_POINTS
from protocol.virtio import Feature, bit
from tests.support.device_host import DRIVER_ROOM, DeviceHost
from tests.support.driver import Driver

pytestmark = pytest.mark.slow

Boot = Callable[..., DeviceHost]

READ = struct.pack("<IIQ", 0, 0, 0)

# Nothing was published and not settled, so there is nothing to recover: tests/guest/test_inject.py.
NOT_IN_A_FIRST_LIFE = {"recover_clear", "recover_used_idx"}


@pytest.fixture
def board() -> Iterator[tuple[int, Board]]:
    fd = faults.create("test-faults")
    made = Board(fd)
    yield fd, made
    made.close()
    os.close(fd)


def begin(host: DeviceHost) -> None:
    """Start the device, and ask for something; it may be dead at any moment."""
    host.channel.send(Start(bit(Feature.VERSION_1), _lay(host)), 1000)
    host.drivers[0].add([], [32])
    host.drivers[0].publish()
    host.kick()


def _lay(host: DeviceHost) -> tuple[QueueSetup, ...]:
    host.drivers = {0: Driver(host.memory, 16, base=0x10_0000, length=DRIVER_ROOM, event_idx=False)}
    return host.setups()


@pytest.mark.parametrize(
    "point",
    ["attach", "handle", "complete", "interrupt", "answer_start"]
    + [point for point in ENGINE_POINTS if point not in NOT_IN_A_FIRST_LIFE],
)
def test_kill_at_a_point(boot: Boot, board: tuple[int, Board], point: str) -> None:
    fd, armed = board
    armed.arm(Fault("kill", point))
    host = boot("rng", faults=fd)

    begin(host)

    assert host.wait() == -signal.SIGKILL, host.log()
    ((_, passes),) = armed.armed()
    assert passes == 1


@pytest.mark.parametrize(
    "request_",
    [Stop(), Quiesce(), StopQueue(0), WriteConfig(0, b"x"), GetStats(), Ping(), Quit()],
)
def test_kill_before_an_answer(boot: Boot, board: tuple[int, Board], request_: object) -> None:
    fd, armed = board
    host = boot("rng", faults=fd)
    host.start()
    armed.arm(Fault("kill", faults.answer_to(type(request_))))

    host.channel.send(request_, 1000)

    assert host.wait() == -signal.SIGKILL, host.log()


def test_kill_when_the_configuration_is_read(boot: Boot, board: tuple[int, Board]) -> None:
    fd, armed = board
    armed.arm(Fault("kill", "read_config", after=1))
    host = boot("blk", faults=fd)  # which reads it once

    host.channel.send(WriteConfig(0, b"x"), 1000)

    assert host.wait() == -signal.SIGKILL, host.log()


def test_hang_answers_nothing_until_it_is_over(boot: Boot, board: tuple[int, Board]) -> None:
    fd, armed = board
    host = boot("rng", faults=fd)
    host.start()
    until = time.monotonic_ns() + 500_000_000
    armed.arm(Fault("hang", "answer_ping", until=until))

    host.request(Ping(), Done)

    assert time.monotonic_ns() >= until  # which may be late, and cannot be early
    host.request(Ping(), Done)


def test_hang_without_an_end(boot: Boot, board: tuple[int, Board]) -> None:
    fd, armed = board
    host = boot("rng", faults=fd)
    host.start()
    armed.arm(Fault("hang", "answer_ping"))

    host.channel.send(Ping(), 1000)

    assert host.channel.wait(0.3) is None
    assert host.process.poll() is None


def test_delay_is_over_at_last(boot: Boot, board: tuple[int, Board]) -> None:
    fd, armed = board
    host = boot("rng", faults=fd)
    host.start()
    armed.arm(Fault("delay", "handle", delay=200_000_000))
    begun = time.monotonic_ns()

    assert host.send([], [8]).written == 8

    assert time.monotonic_ns() - begun >= 200_000_000  # as above
    assert host.send([], [8]).written == 8


def test_io_error(boot: Boot, board: tuple[int, Board]) -> None:
    fd, armed = board
    host = boot("blk", faults=fd)
    host.start()
    armed.arm(Fault("io-error", "handle", after=1))

    answers = [host.send([READ], [512, 1]).data for _ in range(3)]

    assert [answer[-1] for answer in answers] == [Status.OK, Status.IOERR, Status.OK]


def test_short_write_gives_less_and_says_so(boot: Boot, board: tuple[int, Board]) -> None:
    fd, armed = board
    host = boot("rng", faults=fd)
    host.start()
    armed.arm(Fault("short-write", "handle", seed=1))

    short, whole = host.send([], [20, 12]), host.send([], [20, 12])

    assert 0 < short.written < 32
    assert any(short.data[: short.written])
    assert not any(short.data[short.written :])
    assert whole.written == 32


def test_short_write_passes_a_disk_by(boot: Boot, board: tuple[int, Board]) -> None:
    fd, armed = board
    host = boot("blk", faults=fd)
    host.start()
    armed.arm(Fault("short-write", "handle", every=1))

    assert host.send([READ], [512, 1]).written == 513
    ((_, passes),) = armed.armed()
    assert passes == 0


def test_drop_call_publishes_and_does_not_tell(boot: Boot, board: tuple[int, Board]) -> None:
    fd, armed = board
    host = boot("rng", faults=fd)
    host.start()
    doorbell.drain(host.call)
    armed.arm(Fault("drop-call", "interrupt"))
    driver = host.drivers[0]
    driver.add([], [8])
    host.publish()
    host.request(Ping(), Done)
    while not driver.collect():
        host.request(Ping(), Done)

    assert not host.interrupted(0)
    # The next one tells of both.
    driver.add([], [8])
    host.publish()
    assert host.interrupted()


def test_duplicate_used_says_everything_twice(boot: Boot, board: tuple[int, Board]) -> None:
    fd, armed = board
    host = boot("rng", faults=fd)
    host.start()
    armed.arm(Fault("duplicate-used", "push_used_idx"))
    host.drivers[0].add([], [8])
    host.publish()
    host.interrupted()

    used = host.drivers[0].used
    index, first, second = _used(host.memory, used)
    assert index == 2
    assert first == second


def _used(memory: GuestMemory, at: int) -> tuple[int, bytes, bytes]:
    return (
        int.from_bytes(memory.read(at + 2, 2), "little"),
        memory.read(at + 4, 8),
        memory.read(at + 12, 8),
    )


@pytest.mark.parametrize("seed", range(3))
def test_corrupt_payload_changes_one_bit_of_the_data(
    boot: Boot, board: tuple[int, Board], seed: int
) -> None:
    fd, armed = board
    host = boot("blk", faults=fd)
    host.start()
    right = host.send([READ], [512, 1]).data
    armed.arm(Fault("corrupt-payload", "complete", seed=seed))

    wrong, again = host.send([READ], [512, 1]).data, host.send([READ], [512, 1]).data

    differences = [one ^ other for one, other in zip(right, wrong, strict=True) if one != other]
    assert len(differences) == 1
    assert differences[0].bit_count() == 1
    assert wrong[-1] == Status.OK
    assert again == right


def test_process_without_a_board_has_no_trace_of_it(boot: Boot) -> None:
    host = boot("rng")
    host.start()

    assert host.send([], [8]).written == 8
    with open(f"/proc/{host.process.pid}/maps", encoding="ascii") as maps:
        assert "_ring_faults" not in maps.read()


def test_traced_device_can_be_broken_too(
    boot: Boot, board: tuple[int, Board], tmp_path: object
) -> None:
    fd, armed = board
    trace = os.memfd_create("trace", os.MFD_CLOEXEC)
    try:
        host = boot("rng", faults=fd, trace=trace)
        host.start()
        armed.arm(Fault("short-write", "handle"))
        assert host.send([], [16]).written < 16
        assert host.quit() == 0
        assert b"chain" in os.pread(trace, 1 << 16, 0)
    finally:
        os.close(trace)
