"""The disk: every request, every wrong request, and an image that fails under it."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from devices.blk import Blk, Config, Feature, MappedBlk, Request, Status
from devices.lanes import PLAIN
from devices.runtime.device import Offer, Runtime
from protocol import fds
from protocol.errors import BadInput
from protocol.messages import ConfigChanged, WriteConfig
from tests.fuzz.chains import Request as Asked
from tests.support.device_host import DeviceHost, FakeHost
from vmm import memory_map

Boot = Callable[..., DeviceHost]

SECTOR = 512
SECTORS = 2048  # of the image that conftest.py makes
WRITING = (Feature.FLUSH, Feature.DISCARD, Feature.WRITE_ZEROES)

# struct virtio_blk_config of <linux/virtio_blk.h>: offsets of what we offer.
CAPACITY, SIZE_MAX, SEG_MAX, BLK_SIZE, WRITEBACK, NUM_QUEUES, MAY_UNMAP = 0, 8, 12, 20, 32, 34, 56


def header(kind: int, sector: int = 0) -> bytes:
    """struct virtio_blk_outhdr."""
    return struct.pack("<IIQ", kind, 0, sector)


def extent(sector: int, sectors: int, flags: int = 0) -> bytes:
    """struct virtio_blk_discard_write_zeroes."""
    return struct.pack("<QII", sector, sectors, flags)


# What a file system has to say about a mapping it says by a signal, which ends the process.
unmapped = pytest.mark.parametrize("boot", ["blk"], indirect=True)


# What is done in C, once more by the other engine.
engines = pytest.mark.parametrize(
    "boot", ["blk", "blk io_uring", "blk io_uring none", "blk-mapped"], indirect=True
)


@pytest.fixture(params=["blk", "blk-mapped"])
def boot(request: pytest.FixtureRequest, boot: Boot, image: Path) -> Boot:
    """Both implementations: what is asked of one is asked of the other."""
    used, *how = request.param.split()

    def start(kind: str, config: Config | None = None, **options: Any) -> DeviceHost:
        assert kind == "blk"
        if how:
            settings = dict(zip(("engine", "cache"), how, strict=False))
            config = replace(config or Config(str(image)), **settings)
        return boot(used, config, **options)

    return start


@pytest.fixture
def disk(boot: Boot) -> DeviceHost:
    """A started disk with everything negotiated."""
    host = boot("blk")
    host.start(*WRITING, size=64)
    return host


def status(host: DeviceHost, *readable: bytes, room: int = 0) -> int:
    """The status of a request; what it has ``room`` for must be accounted for and zero if it
    failed."""
    used = host.send(readable, [room, 1] if room else [1])
    assert used.written == room + 1
    if used.data[-1] != Status.OK:
        assert used.data[:-1] == bytes(room)
    return used.data[-1]


# What works.


@engines
def test_what_is_written_is_read_back_and_lies_in_the_file(disk: DeviceHost, image: Path) -> None:
    data = os.urandom(4 * SECTOR)

    assert status(disk, header(Request.OUT, 100), data) == Status.OK
    used = disk.send([header(Request.IN, 100)], [4 * SECTOR, 1])

    assert used.data == data + bytes([Status.OK])
    assert image.read_bytes()[100 * SECTOR : 104 * SECTOR] == data


@engines
def test_any_split_of_a_request_into_buffers_is_the_same_request(
    disk: DeviceHost, image: Path
) -> None:
    # 2.7.4.3: the device makes no assumptions about the arrangement of descriptors.
    data = os.urandom(2 * SECTOR)
    whole = header(Request.OUT, 7) + data

    written = disk.send([whole[:3], whole[3:20], whole[20:21], whole[21:]], [1])
    read = disk.send([header(Request.IN, 7)[:9], header(Request.IN, 7)[9:]], [1, 700, 324])

    assert written.data == bytes([Status.OK])
    assert read.data == data + bytes([Status.OK])


def test_the_last_sector_is_there_and_the_one_behind_it_is_not(
    disk: DeviceHost, image: Path
) -> None:
    last = disk.send([header(Request.IN, SECTORS - 1)], [SECTOR, 1])

    assert last.data[:SECTOR] == image.read_bytes()[-SECTOR:]
    assert status(disk, header(Request.IN, SECTORS), room=SECTOR) == Status.IOERR
    assert status(disk, header(Request.IN, SECTORS - 1), room=2 * SECTOR) == Status.IOERR


@engines
def test_a_flush_is_answered(disk: DeviceHost) -> None:
    assert status(disk, header(Request.FLUSH)) == Status.OK
    assert disk.counters()["flushes"] == 1


@pytest.mark.parametrize("room", [1, 20, 30])
def test_the_serial_number_is_padded_with_zeros(boot: Boot, image: Path, room: int) -> None:
    host = boot("blk", Config(str(image), serial="SN-42"))
    host.start()

    used = host.send([header(Request.GET_ID)], [room, 1])

    assert used.data == b"SN-42".ljust(room, b"\0")[:room] + bytes([Status.OK])


@pytest.mark.parametrize("kind", [Request.DISCARD, Request.WRITE_ZEROES])
def test_discarded_and_zeroed_ranges_read_as_zeros_and_their_neighbours_do_not(
    disk: DeviceHost, image: Path, kind: Request
) -> None:
    before = image.read_bytes()

    assert status(disk, header(kind), extent(8, 16) + extent(64, 8)) == Status.OK

    expected = bytearray(before)
    expected[8 * SECTOR : 24 * SECTOR] = bytes(16 * SECTOR)
    expected[64 * SECTOR : 72 * SECTOR] = bytes(8 * SECTOR)
    assert image.read_bytes() == expected


def test_zeroing_with_unmap_gives_the_space_back(disk: DeviceHost, image: Path) -> None:
    blocks = image.stat().st_blocks

    assert status(disk, header(Request.WRITE_ZEROES), extent(0, SECTORS, flags=1)) == Status.OK

    assert image.read_bytes() == bytes(SECTORS * SECTOR)
    assert image.stat().st_blocks < blocks


@pytest.fixture
def memfd() -> Iterator[int]:
    """An image of 256 KiB in memory, full of ones; its file system knows holes but no ranges of
    zeros."""
    fd = os.memfd_create("image", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.pwrite(fd, b"\xff" * (256 * 1024), 0)
    yield fd
    os.close(fd)


def test_where_the_file_system_cannot_zero_zeros_are_written(boot: Boot, memfd: int) -> None:
    host = boot("blk", Config(f"/proc/self/fd/{memfd}"))
    host.start(*WRITING)

    assert status(host, header(Request.WRITE_ZEROES), extent(3, 300)) == Status.OK

    content = os.pread(memfd, 256 * 1024, 0)
    assert content.count(0) == 300 * SECTOR
    assert content[3 * SECTOR : 303 * SECTOR] == bytes(300 * SECTOR)


@pytest.mark.parametrize(
    ("largest", "size_max"),
    [
        (memory_map.LARGEST_CHAIN, 64 * 1024),
        (126 * 8192 + 17, 8192),
        (126 * 8192 + 16, 4096),
        (1 << 30, 256 * 1024),
    ],
)
def test_requests_fit_what_a_chain_may_have(boot: Boot, largest: int, size_max: int) -> None:
    host = boot("blk", start=False)
    host.hand_over(largest_chain=largest)
    host.greet()

    assert host.hello is not None
    assert struct.unpack_from("<II", host.hello.config, SIZE_MAX) == (size_max, 126)


def test_the_configuration_space_tells_the_disk(boot: Boot, image: Path) -> None:
    host = boot("blk", Config(str(image), block_size=4096))
    assert host.hello is not None
    config = host.hello.config

    assert len(config) == 60
    assert struct.unpack_from("<Q", config, CAPACITY) == (SECTORS,)
    assert struct.unpack_from("<II", config, SIZE_MAX) == (256 * 1024, 126)
    assert struct.unpack_from("<I", config, BLK_SIZE) == (4096,)
    assert struct.unpack_from("<H", config, NUM_QUEUES) == (1,)
    # max_discard_sectors, max_discard_seg, discard_sector_alignment, then those of zeroes
    assert struct.unpack_from("<5I", config, 36) == (1 << 15, 1, 8, 1 << 15, 1)
    assert config[MAY_UNMAP] == 1


def test_two_disks_keep_their_images_apart(boot: Boot, tmp_path: Path) -> None:
    hosts = []
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode() * SECTOR)
        hosts.append(boot("blk", Config(str(tmp_path / name))))
        hosts[-1].start()

    read = [host.send([header(Request.IN)], [SECTOR, 1]).data[:1] for host in hosts]

    assert read == [b"a", b"b"]


# Caches.


@pytest.mark.parametrize("boot", ["blk", "blk io_uring"], indirect=True)
def test_around_the_page_cache_any_buffer_will_do(boot: Boot, image: Path) -> None:
    # Two requests for C, whose buffers lie on blocks, and two that have to be copied.
    host = boot("blk", Config(str(image), cache="none"))
    host.start(*WRITING)
    data = os.urandom(3 << 20)
    image.write_bytes(data[: SECTORS * SECTOR])
    host.memory.write(0x2000, header(Request.IN, 8))
    host.memory.write(0x2100, header(Request.OUT, 16))
    driver = host.drivers[0]
    for first, head, flags in ((10, 0x2000, 3), (13, 0x2100, 1)):
        driver.write_descriptor(first, head, 16, 1, first + 1)
        driver.write_descriptor(first + 1, 0x4000, 4096, flags, first + 2)
        driver.write_descriptor(first + 2, 0x3000, 1, 2, 0)
        driver.adopt(first)
        host.publish()
        host.collect(1)
        assert host.memory.read(0x3000, 1)[0] == Status.OK

    read = host.send([header(Request.IN, 8)], [100, 4096 - 100, 1])
    size = (1 << 20) - 32 * SECTOR
    wrote = status(host, header(Request.OUT, 32)[:5], header(Request.OUT, 32)[5:] + data[-size:])

    assert read.data == data[4096:8192] + bytes([Status.OK])
    assert wrote == Status.OK
    content = image.read_bytes()
    assert content[8192:12288] == data[4096:8192]
    assert content[32 * SECTOR :] == data[-size:]
    fdinfo = Path(f"/proc/self/fdinfo/{host.given['image']}").read_text()
    assert int(fdinfo.split("flags:")[1].split()[0], 8) & os.O_DIRECT


@unmapped
def test_zeros_are_written_around_the_page_cache(boot: Boot, memfd: int) -> None:
    host = boot("blk", Config(f"/proc/self/fd/{memfd}", cache="none"))
    host.start(*WRITING)

    assert status(host, header(Request.WRITE_ZEROES), extent(8, 296)) == Status.OK

    assert os.pread(memfd, 256 * 1024, 0).count(0) == 296 * SECTOR


# The write cache.

FLUSH, WCE = 1 << Feature.FLUSH, 1 << Feature.CONFIG_WCE


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A descriptor for each fdatasync."""
    calls: list[int] = []
    monkeypatch.setattr(os, "fdatasync", calls.append)
    return calls


class Cached:
    """A disk in this process with ``cache``; what it tells of, and the flags of its C lane."""

    def __init__(self, image: int, cache: Any = "writeback") -> None:
        self.changes = 0
        runtime = SimpleNamespace(largest_chain=0, config_changed=self._changed)
        self.disk = Blk(Config("", cache=cache), {"image": image}, cast(Runtime, runtime))
        self.disk.lane(0, PLAIN)

    def _changed(self) -> None:
        self.changes += 1

    @property
    def writes_through(self) -> bool:
        """Whether a write is durable before it is complete, whoever serves it."""
        (lane,) = self.disk._disks
        assert lane.write_flags == self.disk._write_flags
        return bool(lane.write_flags & os.RWF_DSYNC)

    @property
    def writeback(self) -> int:
        """What the configuration space says."""
        return self.disk.config_space()[WRITEBACK]


@pytest.fixture
def cached(memfd: int) -> Cached:
    return Cached(memfd)


@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_a_flush_makes_durable(memfd: int, cache: Any, synced: list[int]) -> None:
    disk = Cached(memfd, cache).disk
    disk.start(FLUSH)
    asked = Asked(header(Request.FLUSH), [], [1])

    assert disk.requestq(asked.chain()) == 1

    assert asked.answer() == bytes([Status.OK])
    assert len(synced) == 1


def test_an_unsafe_disk_offers_no_flush_and_makes_nothing_durable(
    memfd: int, synced: list[int]
) -> None:
    # 5.2.6.2: not offering FLUSH is what is required of those that do not commit.
    cached = Cached(memfd, "unsafe")
    assert not cached.disk.features & (FLUSH | WCE)

    cached.disk.start(0)

    assert not cached.writes_through
    assert synced == []


@pytest.mark.parametrize(
    ("agreed", "written", "writes_through"),
    [
        (FLUSH, None, False),
        (0, None, True),
        (FLUSH | WCE, None, False),
        (WCE, None, True),  # 5.2.5.2: writeback begins as 0
        (FLUSH | WCE, 0, True),
        (FLUSH | WCE, 1, False),
        (FLUSH | WCE, 7, False),
        (WCE, 1, False),
        (FLUSH, 0, False),  # it may not write there, and will flush
        (0, 1, True),
    ],
)
@pytest.mark.parametrize("early", [False, True])
def test_a_write_is_durable_unless_the_driver_knows_that_it_is_not(
    cached: Cached, agreed: int, written: int | None, writes_through: bool, early: bool
) -> None:
    # Early: to a successor it is written before it is started.
    if early and written is not None:
        cached.disk.write_config(WRITEBACK, bytes([written]))
    cached.disk.start(agreed)
    if not early and written is not None:
        cached.disk.write_config(WRITEBACK, bytes([written]))

    assert cached.writes_through == writes_through
    if agreed & WCE:
        assert cached.writeback == (not writes_through)


@pytest.mark.parametrize(
    ("offset", "data"),
    [(0, bytes(32)), (33, b"\0\0"), (WRITEBACK, b""), (1 << 40, b"\0"), (28, bytes(4))],
)
def test_nothing_else_of_the_configuration_can_be_written(
    cached: Cached, offset: int, data: bytes
) -> None:
    cached.disk.start(FLUSH | WCE)
    before = cached.disk.config_space()

    cached.disk.write_config(offset, data)

    assert cached.disk.config_space() == before
    assert not cached.writes_through


def test_a_wide_write_reaches_the_field(cached: Cached) -> None:
    cached.disk.start(FLUSH | WCE)

    cached.disk.write_config(WRITEBACK - 2, b"\1\1\0\1")

    assert cached.writes_through


def test_who_wants_no_cache_any_more_finds_what_was_written_before_durable(
    cached: Cached, memfd: int, synced: list[int]
) -> None:
    cached.disk.start(FLUSH | WCE)
    assert synced == []

    cached.disk.write_config(WRITEBACK, b"\0")
    assert synced == [memfd]
    cached.disk.write_config(WRITEBACK, b"\1")
    assert synced == [memfd]

    # A successor, whose predecessor may have died before it came to that.
    cached.disk.stop()
    cached.disk.write_config(WRITEBACK, b"\0")
    cached.disk.start(FLUSH | WCE)
    assert synced == [memfd, memfd]


def test_an_image_that_cannot_be_made_durable_costs_the_device_nothing(
    cached: Cached, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    cached.disk.start(FLUSH | WCE)

    cached.disk.write_config(WRITEBACK, b"\0")

    assert cached.writes_through
    assert cached.disk.counters["io_errors"] == 1


def test_a_reset_undoes_what_was_written_and_is_told_of(cached: Cached) -> None:
    cached.disk.start(FLUSH | WCE)
    cached.disk.write_config(WRITEBACK, b"\0")
    assert cached.changes == 0  # the driver knows what it has written
    cached.disk.stop()

    cached.disk.reset()

    assert cached.writeback == 1
    assert cached.changes == 1
    cached.disk.start(FLUSH | WCE)
    assert not cached.writes_through


def test_a_process_turns_its_cache_off_and_forgets_that_when_it_is_reset(boot: Boot) -> None:
    host = boot("blk")
    host.start(Feature.FLUSH, Feature.CONFIG_WCE)

    off = host.request(WriteConfig(WRITEBACK, b"\0"), ConfigChanged)
    assert off.config[WRITEBACK] == 0
    assert host.events == []
    assert status(host, header(Request.OUT, 1), bytes(SECTOR)) == Status.OK
    host.stop()

    (told,) = host.events
    assert isinstance(told, ConfigChanged)
    assert told.config[WRITEBACK] == 1


# Several queues.


def test_a_disk_of_several_queues_says_so(boot: Boot, image: Path) -> None:
    host = boot("blk", Config(str(image), queues=3))

    assert host.hello is not None
    assert host.hello.queue_sizes == (128,) * 3
    assert host.hello.features & 1 << Feature.MQ
    assert struct.unpack_from("<H", host.hello.config, NUM_QUEUES) == (3,)


@engines
def test_each_of_its_queues_reads_and_writes_the_same_disk(boot: Boot, image: Path) -> None:
    host = boot("blk", Config(str(image), queues=2))
    host.start(*WRITING, Feature.MQ)
    data = [os.urandom(SECTOR) for _ in range(2)]

    for index in range(2):
        used = host.send([header(Request.OUT, index), data[index]], [1], index)
        assert used.data == bytes([Status.OK])
    for index in range(2):
        used = host.send([header(Request.IN, 1 - index)], [SECTOR, 1], index)
        assert used.data == data[1 - index] + bytes([Status.OK])
        assert host.send([header(Request.FLUSH)], [1], index).data == bytes([Status.OK])

    counters = host.counters()
    assert (counters["reads"], counters["writes"], counters["flushes"]) == (2, 2, 2)
    assert counters["requestq.chains"] == 6
    assert host.quit() == 0


# Limits.


@pytest.mark.parametrize("limit", [{"iops": 1}, {"bw": 512 * 1024}])
def test_a_disk_that_waits_answers_the_vmm_and_stops_at_once(
    boot: Boot, image: Path, limit: dict[str, int]
) -> None:
    # As much as takes ten seconds, of which the first comes at once.
    host = boot("blk", Config(str(image), **limit))
    host.start()
    driver = host.drivers[0]
    for index in range(10):
        driver.write_descriptor(index, 0x2000, 16, 1, 12)
        driver.adopt(index)
    driver.write_descriptor(12, 0x8_0000, 500 * 1024, 3, 13)
    driver.write_descriptor(13, 0x3000, 1, 2, 0)
    host.memory.write(0x2000, header(Request.IN))
    host.publish()
    driver.want_interrupts()
    assert host.interrupted()

    assert host.counters()["reads"] < 10
    host.stop()

    assert 0 < driver.used_idx < 10


@engines
def test_what_had_to_wait_is_done_then(boot: Boot, image: Path) -> None:
    # The first twenty come at once.
    host = boot("blk", Config(str(image), iops=20))
    host.start(*WRITING)

    for number in range(25):
        kind = Request.FLUSH if number % 2 else Request.IN
        assert status(host, header(kind), room=SECTOR * (1 - number % 2)) == Status.OK

    assert host.counters()["requestq.chains"] == 25


def test_a_request_is_no_larger_than_what_a_second_takes(boot: Boot, image: Path) -> None:
    host = boot("blk", Config(str(image), bw=512 * 1024))

    assert host.hello is not None
    assert struct.unpack_from("<II", host.hello.config, SIZE_MAX) == (4096, 126)


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ({"iops": -1}, "iops: -1 requests in a second"),
        ({"bw": 524287}, "bw: 524287 bytes in a second are fewer than 524288"),
        ({"bw": -1}, "bw: -1 bytes in a second are fewer than 524288"),
    ],
)
def test_a_limit_that_is_none_is_refused(option: dict[str, int], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Config("", **option)  # type: ignore[arg-type]


# What is not done.


def test_a_disk_that_is_read_only_offers_and_does_no_writing(boot: Boot, image: Path) -> None:
    before = image.read_bytes()
    host = boot("blk", Config(str(image), readonly=True))
    host.start(Feature.RO, Feature.FLUSH)
    assert host.hello is not None
    offered = host.hello.features

    assert offered >> Feature.RO & 1
    assert not offered >> Feature.DISCARD & 1
    assert not offered >> Feature.WRITE_ZEROES & 1
    assert status(host, header(Request.OUT), bytes(SECTOR)) == Status.IOERR
    assert status(host, header(Request.DISCARD), extent(0, 1)) == Status.UNSUPP
    assert status(host, header(Request.IN), room=SECTOR) == Status.OK
    assert image.read_bytes() == before


def test_a_driver_that_may_write_gets_no_disk_that_is_read_only(image: Path) -> None:
    runtime = cast(Runtime, SimpleNamespace(largest_chain=0))

    def offer(*, readonly: bool) -> Offer:
        with image.open("rb") as file:
            disk = Blk(Config("", readonly=readonly), {"image": file.fileno()}, runtime)
            return Offer(disk.features, disk.config_space())

    ours, theirs = offer(readonly=False), offer(readonly=True)

    refused = Blk.why_unfit(ours, theirs)

    assert refused == "it is read-only (RO), and the driver may write to this one"
    assert Blk.why_unfit(theirs, theirs) is None
    # Whether a driver has negotiated RO, which the writable one lacks, the VMM knows.
    assert Blk.why_unfit(theirs, ours) is None


@pytest.mark.parametrize("kind", [Request.FLUSH, Request.DISCARD, Request.WRITE_ZEROES, 2, 14, 99])
def test_a_request_that_was_not_negotiated_or_is_unknown_is_unsupported(
    boot: Boot, kind: int
) -> None:
    host = boot("blk")
    host.start()

    assert status(host, header(kind), extent(0, 1)) == Status.UNSUPP


@pytest.mark.parametrize(
    ("readable", "room"),
    [
        pytest.param((header(Request.IN, SECTORS + 1),), SECTOR, id="sector behind the end"),
        pytest.param((header(Request.IN, (1 << 64) - 1),), SECTOR, id="sector + count overflows"),
        pytest.param((header(Request.IN, 1 << 55),), SECTOR, id="sector * 512 overflows"),
        pytest.param((header(Request.IN),), 511, id="not a whole sector"),
        pytest.param((header(Request.OUT), b"x" * 513), 0, id="more than a sector"),
        pytest.param((header(Request.OUT, SECTORS), bytes(SECTOR)), 0, id="write behind the end"),
        pytest.param((header(Request.IN)[:15],), SECTOR, id="short header"),
        pytest.param((), SECTOR, id="no header"),
    ],
)
def test_a_request_outside_of_the_disk_or_of_the_rules_fails_and_touches_nothing(
    disk: DeviceHost, image: Path, readable: tuple[bytes, ...], room: int
) -> None:
    # Hazards 8, 14 and 16.
    before = image.read_bytes()

    assert status(disk, *readable, room=room) == Status.IOERR

    assert image.read_bytes() == before
    assert disk.counters()["refused"] == 1


@pytest.mark.parametrize("kind", [Request.DISCARD, Request.WRITE_ZEROES])
@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        pytest.param(b"", Status.IOERR, id="none"),
        pytest.param(extent(0, 1)[:15], Status.IOERR, id="short"),
        pytest.param(extent(0, 1) + b"x", Status.IOERR, id="odd length"),
        pytest.param(extent(0, 1) * 17, Status.IOERR, id="too many"),
        pytest.param(extent(0, 0xFFFFFFFF), Status.IOERR, id="too large"),
        pytest.param(extent(SECTORS, 1), Status.IOERR, id="behind the end"),
        pytest.param(extent((1 << 64) - 1, 2), Status.IOERR, id="overflow"),
        pytest.param(extent(0, 1) + extent(0, SECTORS + 1), Status.IOERR, id="second is wrong"),
        pytest.param(extent(0, 1, flags=2), Status.UNSUPP, id="unknown flag"),
    ],
)
def test_wrong_ranges_fail_before_the_first_is_touched(
    disk: DeviceHost, image: Path, kind: Request, ranges: bytes, expected: Status
) -> None:
    before = image.read_bytes()

    assert status(disk, header(kind), ranges) == expected

    assert image.read_bytes() == before


def test_unmap_makes_no_sense_for_a_discard(disk: DeviceHost) -> None:
    # 5.2.6.2: UNSUPP for a discard with the unmap flag.
    assert status(disk, header(Request.DISCARD), extent(0, 8, flags=1)) == Status.UNSUPP


def test_a_range_of_no_sectors_is_done_at_once(disk: DeviceHost, image: Path) -> None:
    before = image.read_bytes()

    assert status(disk, header(Request.DISCARD), extent(5, 0)) == Status.OK

    assert image.read_bytes() == before


def test_a_request_without_room_for_its_status_comes_back_empty(disk: DeviceHost) -> None:
    # Hazard 14.
    used = disk.send([header(Request.OUT), bytes(SECTOR)])

    assert used.written == 0
    assert disk.counters()["refused"] == 1


def test_one_buffer_named_many_times_makes_no_huge_request(disk: DeviceHost) -> None:
    # Hazard 7: 63 descriptors of 1 MiB, all the same place, in a guest of 16 MiB.
    driver = disk.drivers[0]
    disk.memory.write(0x2000, header(Request.IN))
    driver.write_descriptor(0, 0x2000, 16, 1, 1)
    for index in range(1, 63):
        driver.write_descriptor(index, 0xB0_0000, 1 << 20, 3, index + 1)
    driver.write_descriptor(63, 0x3000, 1, 2, 0)
    driver.adopt(0)
    disk.publish()

    (used,) = disk.collect(1)

    assert used.written == (62 << 20) + 1
    assert disk.memory.read(0x3000, 1) == bytes([Status.IOERR])


@engines
def test_a_header_that_changes_all_the_time_is_checked_as_it_is_used(boot: Boot) -> None:
    # Hazard 5: half of the time the sector is behind the end. What is answered with OK has been
    # read from where it is allowed to be, and nothing breaks.
    host = boot("blk")
    host.start()
    driver = host.drivers[0]
    over = threading.Event()

    def flip() -> None:
        field = host.memory.view(0x2000 + 8, 8)
        while not over.is_set():
            field[:] = struct.pack("<Q", SECTORS)
            field[:] = bytes(8)

    host.memory.write(0x2000, header(Request.IN))
    flipper = threading.Thread(target=flip)
    flipper.start()
    try:
        for _ in range(200):
            driver.write_descriptor(13, 0x2000, 16, 1, 14)
            driver.write_descriptor(14, 0x4000, SECTOR, 3, 15)
            driver.write_descriptor(15, 0x3000, 1, 2, 0)
            driver.adopt(13)
            host.publish()
            host.collect(1)
            assert host.memory.read(0x3000, 1)[0] in (Status.OK, Status.IOERR)
    finally:
        over.set()
        flipper.join()

    counters = host.counters()
    assert counters.get("reads", 0) + counters.get("refused", 0) == 200


# An image that fails.


@pytest.mark.parametrize("boot", ["blk", "blk io_uring"], indirect=True)
def test_an_image_that_shrank_gives_errors_and_not_old_data(disk: DeviceHost, image: Path) -> None:
    os.truncate(image, 10 * SECTOR)

    # Across the new end: what is there, then zeros.
    used = disk.send([header(Request.IN, 8)], [4 * SECTOR, 1])

    assert used.data[2 * SECTOR :] == bytes(2 * SECTOR) + bytes([Status.IOERR])
    assert status(disk, header(Request.IN, 8), room=2 * SECTOR) == Status.OK
    assert disk.counters()["io_errors"] == 1


@unmapped
@pytest.mark.parametrize(
    "request_", [(header(Request.OUT), bytes(SECTOR)), (header(Request.DISCARD), extent(0, 8))]
)
def test_an_error_of_the_file_is_an_error_of_the_request(
    boot: Boot, memfd: int, request_: tuple[bytes, ...]
) -> None:
    # Sealed against writing after it was opened: EPERM, from the depth of a file system.
    host = boot("blk", Config(f"/proc/self/fd/{memfd}"))
    host.start(*WRITING)
    fcntl.fcntl(memfd, 1033, 0x8)  # F_ADD_SEALS, F_SEAL_WRITE of <linux/fcntl.h>

    assert status(host, *request_) == Status.IOERR
    assert os.strerror(errno.EPERM) in host.log()
    assert status(host, header(Request.IN), room=SECTOR) == Status.OK


# In the launcher.


HOSTS: list[FakeHost] = []


def opened(path: object, **options: object) -> list[int]:
    """Open an image, for a device of its own; its descriptors."""
    HOSTS.append(FakeHost(f"blk{len(HOSTS)}"))
    return list(Blk.open(Config(str(path), **options), HOSTS[-1]).values())  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _unlock() -> Iterator[None]:
    yield
    while HOSTS:
        HOSTS.pop().close()


@pytest.fixture
def close() -> Iterator[list[int]]:
    """Descriptors to close in the end."""
    found: list[int] = []
    yield found
    fds.close_all(found)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: os.mkfifo(path), "neither a file nor a block device"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(bytes(513)), "513 bytes are no multiple of 512"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    ],
)
@pytest.mark.parametrize("readonly", [False, True])
def test_an_image_that_cannot_be_a_disk_is_bad_input(
    tmp_path: Path, make: Callable[[Path], object], complaint: str, readonly: bool
) -> None:
    path = tmp_path / "x.img"
    make(path)
    if path.is_dir() and readonly:  # which can be opened, to be listed
        complaint = "neither a file nor a block device"

    with pytest.raises(BadInput, match=f"^path: {path}: {complaint}"):
        opened(path, readonly=readonly)


@pytest.mark.parametrize(
    ("module", "call", "complaint"),
    [
        (fcntl, "fcntl", "its file system has no direct I/O: Invalid argument"),
        (os, "preadv", "no direct I/O in blocks of 512 bytes: Invalid argument"),
    ],
)
def test_an_image_that_has_no_direct_io_is_bad_input(
    image: Path, monkeypatch: pytest.MonkeyPatch, module: Any, call: str, complaint: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    with monkeypatch.context() as patch:
        patch.setattr(module, call, refuse)
        with pytest.raises(BadInput, match=f"^cache: none: {image}: {complaint}$"):
            opened(image, cache="none")


def test_a_mapped_image_cannot_go_around_the_page_cache(image: Path) -> None:
    with pytest.raises(BadInput, match="^cache: a mapped image cannot"):
        MappedBlk.open(Config(str(image), cache="none"), FakeHost())


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        (MappedBlk, "io_uring is for disks that are served in C"),
        (Blk, "io_uring: this host has none that can be restricted: it says so"),
    ],
)
def test_an_engine_that_cannot_be_had_is_bad_input(
    image: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Blk], complaint: str
) -> None:
    monkeypatch.setattr("devices.blk.why_no_uring", lambda file: "it says so")

    host = FakeHost()
    with pytest.raises(BadInput, match=f"^engine: {complaint}"):
        kind.open(Config(str(image), engine="io_uring"), host)
    host.close()


def test_a_path_that_is_none_is_bad_input() -> None:
    with pytest.raises(BadInput, match="null byte"):
        opened("a\0b")


def test_the_size_must_fit_the_block_size(tmp_path: Path) -> None:
    path = tmp_path / "x.img"
    path.write_bytes(bytes(4096 + 512))

    with pytest.raises(BadInput, match="no multiple of 4096"):
        opened(path, block_size=4096)


def test_a_writable_image_is_ours_alone(image: Path, close: list[int]) -> None:
    close += opened(image)

    for readonly in (False, True):
        with pytest.raises(
            BadInput, match=f"^path: {image}: is in use: by another process, or twice in"
        ):
            opened(image, readonly=readonly)


def test_an_image_that_is_only_read_may_be_shared_with_readers(
    image: Path, close: list[int]
) -> None:
    close += opened(image, readonly=True)
    close += opened(image, readonly=True)

    with pytest.raises(BadInput, match="is in use"):
        opened(image)


@engines
def test_the_lock_is_the_launchers_and_not_the_process_s(boot: Boot, image: Path) -> None:
    host = boot("blk")
    assert host.quit() == 0

    with pytest.raises(BadInput, match="is in use"):
        opened(image)
    host.host.close()
    fds.close_all(host.given.values())
    host.given.clear()

    fds.close_all(opened(image))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"block_size": 0}, "block_size: 0 is not 512"),
        ({"block_size": 8192}, "block_size: 8192 is not 512"),
        ({"block_size": 513}, "block_size: 513 is not 512"),
        ({"serial": "x" * 21}, "up to 20 characters"),
        ({"serial": "é"}, "up to 20 characters"),
        ({"overlay": "x", "readonly": True}, "overlay: does not go with a disk that is only read"),
        ({"overlay": "x", "engine": "io_uring"}, "overlay: does not go with engine=io_uring"),
        ({"overlay": "x", "queues": 2}, "overlay: does not go with queues=2"),
        ({"overlay": "x", "cache": "none"}, "overlay: does not go with cache=none"),
        ({"queues": 0}, "queues: 0 is not 1 to 16"),
        ({"queues": -1}, "queues: -1 is not 1 to 16"),
        ({"queues": 17}, "queues: 17 is not 1 to 16"),
    ],
)
def test_options_that_make_no_disk_are_refused(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Config("x", **options)  # type: ignore[arg-type]
