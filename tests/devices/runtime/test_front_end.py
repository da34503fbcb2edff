"""A process that stands for a back-end, between a VMM and real and hostile back-ends."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from devices.blk import Request as BlkRequest
from devices.runtime import disk
from devices.vhost_user import Config
from protocol import doorbell, messages
from protocol.vhost_user import (
    F_PROTOCOL_FEATURES,
    STATE_NOFD,
    U64,
    BackendRequest,
    ConfigSpace,
    Direction,
    Message,
    Request,
    VringState,
    pack,
    unpack_table,
)
from protocol.virtio import RING_FEATURES, Feature, Status, bit
from tests.support.daemons import (
    DISK,
    OFFERED,
    PROTOCOL,
    STORAGE_DAEMON,
    Daemon,
    Puppet,
    lacks,
    storage_daemon,
)
from tests.support.device_host import DeviceHost
from tests.support.peers import Served

pytestmark = pytest.mark.slow  # processes by the dozen

needs_daemon = pytest.mark.skipif(bool(lacks(STORAGE_DAEMON)), reason=lacks(STORAGE_DAEMON))

SECTOR = 512


def write(sector: int, data: bytes) -> tuple[list[bytes], list[int]]:
    """A request that writes ``data``."""
    return [struct.pack("<IIQ", BlkRequest.OUT, 0, sector), data], [1]


def read(sector: int, size: int = SECTOR) -> tuple[list[bytes], list[int]]:
    """A request that reads ``size`` bytes."""
    return [struct.pack("<IIQ", BlkRequest.IN, 0, sector)], [size, 1]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(1 << 20))
    return path


@pytest.fixture
def daemon(tmp_path: Path, image: Path) -> Iterator[Daemon]:
    with storage_daemon(tmp_path / "socket", image, queues=2) as daemon:
        yield daemon


def front_end(
    folder: Path, kind: str = "blk", socket: str = "socket", **options: object
) -> DeviceHost:
    """The process, for a disk in ``folder``, or a device of another ``kind``."""
    config = Config(kind, str(folder / socket), **options)  # type: ignore[arg-type]
    own = folder / f"process{len(list(folder.glob('process*')))}"
    own.mkdir()
    return DeviceHost("vhost-user", own, config)


def ends(host: DeviceHost, request: object) -> str:
    """What the process says last, which ``request`` is the end of."""
    host.channel.send(request, 1000)
    assert host.wait() == 3
    return host.log().rstrip()


# Of 16 entries, where there is memory.
SETUPS = (messages.QueueSetup(0, 16, 0x10_0000, 0x10_1000, 0x10_2000),)


@needs_daemon
def test_a_disk_of_another_program_is_read_and_written_through_both_queues(
    tmp_path: Path, image: Path, daemon: Daemon
) -> None:
    with front_end(tmp_path, num_queues=2) as host:
        assert host.hello is not None
        assert disk.Space.unpack(host.hello.config).capacity == 2048
        assert disk.Space.unpack(host.hello.config).num_queues == 2
        for _ in range(2):  # the driver resets it in between
            host.start(Feature.EVENT_IDX)
            for queue in (0, 1):
                data = os.urandom(SECTOR)
                assert host.send(*write(queue, data), index=queue).data == b"\0"
                assert host.send(*read(queue), index=1 - queue).data == data + b"\0"
                assert image.read_bytes()[queue * SECTOR :][:SECTOR] == data
            host.stop()
        assert host.quit() == 0


@needs_daemon
def test_what_it_has_begun_is_finished_when_it_is_stopped(tmp_path: Path, daemon: Daemon) -> None:
    with front_end(tmp_path) as host:
        for _ in range(20):
            host.start(size=64)
            driver = host.drivers[0]
            for sector in range(20):
                driver.add(*read(sector, 8 * SECTOR))
            host.publish()
            host.request(messages.Quiesce(), messages.Quiesced)
            assert len(driver.collect()) == 20


@needs_daemon
def test_its_death_is_the_back_ends(tmp_path: Path, daemon: Daemon) -> None:
    with front_end(tmp_path) as host:
        host.start()
        daemon.kill()

        assert host.wait() == 3
        assert "E the back-end: it has hung up" in host.log()


@needs_daemon
def test_a_killed_back_end_is_followed_by_one_that_goes_on_where_it_was(
    tmp_path: Path, image: Path, daemon: Daemon
) -> None:
    with front_end(tmp_path) as host:
        host.start()
        assert host.send(*write(0, bytes(SECTOR))).data == b"\0"
        setups, driver = host.setups(), host.drivers[0]
        daemon.kill()
        assert host.wait() == 3
        driver.add(*write(1, b"x" * SECTOR))
        driver.publish()

        with storage_daemon(tmp_path / "socket", image), front_end(tmp_path) as after:
            # The same memory, in another process's file.
            after.memory.whole[:] = host.memory.whole
            features = bit(Feature.VERSION_1)
            after.request(messages.Start(features, setups), messages.Done)
            # Some interrupt for nothing, too, when they are told where.
            while after.memory.read(setups[0].used + 2, 2) != b"\x02\0":
                assert after.interrupted()
    assert image.read_bytes()[SECTOR : 2 * SECTOR] == b"x" * SECTOR


def test_one_that_keeps_a_journal_works_on_the_drivers_own_ring(
    tmp_path: Path, image: Path
) -> None:
    # Our own, as anybody's: its rings may be the guest's, for it notes what it has begun.
    with Served(tmp_path / "socket", "blk", f"path={image}") as served:
        with front_end(tmp_path, direct=True) as host:
            host.start(Feature.EVENT_IDX, Feature.INDIRECT_DESC)
            for sector in range(100):
                assert host.send(*read(sector)).data[-1:] == b"\0"
            host.stop()
            assert host.quit() == 0
        assert "error" not in served.said


@pytest.mark.parametrize("direct", [False, True], ids=["mediated", "direct"])
def test_network_cards_of_others_send_and_receive(tmp_path: Path, direct: bool) -> None:
    # Both are ours, served to anybody, and on one Ethernet.
    lan = f"join={tmp_path / 'lan'}"
    packet = b"\xff" * 6 + b"\2\0\0\0\0\1" + b"\x08\x06" + b"hello" * 10
    ring = (Feature.EVENT_IDX, Feature.INDIRECT_DESC) if direct else ()
    with (
        Served(tmp_path / "a", "net", lan),
        Served(tmp_path / "b", "net", lan),
        front_end(tmp_path, "net", "a", direct=direct) as sender,
        front_end(tmp_path, "net", "b", direct=direct) as receiver,
    ):
        sender.start(*ring)
        receiver.start(*ring)
        receiver.drivers[0].add([], [2048])
        receiver.publish()
        sender.send([bytes(12), packet], index=1)

        (came,) = receiver.collect(1)
        assert came.data[12:] == packet


# Hostile ones.


def test_what_it_says_unasked_is_its_end(tmp_path: Path) -> None:
    with Puppet(tmp_path / "socket") as puppet, front_end(tmp_path) as host:
        host.start()
        puppet.say(pack(Request.GET_FEATURES, bytes(8), is_reply=True))

        assert host.wait() == 3
        assert "E the back-end: GET_FEATURES, unasked" in host.log()


@pytest.mark.parametrize(
    ("request_", "answer", "words"),
    [
        (Request.SET_MEM_TABLE, U64(1).pack(), "SET_MEM_TABLE: it says no"),
        (Request.SET_VRING_KICK, b"", "SET_VRING_KICK: 0 bytes"),
        (Request.SET_FEATURES, bytes(400), "SET_FEATURES: 400 bytes"),
    ],
)
def test_what_makes_no_sense_while_it_starts_is_its_end(
    tmp_path: Path, request_: Request, answer: bytes, words: str
) -> None:
    with Puppet(tmp_path / "socket", {request_: lambda _: answer}), front_end(tmp_path) as host:
        assert ends(host, messages.Start(bit(Feature.VERSION_1), SETUPS)).endswith(f"E {words}")


def test_what_it_ends_while_its_next_front_end_comes_to_know_it_is_neither_lost_nor_done_again(
    tmp_path: Path,
) -> None:
    # Its rings are served by another thread than its connections.
    bases = []

    def end_one(_: Message) -> bytes:
        host.memory.write(SETUPS[0].used + 2, b"\1\0")
        return U64(0).pack()

    def note(message: Message) -> bytes:
        bases.append(VringState.unpack(message.payload).num)
        return U64(0).pack()

    answers = {Request.SET_MEM_TABLE: end_one, Request.SET_VRING_BASE: note}
    with Puppet(tmp_path / "socket", answers), front_end(tmp_path) as host:
        host.request(messages.Start(bit(Feature.VERSION_1), SETUPS), messages.Done)
        assert host.interrupted(0)
    assert bases == [1]


def test_one_that_makes_its_doorbell_block_holds_up_nobody_who_rings_the_device(
    tmp_path: Path,
) -> None:
    own = tmp_path / "process"
    own.mkdir()
    config = Config("blk", str(tmp_path / "socket"))
    with (
        Puppet(tmp_path / "socket") as puppet,
        DeviceHost("vhost-user", own, config, start=False) as host,
    ):
        host.given["relay0"] = doorbell.create()
        host.hand_over()
        host.greet()
        host.start()
        (bell,) = puppet.given[Request.SET_VRING_KICK]
        os.set_blocking(bell, True)
        assert doorbell.drain(bell) == 1
        assert not os.get_blocking(host.kicks[0])

        host.kick()

        assert doorbell.drain(bell) == 1


def test_one_that_finishes_nothing_is_left(tmp_path: Path) -> None:
    with Puppet(tmp_path / "socket") as puppet, front_end(tmp_path) as host:
        host.start()
        host.drivers[0].add(*read(0))
        host.publish()
        assert ends(host, messages.Stop()).endswith("begun in queue 0")
        assert Request.GET_VRING_BASE not in puppet.asked


def test_one_that_keeps_a_journal_leaves_there_what_it_has_when_another_follows(
    tmp_path: Path,
) -> None:
    answers = {
        Request.GET_FEATURES: lambda _: U64(OFFERED | RING_FEATURES).pack(),
        Request.GET_PROTOCOL_FEATURES: lambda _: U64(PROTOCOL | bit(12)).pack(),
    }
    with (
        Puppet(tmp_path / "socket", answers) as puppet,
        front_end(tmp_path, direct=True) as host,
    ):
        host.start()
        assert Request.GET_INFLIGHT_FD in puppet.asked
        (file,) = puppet.given[Request.SET_INFLIGHT_FD]
        assert os.path.sameopenfile(file, host._journal_fd)
        host.drivers[0].add(*read(0))
        host.publish()
        host.request(messages.Quiesce(), messages.Quiesced)
        assert puppet.asked[-1] is Request.GET_VRING_BASE


def test_it_is_told_where_all_memory_lies_and_of_features_those_that_both_have(
    tmp_path: Path,
) -> None:
    told: dict[Request, bytes] = {}

    def done(message: Message) -> bytes:
        told[message.request] = bytes(message.payload)
        return U64(0).pack()

    answers = dict.fromkeys((Request.SET_FEATURES, Request.SET_MEM_TABLE), done)
    with Puppet(tmp_path / "socket", answers) as puppet, front_end(tmp_path) as host:
        # SIZE_MAX is ours, and it has no word to say about it.
        host.start(disk.Feature.SIZE_MAX, disk.Feature.FLUSH)
        files = puppet.given[Request.SET_MEM_TABLE]
        found = [
            (region.guest_address, region.size, region.mmap_offset)
            for region in unpack_table(told[Request.SET_MEM_TABLE])
        ]
        assert all(os.path.sameopenfile(file, host._memfd) for file in files)

    assert found == [(region.gpa, region.size, region.offset) for region in host.memory.regions]
    assert len(files) == len(found) > 1
    agreed = U64.unpack(told[Request.SET_FEATURES]).value
    assert agreed == sum(map(bit, (Feature.VERSION_1, F_PROTOCOL_FEATURES, disk.Feature.FLUSH)))


def test_one_that_wants_to_know_the_drivers_status_is_told_it(tmp_path: Path) -> None:
    told: list[int] = []

    def note(message: Message) -> bytes:
        told.append(message.number)
        return U64(0).pack()

    answers = {
        Request.GET_PROTOCOL_FEATURES: lambda _: U64(PROTOCOL | bit(16)).pack(),
        Request.SET_STATUS: note,
        Request.GET_STATUS: lambda _: U64(told[-1]).pack(),
    }
    with Puppet(tmp_path / "socket", answers) as puppet, front_end(tmp_path) as host:
        host.start()
        assert told == [3, 11, 15]
        # What it is told before the next, and after which.
        says = puppet.asked.index(Request.SET_FEATURES), puppet.asked.index(Request.SET_STATUS)
        assert says == (says[1] + 1, says[1])
        assert puppet.asked[-1] is Request.SET_STATUS
        assert puppet.asked[-2] is Request.SET_VRING_ENABLE
        host.stop()
        assert told[3:] == [0]
        # A successor's device is not reset under it.
        host.start()
        host.request(messages.Quiesce(), messages.Quiesced)
        assert host.quit() == 0
    assert told[4:] == [3, 11, 15]


def test_one_that_refuses_the_features_is_not_started_and_says_so(tmp_path: Path) -> None:
    told: list[int] = []

    def note(message: Message) -> bytes:
        told.append(message.number)
        return U64(0).pack()

    answers = {
        Request.GET_PROTOCOL_FEATURES: lambda _: U64(PROTOCOL | bit(16)).pack(),
        Request.SET_STATUS: note,
        Request.GET_STATUS: lambda _: U64(told[-1] & ~Status.FEATURES_OK).pack(),
    }
    with Puppet(tmp_path / "socket", answers) as puppet, front_end(tmp_path) as host:
        failed = host.start(expect=messages.Failed)
        assert failed.reason == "the back-end refuses the features 0x140000000"
        assert told == [3, 11, 0]
        assert Request.SET_VRING_KICK not in puppet.asked
        puppet.answers[Request.GET_STATUS] = lambda _: U64(11).pack()
        host.start()


SAVER = "tests.support.odd_devices:Saver"
STATEFUL = {Request.GET_PROTOCOL_FEATURES: lambda _: U64(PROTOCOL | bit(19)).pack()}


def test_what_a_back_end_knows_goes_to_the_next_one(tmp_path: Path) -> None:
    # Both are ours, of a class of one's own, which knows something.
    with (
        Served(tmp_path / "a", SAVER, "deed=what I know"),
        Served(tmp_path / "b", SAVER, "deed=else"),
        front_end(tmp_path, "rng", "a") as before,
        front_end(tmp_path, "rng", "b") as after,
    ):
        before.start()
        assert before.send([], [16]).data == b""
        state = before.request(messages.Quiesce(), messages.Quiesced).state
        assert state == b"\1what I know"
        assert before.quit() == 0

        after.start()  # whatever it was before
        after.stop()
        asked = messages.Start(bit(Feature.VERSION_1), after.setups(), b"\2of another version")
        refused = after.request(asked, messages.Failed)
        assert refused.reason == "the back-end says that its state went wrong (0x1)"
        after.start(state=state)
        assert after.send([], [16]).data == b"what I know"
        # Unasked, it goes on with what it has.
        after.request(messages.Quiesce(), messages.Quiesced)


def test_a_state_is_taken_over_before_there_is_a_ring_and_asked_for_after_the_last(
    tmp_path: Path,
) -> None:
    brought = b""

    def take(message: Message) -> bytes:
        # Into a pipe of its own, the first time; out of that which is sent, the second.
        direction, phase = struct.unpack("=II", message.payload)
        assert phase == 0
        if direction == Direction.LOAD:
            return U64(0).pack()
        (fd,) = puppet.given[Request.SET_DEVICE_STATE_FD][-1:]
        os.write(fd, b"known")
        os.close(puppet.given[Request.SET_DEVICE_STATE_FD].pop())
        return U64(STATE_NOFD).pack()

    def check(_: Message) -> bytes:
        nonlocal brought
        if not brought:
            brought = os.read(ours, 100)
        return U64(0).pack()

    ours, theirs = os.pipe()
    answers = {**STATEFUL, Request.SET_DEVICE_STATE_FD: take, Request.CHECK_DEVICE_STATE: check}
    with Puppet(tmp_path / "socket", answers) as puppet, front_end(tmp_path) as host:
        puppet.lends[Request.SET_DEVICE_STATE_FD] = [theirs]
        host.start(state=b"brought")
        del puppet.lends[Request.SET_DEVICE_STATE_FD]
        order = [
            Request.SET_MEM_TABLE,
            Request.SET_DEVICE_STATE_FD,
            Request.CHECK_DEVICE_STATE,
            Request.SET_VRING_ADDR,
            Request.SET_VRING_ENABLE,
        ]
        assert [request for request in puppet.asked if request in order] == order
        state = host.request(messages.Quiesce(), messages.Quiesced).state
        order = [
            Request.GET_VRING_BASE,
            Request.SET_DEVICE_STATE_FD,
            Request.CHECK_DEVICE_STATE,
        ]
        assert puppet.asked[-3:] == order
        os.close(theirs)
        assert os.read(ours, 100) == b""  # nobody has it any more
        os.close(ours)
    assert (brought, state) == (b"brought", b"known")


def test_who_knows_of_no_state_takes_none_over(tmp_path: Path) -> None:
    with Puppet(tmp_path / "socket") as puppet, front_end(tmp_path) as host:
        failed = host.start(state=b"x", expect=messages.Failed)
        assert failed.reason == "the back-end takes no state over"
        host.start()
        assert host.request(messages.Quiesce(), messages.Quiesced).state == b""
        assert Request.SET_DEVICE_STATE_FD not in puppet.asked


STATES: dict[str, tuple[int, int, bytes | None, str]] = {
    "it has none": (1, 0, b"", "the back-end does not save its state"),
    "it went wrong": (STATE_NOFD, 7, b"x", "the back-end says that its state went wrong (0x7)"),
    "as much as there may be": (STATE_NOFD, 0, bytes(messages.MAX_STATE), ""),
    "too much": (
        STATE_NOFD,
        0,
        bytes(messages.MAX_STATE + 1),
        f"the state is more than {messages.MAX_STATE} bytes",
    ),
    "it does not end": (STATE_NOFD, 0, None, "the state does not end within 2 seconds"),
    "no descriptor": (0, 0, b"", "no descriptor came with it"),
    "/dev/zero": (0, 0, b"", "the descriptor is no pipe, no socket and no file"),
    "/": (0, 0, b"", "the descriptor is no pipe, no socket and no file"),
    "eventfd": (0, 0, b"", "the descriptor is no pipe, no socket and no file"),
    "the wrong end": (0, 0, b"", "the state does not come: Bad file descriptor"),
}


@pytest.mark.parametrize("what", STATES)
def test_a_state_that_makes_no_sense_is_its_end(tmp_path: Path, what: str) -> None:
    said, checked, state, words = STATES[what]

    def save(_: Message) -> bytes:
        given = puppet.given[Request.SET_DEVICE_STATE_FD]
        if state is not None:
            os.write(given[-1], state)
            os.close(given.pop())
        return U64(said).pack()

    answers = {
        **STATEFUL,
        Request.SET_DEVICE_STATE_FD: save,
        Request.CHECK_DEVICE_STATE: lambda _: U64(checked).pack(),
    }
    with Puppet(tmp_path / "socket", answers) as puppet, front_end(tmp_path) as host:
        if what.startswith("/"):
            puppet.lends[Request.SET_DEVICE_STATE_FD] = [os.open(what, os.O_RDONLY)]
        elif what == "eventfd":
            puppet.lends[Request.SET_DEVICE_STATE_FD] = [doorbell.create()]
        elif what == "the wrong end":
            reader, writer = os.pipe()
            os.close(reader)
            puppet.lends[Request.SET_DEVICE_STATE_FD] = [writer]
        host.start()
        if words:
            assert ends(host, messages.Quiesce()).endswith(f"E {words}")
        else:
            assert host.request(messages.Quiesce(), messages.Quiesced).state == state


def test_one_that_does_not_take_its_state_is_not_started(tmp_path: Path) -> None:
    answers = {
        **STATEFUL,
        Request.SET_DEVICE_STATE_FD: lambda _: U64(1).pack(),
    }
    with Puppet(tmp_path / "socket", answers) as puppet, front_end(tmp_path) as host:
        failed = host.start(state=b"x", expect=messages.Failed)
        assert failed.reason == "the back-end does not load its state"
        puppet.answers[Request.SET_DEVICE_STATE_FD] = lambda _: U64(0).pack()
        reader, writer = os.pipe()
        os.close(reader)
        puppet.lends[Request.SET_DEVICE_STATE_FD] = [writer]
        failed = host.start(state=b"x", expect=messages.Failed)
        assert failed.reason == "the state is not taken: Broken pipe"
        assert Request.SET_VRING_KICK not in puppet.asked
        host.start()


def test_a_new_configuration_is_told(tmp_path: Path) -> None:
    larger = disk.Space.unpack(DISK)._replace(capacity=4096)
    with Puppet(tmp_path / "socket") as puppet, front_end(tmp_path) as host:
        (fd,) = puppet.given[Request.SET_BACKEND_REQ_FD]
        puppet.answers[Request.GET_CONFIG] = lambda _: ConfigSpace(0, 0, larger.pack()).pack()
        os.write(fd, pack(BackendRequest.CONFIG_CHANGE_MSG))

        changed = host.expect(messages.ConfigChanged)
        assert disk.Space.unpack(changed.config).capacity == 4096


def test_a_driver_writes_what_it_may_and_nothing_else(tmp_path: Path) -> None:
    # Of some back-ends anything else would be the end, and of their successors.
    with Puppet(tmp_path / "socket") as puppet, front_end(tmp_path) as host:
        for offset, data in ((0, bytes(8)), (31, b"\0\0"), (32, b""), (32, b"\0\0"), (60, b"x")):
            host.request(messages.WriteConfig(offset, data), messages.ConfigChanged)
        assert Request.SET_CONFIG not in puppet.asked
        host.request(messages.WriteConfig(disk.WRITEBACK_AT, b"\0"), messages.ConfigChanged)
        assert Request.SET_CONFIG in puppet.asked


def test_the_lower_limit_counts_and_features_of_no_disk_of_ours_are_left_out(
    tmp_path: Path,
) -> None:
    offered = sum(bit(number) for number in range(24)) | bit(30) | bit(32)
    said = disk.Space.unpack(DISK)._replace(size_max=4096, seg_max=1000, num_queues=9).pack()
    answers = {
        Request.GET_FEATURES: lambda _: U64(offered).pack(),
        Request.GET_CONFIG: lambda _: ConfigSpace(0, 0, said).pack(),
    }
    with Puppet(tmp_path / "socket", answers), front_end(tmp_path) as host:
        assert host.hello is not None
        found = disk.Space.unpack(host.hello.config)
        own = {feature for feature in disk.Feature if host.hello.features & bit(feature)}

    assert (found.size_max, found.seg_max, found.num_queues) == (4096, disk.SEG_MAX, 1)
    assert own == set(disk.Feature) - {disk.Feature.MQ}
    assert host.hello.features & (1 << 24) - 1 == sum(bit(feature) for feature in own)
