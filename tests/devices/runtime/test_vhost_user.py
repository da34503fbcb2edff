"""Devices under vhost-user: what front-ends do that is to be survived, and what costs them the
connection. The device processes are real and sealed; the front-end is the test."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from devices import blk
from devices.runtime.vhost_user import LARGEST_QUEUE, MAX_SLOTS
from protocol import doorbell, vhost_user
from protocol.memory import create_memfd
from protocol.messages import MAX_STATE
from protocol.vhost_user import (
    F_PROTOCOL_FEATURES,
    STATE_NOFD,
    U64,
    VRING_NOFD,
    ConfigSpace,
    DeviceState,
    Direction,
    Inflight,
    ProtocolFeature,
    Request,
    VringAddr,
    VringState,
    pack_region,
    pack_table,
)
from protocol.virtio import Feature, Status, bit
from tests.support.back_end import BackEnd
from tests.support.front_end import REGIONS, user_address
from tests.support.odd_devices import Config

pytestmark = pytest.mark.slow  # processes by the dozen

Serve = Callable[..., BackEnd]

# Of struct virtio_blk_config.
WRITEBACK = 32

KEEPER = "tests.support.odd_devices:Keeper"


@pytest.fixture
def serve(tmp_path: Path, image: Path, _no_leaks: None) -> Iterator[Serve]:
    """A process of a kind, and its front-end; a blk gets a disk."""
    with ExitStack() as stack:
        count = 0

        def start(kind: str, config: object = None, **options: Any) -> BackEnd:
            nonlocal count
            folder = tmp_path / f"device{count}"
            folder.mkdir()
            count += 1
            if kind == "blk" and config is None:
                config = blk.Config(str(image))
            return stack.enter_context(BackEnd(kind, folder, config, **options))

        yield start


def read_sector(peer: BackEnd, sector: int, index: int = 0) -> bytes:
    used = peer.send([struct.pack("<IIQ", blk.Request.IN, 0, sector)], [512, 1], index)
    assert used.data[-1] == blk.Status.OK
    return used.data[:-1]


def write_sector(peer: BackEnd, sector: int, data: bytes) -> None:
    used = peer.send([struct.pack("<IIQ", blk.Request.OUT, 0, sector), data], [1])
    assert used.data == bytes([blk.Status.OK])


# ── what front-ends do ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["set_table", "add_regions"])
@pytest.mark.parametrize("region", [0, 1])
def test_a_disk_is_read_and_written_in_every_region_of_a_table_that_came_either_way(
    serve: Serve, image: Path, how: str, region: int
) -> None:
    peer = serve("blk")
    peer.negotiate(features=[Feature.EVENT_IDX, Feature.INDIRECT_DESC])
    getattr(peer, how)()
    peer.lay_out(region=region)
    peer.set_ring()
    peer.enable()
    data = os.urandom(512)

    write_sector(peer, 3, data)

    assert read_sector(peer, 3) == data == image.read_bytes()[3 * 512 : 4 * 512]
    assert read_sector(peer, 2) == image.read_bytes()[2 * 512 : 3 * 512]


def test_every_queue_of_a_disk_is_served_by_itself(serve: Serve, image: Path) -> None:
    peer = serve("blk", blk.Config(str(image), queues=3))
    peer.negotiate(features=[Feature.EVENT_IDX])
    assert peer.ask(Request.GET_QUEUE_NUM).number == 3
    peer.set_table()
    content = image.read_bytes()

    for index in (2, 1):
        peer.start(index)
        assert read_sector(peer, index, index) == content[index * 512 : (index + 1) * 512]
    # While it runs its interrupts go elsewhere, and it is stopped and goes on, as the first is.
    peer.set_bell(Request.SET_VRING_CALL, 2)
    assert read_sector(peer, 5, 2) == content[5 * 512 : 6 * 512]
    assert peer.stop(2) == 2
    peer.set_ring(2)
    assert read_sector(peer, 6, 2) == content[6 * 512 : 7 * 512]
    assert read_sector(peer, 7, 1) == content[7 * 512 : 8 * 512]


def test_what_is_written_into_the_configuration_outlives_resets_and_processes(
    serve: Serve,
) -> None:
    # QEMU keeps a copy that no reset changes, and does not say what it holds once more.
    first = serve("blk")
    first.negotiate()
    assert first.config(60)[WRITEBACK] == 1

    first.tell(Request.SET_CONFIG, ConfigSpace(WRITEBACK, 0, b"\0").pack())
    assert first.config(60)[WRITEBACK] == 0
    first.tell(Request.RESET_DEVICE)
    assert first.config(60)[WRITEBACK] == 0

    second = serve("blk", host=first.host, written=os.dup(first.written))
    second.negotiate()
    assert second.config(60)[WRITEBACK] == 0


def test_both_features_of_rings_work_whatever_the_device(serve: Serve) -> None:
    # QEMU acknowledges them for an entropy device, whatever that says.
    peer = serve("rng")
    peer.negotiate(features=[Feature.EVENT_IDX, Feature.INDIRECT_DESC])
    peer.set_table()
    peer.start()
    head = peer.drivers[0].add([], [16, 16], indirect=True)
    peer.publish()

    (used,) = peer.collect(1)

    assert (used.head, used.written) == (head, 32)


def test_a_front_end_without_protocol_features_is_served(serve: Serve) -> None:
    # Its rings are enabled from the start; nobody says so.
    peer = serve("rng")
    peer.features = bit(Feature.VERSION_1)
    peer.set_features(protocol=False)
    peer.set_table()
    peer.lay_out()
    peer.set_ring()

    assert peer.send([], [8]).written == 8


def test_firmware_drives_the_disk_and_then_the_kernel_with_other_features(serve: Serve) -> None:
    peer = serve("blk")
    peer.negotiate()
    peer.set_table()
    peer.start(size=4)
    first = read_sector(peer, 0)
    assert peer.stop() == 1
    peer.enable(num=0)
    peer.features |= bit(Feature.EVENT_IDX)

    peer.set_features()
    peer.start(size=128)

    assert read_sector(peer, 0) == first


def test_a_call_may_come_before_anything_else_and_be_another_while_the_ring_runs(
    serve: Serve,
) -> None:
    peer = serve("rng")
    peer.set_bell(Request.SET_VRING_CALL)
    peer.enable()
    peer.enable()
    peer.negotiate()
    peer.enable(num=0)
    peer.set_table()
    peer.start()
    peer.send([], [8])

    peer.set_bell(Request.SET_VRING_CALL)
    assert peer.send([], [8]).written == 8

    peer.clear_bell(Request.SET_VRING_CALL)
    doorbell.drain(peer.bells["SET_VRING_CALL0"])
    peer.drivers[0].add([], [8])
    peer.publish()
    while not peer.drivers[0].collect():
        pass
    assert not peer.interrupted(seconds=0)


def test_a_call_that_is_a_socket_is_written_to(serve: Serve) -> None:
    # User-mode Linux's; nobody reads it any more when it goes.
    peer = serve("rng")
    peer.negotiate()
    peer.set_table()
    peer.start()
    ours, theirs = socket.socketpair()
    peer.tell(Request.SET_VRING_CALL, U64(0).pack(), [theirs.fileno()])
    theirs.close()
    peer.drivers[0].add([], [8])
    peer.publish()

    assert ours.recv(8) == struct.pack("=Q", 1)

    ours.close()
    peer.drivers[0].add([], [8])
    peer.publish()
    peer.set_bell(Request.SET_VRING_CALL)
    peer.collect(2)
    assert peer.send([], [8]).written == 8


@pytest.mark.parametrize("flags", [os.EFD_CLOEXEC, os.EFD_CLOEXEC | os.EFD_NONBLOCK])
def test_whether_a_kick_blocks_is_up_to_the_front_end(serve: Serve, flags: int) -> None:
    # QEMU sets O_NONBLOCK on whatever it shares; it belongs to the open file, and so to both.
    peer = serve("rng")
    peer.negotiate()
    peer.set_table()
    peer.start()
    kick = os.eventfd(0, flags)
    peer.tell(Request.SET_VRING_KICK, U64(0).pack(), [kick])
    peer.bells["own"] = kick
    peer.drivers[0].add([], [8])
    peer.drivers[0].publish()

    os.eventfd_write(kick, 1)

    assert peer.collect(1)[0].written == 8


@pytest.mark.parametrize("size", [8, 36, 57, 60, 256])
def test_so_much_of_the_configuration_is_told_as_is_asked_for(serve: Serve, size: int) -> None:
    peer = serve("blk")
    peer.negotiate()

    config = peer.config(size)

    assert len(config) == size
    assert struct.unpack_from("<Q", config) == (1 << 11,)
    assert not any(config[60:])


def test_only_a_device_that_has_a_configuration_offers_one(serve: Serve) -> None:
    # QEMU's disk refuses a back-end without one, and its entropy device complains of one.
    asked = [serve(kind).ask(Request.GET_PROTOCOL_FEATURES).number for kind in ("blk", "rng")]

    assert [bool(number & bit(ProtocolFeature.CONFIG)) for number in asked] == [True, False]


def test_a_driver_that_writes_its_configuration_reaches_the_device_and_hears_of_a_change(
    serve: Serve,
) -> None:
    peer = serve("keeper", Config(), register=KEEPER)
    peer.negotiate()
    ours, theirs = socket.socketpair()
    peer.tell(Request.SET_BACKEND_REQ_FD, b"", [theirs.fileno()])
    theirs.close()
    peer.set_table()
    peer.start()
    peer.drivers[0].add([], [8])
    peer.publish()

    with ours:
        assert ours.recv(100) == struct.pack("=III", 2, 1, 0)  # CONFIG_CHANGE_MSG
    assert peer.config(1) == b"\1"
    peer.tell(Request.SET_CONFIG, ConfigSpace(0, 0, b"x").pack())

    assert peer.collect(1)[0].data == b"kept"


def test_user_mode_linux_wants_a_reply_to_everything_and_leaves_without_a_word(
    serve: Serve,
) -> None:
    peer = serve("blk")
    protocol = bit(ProtocolFeature.REPLY_ACK) | bit(ProtocolFeature.CONFIG)
    peer.acknowledges = True  # from the message on that negotiates it
    peer.tell(Request.SET_PROTOCOL_FEATURES, U64(protocol).pack())
    peer.tell(Request.SET_OWNER)
    peer.features = bit(Feature.VERSION_1)
    peer.set_features()
    peer.set_table()
    peer.start(size=256)  # more than the device has declared
    read_sector(peer, 0)

    peer.enable(num=0)
    peer.connection.close()

    assert peer.wait() == 0
    assert "E " not in peer.log()


def test_a_ring_that_is_disabled_rests_and_goes_on_where_it_was(serve: Serve) -> None:
    peer = serve("rng")
    peer.negotiate()
    peer.set_table()
    peer.start()
    peer.send([], [8])
    peer.enable(num=0)
    peer.drivers[0].add([], [8])
    peer.drivers[0].publish()
    peer.kick()
    peer.ask(Request.GET_FEATURES)
    assert peer.drivers[0].used_idx == 1

    peer.enable()

    assert peer.collect(1)[0].written == 8


def test_a_ring_goes_on_where_it_was_stopped(serve: Serve) -> None:
    peer = serve("blk")
    peer.negotiate()
    peer.set_table()
    peer.start()
    for sector in range(5):
        read_sector(peer, sector)

    base = peer.stop()
    peer.set_ring(base=base)

    assert base == 5
    read_sector(peer, 6)
    assert peer.stop() == 6


def test_what_was_made_available_is_done_before_a_ring_stops(serve: Serve) -> None:
    # More than a batch, none of which may be in flight when the base is told.
    peer = serve("blk")
    peer.negotiate()
    peer.set_table()
    peer.start(size=128)
    for _ in range(40):
        peer.drivers[0].add([struct.pack("<IIQ", blk.Request.IN, 0, 0)], [512, 1])
    peer.drivers[0].publish()
    peer.kick()
    select.select([peer.bells["SET_VRING_CALL0"]], [], [], 20)

    assert peer.stop() == peer.drivers[0].used_idx


def test_a_status_of_nothing_is_a_reset_after_which_the_base_is_told_all_the_same(
    serve: Serve,
) -> None:
    peer = serve("blk")
    peer.negotiate()
    peer.set_table()
    peer.start()
    running = Status.ACKNOWLEDGE | Status.DRIVER | Status.DRIVER_OK
    peer.tell(Request.SET_STATUS, U64(running).pack())
    assert peer.ask(Request.GET_STATUS).number == running
    read_sector(peer, 0)

    peer.tell(Request.SET_STATUS, U64(0).pack())

    assert peer.ask(Request.GET_STATUS).number == 0
    assert peer.stop() == 1
    peer.start()
    read_sector(peer, 0)


@pytest.mark.parametrize("request_", [Request.RESET_DEVICE, Request.RESET_OWNER])
def test_a_device_that_was_reset_is_set_up_again(serve: Serve, request_: Request) -> None:
    peer = serve("rng")
    peer.negotiate()
    peer.set_table()
    peer.start()

    peer.tell(request_)
    peer.drivers[0].add([], [8])
    peer.drivers[0].publish()
    peer.kick()
    peer.ask(Request.GET_FEATURES)

    assert peer.drivers[0].used_idx == 0
    peer.start()
    assert peer.send([], [8]).written == 8


def test_memory_may_change_under_a_ring_that_runs(serve: Serve) -> None:
    peer = serve("rng")
    peer.negotiate()
    low, high = (pack_region(region) for region in REGIONS)
    peer.tell(Request.ADD_MEM_REG, low, peer.files[:1])
    assert peer.ask(Request.GET_MAX_MEM_SLOTS).number == MAX_SLOTS
    peer.start()
    peer.send([], [8])

    peer.tell(Request.ADD_MEM_REG, high, peer.files[1:])
    assert peer.send([], [8]).written == 8
    # With a descriptor, as an older QEMU does, and without.
    peer.tell(Request.REM_MEM_REG, high, peer.files[1:])
    assert peer.send([], [8]).written == 8
    peer.set_table()
    assert peer.send([], [8]).written == 8


def test_a_ring_that_its_driver_broke_costs_the_device_until_it_is_reset(serve: Serve) -> None:
    peer = serve("rng")
    peer.negotiate()
    peer.set_table()
    peer.start()
    err = peer.set_bell(Request.SET_VRING_ERR)
    driver = peer.drivers[0]
    driver.write16(driver.avail + 2, 1000)

    peer.kick()

    select.select([err], [], [], 20)
    assert doorbell.drain(err) == 1
    assert peer.ask(Request.GET_STATUS).number == Status.DEVICE_NEEDS_RESET
    peer.tell(Request.SET_STATUS, U64(0).pack())
    peer.start()
    assert peer.send([], [8]).written == 8


# ── what is in flight ─────────────────────────────────────────────────────────────────


def test_what_a_killed_process_left_in_flight_comes_to_the_next_one(serve: Serve) -> None:
    first = serve("keeper", Config("reverse"), register=KEEPER, shares=True)
    first.negotiate()
    region, file = first.get_inflight()
    first.tell(Request.SET_INFLIGHT_FD, region.pack(), [file])
    first.set_table()
    first.start()
    for _ in range(3):
        first.drivers[0].add([], [8])
    first.publish()
    while first.config(1) != b"\3":
        pass
    first.process.kill()

    second = serve("keeper", Config("reverse"), register=KEEPER)
    # Its memory is the same, and so are its rings.
    second.memory, first.memory = first.memory, second.memory
    second.files, first.files = first.files, second.files
    second.drivers = first.drivers
    second.negotiate()
    second.tell(Request.SET_INFLIGHT_FD, region.pack() + bytes(4), [file])
    os.close(file)
    second.set_table()
    second.set_ring()
    second.enable()

    while second.config(1) != b"\3":
        pass
    second.tell(Request.SET_CONFIG, ConfigSpace(0, 0, b"x").pack())
    assert [used.data for used in second.collect(3)] == [b"kept"] * 3


@pytest.mark.parametrize("padding", [0, 4])
def test_a_region_has_room_for_as_many_rings_as_are_asked_for_and_is_fresh(
    serve: Serve, padding: int
) -> None:
    # The specification has 20 bytes; QEMU's compiler makes it 24, and it wants as many back.
    peer = serve("rng", shares=True)
    peer.negotiate()

    region, file = peer.get_inflight(1, LARGEST_QUEUE, padding)

    with os.fdopen(file, "rb") as found:
        found.seek(region.mmap_offset)
        content = found.read()
    assert len(content) == region.mmap_size >= 16 + 16 * LARGEST_QUEUE
    assert not any(content)
    assert (region.num_queues, region.queue_size) == (1, LARGEST_QUEUE)


def test_a_region_has_room_for_rings_larger_than_was_said_and_says_so(
    serve: Serve, image: Path
) -> None:
    # QEMU asks for 128 entries, and under its virtio-mmio Linux makes rings of 1024.
    peer = serve("blk", blk.Config(str(image), queues=2), shares=True)
    peer.negotiate()
    region, file = peer.get_inflight(2, 128)
    assert (region.num_queues, region.queue_size) == (2, LARGEST_QUEUE)
    assert region.mmap_size == 2 * (16 + 16 * LARGEST_QUEUE + 48)
    peer.tell(Request.SET_INFLIGHT_FD, replace(region, queue_size=128).pack(), [file])
    os.close(file)
    peer.set_table()

    peer.start(1, size=LARGEST_QUEUE)

    assert read_sector(peer, 1, 1) == image.read_bytes()[512:1024]


def test_a_ring_of_another_driver_is_not_what_the_region_was_for(serve: Serve) -> None:
    # Reset by its guest, without another region: nothing was in flight.
    peer = serve("rng", shares=True)
    peer.negotiate()
    region, file = peer.get_inflight()
    peer.tell(Request.SET_INFLIGHT_FD, region.pack(), [file])
    os.close(file)
    peer.set_table()
    peer.start()
    for _ in range(3):
        peer.send([], [8])
    peer.stop()

    peer.start(size=8)

    assert peer.send([], [8]).written == 8


# ── the device's state ────────────────────────────────────────────────────────────────

SAVER = "tests.support.odd_devices:Saver"


@pytest.fixture
def saver(serve: Serve) -> BackEnd:
    """A device that knows something, "deed", and shows what it was left."""
    peer = serve("saver", Config("deed"), register=SAVER)
    peer.negotiate()
    return peer


def begin(peer: BackEnd, direction: Direction, fd: int) -> None:
    """A transfer through ``fd``, which is closed here."""
    reply = peer.ask(Request.SET_DEVICE_STATE_FD, DeviceState(direction, 0).pack(), [fd])
    os.close(fd)
    assert reply.number == STATE_NOFD
    assert not reply.descriptors


def check(peer: BackEnd) -> int:
    return peer.ask(Request.CHECK_DEVICE_STATE).number


def test_what_it_knows_is_told_once_it_has_come_to_rest(saver: BackEnd) -> None:
    assert check(saver) == 1  # how nothing went
    for expected in (b"", b"\1deed", b"\1deed"):
        ours, theirs = os.pipe()
        begin(saver, Direction.SAVE, theirs)
        with os.fdopen(ours, "rb") as state:
            assert state.read() == expected
        assert check(saver) == 0
        saver.set_table()
        saver.start()
        saver.send([], [16])
        saver.stop()
        # As QEMU does, which asks for it afterwards.
        saver.tell(Request.SET_STATUS, U64(0).pack())
    file = create_memfd("state", 5)
    begin(saver, Direction.SAVE, os.dup(file))
    assert check(saver) == 0
    assert os.pread(file, 9, 0) == b"\1deed"
    os.close(file)


@pytest.mark.parametrize("way", ["pipe", "socket", "file"])
def test_what_another_knew_it_goes_on_with(saver: BackEnd, way: str) -> None:
    if way == "file":  # as Cloud Hypervisor has it
        theirs = create_memfd("state", 5)
        os.pwrite(theirs, b"\1left", 0)
        begin(saver, Direction.LOAD, theirs)
    else:
        theirs, ours = (
            os.pipe() if way == "pipe" else map(socket.socket.detach, socket.socketpair())
        )
        begin(saver, Direction.LOAD, theirs)
        for piece in (b"\1", b"left"):
            os.write(ours, piece)
        os.close(ours)
    assert check(saver) == 0
    saver.set_table()
    saver.start()
    assert saver.send([], [16]).data == b"left"


def test_a_state_that_it_makes_nothing_of_leaves_it_as_it_was(saver: BackEnd) -> None:
    for state in (b"\2of another version", b"\1" + bytes(4 * MAX_STATE)):
        theirs, ours = os.pipe()
        begin(saver, Direction.LOAD, theirs)
        # Nobody waits for who does not read, and it is not waited for.
        with suppress(BrokenPipeError), os.fdopen(ours, "wb", buffering=0) as pipe:
            pipe.write(state)
        assert check(saver) == 1
    theirs, ours = os.pipe()
    begin(saver, Direction.LOAD, theirs)
    assert check(saver) == 1  # it does not end
    os.close(ours)
    saver.set_table()
    saver.start()
    assert saver.send([], [16]).data == b""
    saver.stop()
    ours, theirs = os.pipe()
    os.close(ours)
    begin(saver, Direction.SAVE, theirs)
    assert check(saver) == 1  # nobody reads it
    assert "the state is not taken: Broken pipe" in saver.log()


def test_who_knows_nothing_offers_no_state(serve: Serve) -> None:
    for kind in ("blk", "rng"):
        peer = serve(kind)
        offered = peer.ask(Request.GET_PROTOCOL_FEATURES).number
        assert not offered & bit(ProtocolFeature.DEVICE_STATE)


@pytest.mark.parametrize(
    ("told", "files", "words"),
    [
        (DeviceState(2, 0), 1, "direction 2, phase 0"),
        (DeviceState(0, 1), 1, "direction 0, phase 1"),
        (DeviceState(0, 0), 0, "no descriptor came with it"),
        (DeviceState(1, 0), 2, "2 descriptors"),
        (DeviceState(1, 0), 1, "the descriptor is no pipe, no socket and no file"),
    ],
)
def test_a_transfer_that_makes_no_sense_costs_the_connection(
    saver: BackEnd, told: DeviceState, files: int, words: str
) -> None:
    bells = [doorbell.create() for _ in range(files)]
    saver.connection.send(Request.SET_DEVICE_STATE_FD, told.pack(), bells)
    for bell in bells:
        os.close(bell)
    assert saver.is_hung_up_on()
    assert f"E the front-end: SET_DEVICE_STATE_FD: {words}" in saver.log()


def test_what_has_begun_its_work_takes_nothing_over(saver: BackEnd) -> None:
    theirs, ours = os.pipe()
    begin(saver, Direction.LOAD, theirs)
    os.write(ours, b"\1left")
    os.close(ours)
    saver.set_table()
    saver.start()
    saver.connection.send(Request.CHECK_DEVICE_STATE)
    assert saver.is_hung_up_on()
    assert "CHECK_DEVICE_STATE: the device is not stopped" in saver.log()


def test_what_is_at_work_has_no_state_to_tell(saver: BackEnd) -> None:
    saver.set_table()
    saver.start()
    saver.send([], [16])
    saver.connection.send(Request.SET_DEVICE_STATE_FD, DeviceState(0, 0).pack(), [saver.files[0]])
    assert saver.is_hung_up_on()
    assert "SET_DEVICE_STATE_FD: the device is not stopped" in saver.log()


# ── the jail ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("deed", "call"),
    [
        # Descriptors come in, and never go out; memory is shared by file, and not made.
        ("give-away", "sendmsg"),
        ("shared-memory", "mmap"),
        ("executable", "mmap"),
        ("open", "open"),
        ("socket", "socket"),
        ("kill", "kill"),
    ],
)
def test_it_is_sealed_as_devices_are_but_for_what_comes_in(
    serve: Serve, deed: str, call: str
) -> None:
    peer = serve("rogue", Config(deed), register="tests.support.odd_devices:Rogue")
    peer.negotiate()
    peer.set_table()
    peer.start()
    peer.drivers[0].add([b"go"])
    peer.publish()

    assert peer.is_hung_up_on()
    assert peer.wait() == -signal.SIGSYS
    assert f"E forbidden system call {call}" in peer.log()


# ── what costs the connection ─────────────────────────────────────────────────────────


def addr(**changes: int) -> bytes:
    where = user_address(1 << 20)
    return replace(VringAddr(0, 0, where, where, where, 0), **changes).pack()


low, high = REGIONS
STATE, U = VringState, lambda value: U64(value).pack()

LIES: dict[str, tuple[Request, bytes, int]] = {
    "features nobody offered": (Request.SET_FEATURES, U(1 << 34), 0),
    "protocol features nobody offered": (Request.SET_PROTOCOL_FEATURES, U(1 << 14), 0),
    "a ring that is not there": (Request.SET_VRING_NUM, STATE(1, 16).pack(), 0),
    "a ring of no size": (Request.SET_VRING_NUM, STATE(0, 0).pack(), 0),
    "a ring of a strange size": (Request.SET_VRING_NUM, STATE(0, 17).pack(), 0),
    "a ring too large": (Request.SET_VRING_NUM, STATE(0, 65536).pack(), 0),
    "a log": (Request.SET_VRING_ADDR, addr(flags=1), 0),
    "a base of no ring": (Request.GET_VRING_BASE, STATE(9, 0).pack(), 0),
    "a kick that is to be polled": (Request.SET_VRING_KICK, U(VRING_NOFD), 0),
    "a kick without a descriptor": (Request.SET_VRING_KICK, U(0), 0),
    "a kick that is a file": (Request.SET_VRING_KICK, U(0), 1),
    "two kicks": (Request.SET_VRING_KICK, U(0), 2),
    "a call that is a file": (Request.SET_VRING_CALL, U(0), 1),
    "requests to a file": (Request.SET_BACKEND_REQ_FD, b"", 1),
    "a table without files": (Request.SET_MEM_TABLE, pack_table(REGIONS), 0),
    "a table with a file too few": (Request.SET_MEM_TABLE, pack_table(REGIONS), 1),
    "a table that is shorter than it says": (
        Request.SET_MEM_TABLE,
        struct.pack("=II", 2, 0) + low.pack(),
        2,
    ),
    "no region": (Request.SET_MEM_TABLE, struct.pack("=II", 0, 0) + low.pack(), 0),
    "a region twice": (Request.SET_MEM_TABLE, pack_table((low, low)), 2),
    "a region with the addresses of another": (
        Request.SET_MEM_TABLE,
        pack_table((low, replace(high, user_address=low.user_address))),
        2,
    ),
    "a region of nothing": (Request.ADD_MEM_REG, pack_region(replace(low, size=0)), 1),
    "a region of half a page": (Request.ADD_MEM_REG, pack_region(replace(low, size=2048)), 1),
    "a region at half a page": (
        Request.ADD_MEM_REG,
        pack_region(replace(low, mmap_offset=2048, size=4096)),
        1,
    ),
    "a region beyond its file": (
        Request.ADD_MEM_REG,
        pack_region(replace(low, mmap_offset=low.mmap_offset + 4096)),
        1,
    ),
    "a region beyond all addresses": (
        Request.ADD_MEM_REG,
        pack_region(replace(low, guest_address=(1 << 64) - 4096)),
        1,
    ),
    "a region to be taken that nobody gave": (Request.REM_MEM_REG, pack_region(low), 0),
    "a configuration shorter than it says": (
        Request.GET_CONFIG,
        struct.pack("=III", 0, 9, 0) + bytes(8),
        0,
    ),
    "a configuration beyond its end": (
        Request.SET_CONFIG,
        ConfigSpace(250, 0, bytes(8)).pack(),
        0,
    ),
    "an in-flight region for no queue": (Request.GET_INFLIGHT_FD, Inflight(0, 0, 0, 16).pack(), 0),
    "an in-flight region for large queues": (
        Request.GET_INFLIGHT_FD,
        Inflight(0, 0, 1, 2048).pack(),
        0,
    ),
    "an in-flight region of another's": (
        Request.SET_INFLIGHT_FD,
        Inflight(4096, 0, 1, 16).pack(),
        1,
    ),
    "an in-flight region that is none": (
        Request.SET_INFLIGHT_FD,
        Inflight(64 * 257, 4096, 1, 16).pack(),
        0,
    ),
    "more than the message has": (Request.SET_OWNER, bytes(8), 0),
    "less than the message has": (Request.SET_VRING_NUM, bytes(4), 0),
    "a request that was not offered": (Request.SET_LOG_FD, b"", 1),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_costs_the_connection_and_says_which(serve: Serve, lie: str) -> None:
    peer = serve("blk")
    peer.negotiate()
    request, payload, descriptors = LIES[lie]

    peer.connection.send(request, payload, peer.files[:descriptors])

    assert peer.is_hung_up_on()
    assert peer.wait() == 0
    assert f"E the front-end: {request.name}" in peer.log()


@pytest.mark.parametrize(
    ("packet", "complaint"),
    [
        (struct.pack("=III", 1, 2, 0), "GET_FEATURES: flags 0x2"),
        (struct.pack("=III", 1, 0x11, 0), "GET_FEATURES: flags 0x11"),
        (struct.pack("=III", 0, 1, 0), "0 is no request of vhost-user"),
        (struct.pack("=III", 2, 1, 1 << 31), "SET_FEATURES: 2147483648 bytes"),
        (vhost_user.pack(Request.GET_FEATURES, is_reply=True), "a reply to nothing"),
    ],
)
def test_what_is_no_message_costs_the_connection(
    serve: Serve, packet: bytes, complaint: str
) -> None:
    peer = serve("rng")
    stream = socket.socket(fileno=os.dup(peer.connection.fileno()))

    with stream:
        stream.sendall(packet)

    assert peer.is_hung_up_on()
    assert complaint in peer.log()


def test_a_message_that_comes_byte_by_byte_is_one_and_holds_nobody_up(serve: Serve) -> None:
    peer = serve("rng")
    peer.negotiate(ProtocolFeature.REPLY_ACK)
    peer.set_table()
    peer.start()
    stream = socket.socket(fileno=os.dup(peer.connection.fileno()))

    with stream:
        for byte in vhost_user.pack(Request.GET_FEATURES):
            stream.send(bytes([byte]))
            assert peer.send([], [4]).written == 4
    assert peer.connection.wait(20).number & bit(F_PROTOCOL_FEATURES)


@pytest.mark.parametrize("which", ["descriptor", "used", "available"])
def test_a_ring_that_is_not_in_memory_costs_the_connection(serve: Serve, which: str) -> None:
    peer = serve("rng")
    peer.negotiate(ProtocolFeature.REPLY_ACK)
    peer.set_table()
    peer.lay_out()
    peer.set_ring()
    peer.tell(Request.SET_VRING_ADDR, addr(**{which: 0x1000}))

    peer.enable()

    assert peer.is_hung_up_on()
    assert "0x1000 is in no region of memory" in peer.log()


def test_a_driver_of_old_costs_the_connection(serve: Serve) -> None:
    peer = serve("blk")
    peer.negotiate(ProtocolFeature.REPLY_ACK)
    peer.features = bit(blk.Feature.FLUSH)
    peer.set_features()
    peer.set_table()
    peer.lay_out()
    peer.set_ring()

    peer.enable()

    assert peer.is_hung_up_on()
    assert "of the time before virtio 1.0" in peer.log()


def test_more_memory_than_there_are_slots_costs_the_connection(serve: Serve) -> None:
    peer = serve("rng")
    peer.negotiate()
    for number in range(MAX_SLOTS):
        where = (number + 1) << 40
        region = replace(low, guest_address=where, user_address=where, size=4096)
        peer.tell(Request.ADD_MEM_REG, pack_region(region), peer.files[:1])

    peer.connection.send(Request.ADD_MEM_REG, pack_region(low), peer.files[:1])

    assert peer.is_hung_up_on()
    assert f"more than {MAX_SLOTS} regions of memory" in peer.log()


def test_a_request_whose_feature_was_not_negotiated_costs_the_connection(serve: Serve) -> None:
    peer = serve("blk")
    peer.negotiate(ProtocolFeature.CONFIG)

    peer.connection.send(Request.GET_CONFIG, ConfigSpace(0, 0, bytes(8)).pack())

    assert peer.is_hung_up_on()
    assert "GET_CONFIG: CONFIG was not negotiated" in peer.log()


def test_a_front_end_that_reads_no_replies_is_not_waited_for(serve: Serve) -> None:
    peer = serve("rng")
    peer.negotiate(ProtocolFeature.REPLY_ACK)
    stream = socket.socket(fileno=os.dup(peer.connection.fileno()))

    with stream:
        flood = vhost_user.pack(Request.GET_FEATURES) * 100
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            send_for_ever(stream, flood)

    assert peer.wait() == 0
    assert "it does not read what it is sent" in peer.log()


def send_for_ever(stream: socket.socket, flood: bytes) -> None:
    while True:
        stream.sendall(flood)
