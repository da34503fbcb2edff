"""virtio-blk: a raw image as a disk (virtio 1.2, section 5.2).

What the image holds is never looked at: a raw disk on which a guest wrote another format's
header stays a raw disk. A request is carried out before the next one is looked at.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import stat
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Any, Literal

from devices.lanes import PLAIN, Build, Lane, why_no_uring
from devices.runtime.device import (
    Device,
    Host,
    Jail,
    Offer,
    QueueDeclaration,
    Runtime,
    virtqueue,
)
from devices.runtime.disk import (
    MAX_QUEUES,
    QUEUE_SIZE,
    SEG_MAX,
    WRITEBACK_AT,
    Feature,
    Space,
    size_max,
    why_unfit,
)
from devices.runtime.files.overlay import Overlay, Raw, begin, open_overlay, zeros
from devices.runtime.limits import Limit
from protocol.errors import BadInput, HostError
from protocol.ring import Chain, Reader, Writer
from protocol.virtio import DeviceId, bit

_logger = logging.getLogger(__name__)

SECTOR = 512
"""The unit of the protocol, whatever ``block_size`` is (5.2.4)."""

ID_SIZE = 20
"""Bytes of the answer to GET_ID (5.2.6)."""


class Request(IntEnum):
    """Request types (5.2.6)."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    DISCARD = 11
    WRITE_ZEROES = 13


class Status(IntEnum):
    """The last byte of each answer (5.2.6)."""

    OK = 0
    IOERR = 1
    UNSUPP = 2


# struct virtio_blk_req up to its data, and struct virtio_blk_discard_write_zeroes (5.2.6).
_HEADER = struct.Struct("<IIQ")
_RANGE = struct.Struct("<QII")
_UNMAP = 1

_PAGE = 4096

# So that no request has to wait for longer than a second: it has pages in all its segments.
_MIN_BW = 512 * 1024

# Of one DISCARD or WRITE_ZEROES (arbitrary). Zeros may have to be written; holes cost little.
_MAX_RANGES = 16
_MAX_DISCARD_SECTORS = 1 << 22
_MAX_ZERO_SECTORS = 1 << 15
# What of that a driver is told: no more than qemu-storage-daemon's disk takes (measured), which may
# take this one's place.
_TOLD_RANGES, _TOLD_DISCARD_SECTORS = 1, 1 << 15

_ZEROS = bytes(64 * 1024)

# What direct I/O is done through where the guest's buffers are not aligned, so much at a time
# (arbitrary).
_BOUNCE_SIZE = 1 << 20


@dataclass(frozen=True, slots=True)
class Config:
    """A disk: a raw image in a file or on a block device."""

    path: str
    """The image. Locked: a writable one is ours alone, one that is only read may be shared."""
    overlay: str = ""
    """A file that all writes go to, and ``path`` is only read; made, if there is none."""
    format: Literal["raw"] = "raw"
    """What the image is. It is taken for that, whatever its content looks like."""
    readonly: bool = False
    """Whether the guest may only read."""
    block_size: int = 512
    """The disk's logical block: 512, 1024, 2048 or 4096 bytes."""
    serial: str = ""
    """The serial number that the guest sees: up to 20 characters of ASCII."""
    cache: Literal["writeback", "none", "unsafe"] = "writeback"
    """Where writes stay until a flush: writeback, in the host's page cache; none, not there, reads
    and writes go around it; unsafe, there, and no flush is offered."""

    engine: Literal["sync", "io_uring"] = "sync"
    """How the image is read and written: sync, one request after the other; io_uring, by the host's
    kernel, as many at a time as a driver asks for."""
    queues: int = 1
    """Request queues, 1 to 16: a driver with several CPUs puts each CPU's requests into one of its
    own. All but the first have threads of their own here, unless iops or bw is given."""
    iops: int = 0
    """The most requests in a second; 0: as many as it can."""
    bw: int = 0
    """The most bytes in a second, 512K or more; 0: as many as it can."""

    def __post_init__(self) -> None:
        if self.overlay:
            # Its blocks are copied between two requests, and not beside one; its bitmaps are in
            # the page cache.
            for unfit, what in (
                (self.readonly, "a disk that is only read"),
                (self.engine != "sync", f"engine={self.engine}"),
                (self.queues > 1, f"queues={self.queues}"),
                (self.cache == "none", "cache=none"),
            ):
                if unfit:
                    raise ValueError(f"overlay: does not go with {what}")
        if not 1 <= self.queues <= MAX_QUEUES:
            raise ValueError(f"queues: {self.queues} is not 1 to {MAX_QUEUES}")
        if self.iops < 0:
            raise ValueError(f"iops: {self.iops} requests in a second")
        if self.bw and self.bw < _MIN_BW:
            raise ValueError(f"bw: {self.bw} bytes in a second are fewer than {_MIN_BW}")
        if self.block_size not in (512, 1024, 2048, 4096):
            raise ValueError(f"block_size: {self.block_size} is not 512, 1024, 2048 or 4096")
        if not self.serial.isascii() or len(self.serial) > ID_SIZE:
            raise ValueError(f"serial: {self.serial!r} is not up to {ID_SIZE} characters of ASCII")


class _Refused(Exception):
    """A request that is answered with ``status`` and touches nothing."""

    def __init__(self, status: Status, why: str) -> None:
        super().__init__(why)
        self.status = status


Operation = Callable[[int, Reader, Writer], None]


class Blk(Device[Config]):
    """Reads and writes an image where the guest says, within its bounds."""

    device_id = DeviceId.BLOCK
    # With flags, and on kernels without them; Python and libc choose.
    jail = Jail(
        frozenset(
            {
                *("pread64", "preadv", "preadv2", "pwrite64", "pwritev", "pwritev2"),
                *("fdatasync", "fallocate"),
            }
        )
    )
    lanes = PLAIN

    @classmethod
    def open(cls, config: Config, host: Host) -> dict[str, int]:
        """The image, checked and locked, as ``image``; for an io_uring through the page cache also
        as ``image-of-ring``. With an overlay, that is ``image``, and what is below it ``base``."""
        is_written = not config.readonly and not config.overlay
        mode = os.O_RDWR if is_written else os.O_RDONLY
        try:
            # O_NONBLOCK: a FIFO, which is refused below, must not hold us up.
            image = os.open(config.path, mode | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise BadInput("path", f"{config.path}: {why}") from error
        try:
            _check(image, config, host, shared=not is_written)
            if config.overlay:
                return {"image": cls._open_overlay(image, config, host), "base": image}
            if config.engine == "io_uring":
                cls._check_engine(image, config)
            if config.cache == "none":
                _go_direct(image, config)
            elif config.engine == "io_uring":
                # A ring lets go of its files a little after its process has ended: not of the one
                # that is locked. Of direct I/O it is that one, for it may go on as long.
                again = os.open(f"/proc/self/fd/{image}", mode | os.O_CLOEXEC)
                return {"image": image, "image-of-ring": again}
        except BaseException:
            os.close(image)
            raise
        return {"image": image}

    @classmethod
    def _open_overlay(cls, base: int, config: Config, host: Host) -> int:
        overlay, name = open_overlay(config.overlay, config.path, base)
        if not host.lock(overlay, shared=False, name=name):
            os.close(overlay)
            why = "is in use: by another process, or twice in this run"
            raise BadInput("overlay", f"{config.overlay}: {why}")
        try:
            begin(overlay)
        except OSError as error:
            os.close(overlay)
            raise BadInput("overlay", f"{config.overlay}: {error.strerror}") from error
        return overlay

    @classmethod
    def _check_engine(cls, image: int, config: Config) -> None:
        if cls.lanes is None:
            raise BadInput("engine", "io_uring is for disks that are served in C")
        if why := why_no_uring(image):
            raise BadInput("engine", f"io_uring: this host has none that can be restricted: {why}")

    @classmethod
    def makes_urings(cls, config: Config) -> bool:
        """See Device."""
        return config.engine == "io_uring"

    @classmethod
    def virtqueues(cls, config: Config) -> tuple[QueueDeclaration, ...]:
        """All alike (5.2.2)."""
        (requestq,) = cls.queues
        return requestq.times(config.queues)

    def __init__(self, config: Config, fds: Mapping[str, int], runtime: Runtime) -> None:
        super().__init__(config, fds, runtime)
        self._image = fds["image"]
        size = os.lseek(fds.get("base", self._image), 0, os.SEEK_END)
        self._sectors = size // SECTOR
        self._file = Raw(self._image)
        self._overlay: Overlay | None = None
        if config.overlay:
            syncs = config.cache != "unsafe"
            self._file = self._overlay = Overlay(self._image, fds["base"], size, syncs=syncs)
        # Of so many bytes in a second a request may use up those of one: else nobody could tell it
        # from a hang.
        self._size_max = size_max(runtime.largest_chain, config.bw)
        self._features: int | None = None  # as agreed; None: not yet
        self._wish: bool | None = None  # what the driver has written into `writeback`
        self._writeback = True  # the field
        self._write_flags = 0
        self._bounce: memoryview | None = None
        if config.cache == "none":
            self._bounce = memoryview(mmap.mmap(-1, _BOUNCE_SIZE))
        self._operations: dict[int, Operation] = {}
        self._disks: list[Any] = []  # the struct blk_disk of each lane
        self._limit = Limit(config.iops, config.bw) if config.iops or config.bw else None

    @property
    def features(self) -> int:
        """Those of writing only where it is possible. One that does not commit what is to be
        flushed must not offer to (5.2.6.2)."""
        offered = [Feature.SIZE_MAX, Feature.SEG_MAX, Feature.BLK_SIZE]
        is_durable = self.config.cache != "unsafe"
        if is_durable:
            offered.append(Feature.FLUSH)
        if self.config.readonly:
            offered.append(Feature.RO)
        else:
            offered += [Feature.DISCARD, Feature.WRITE_ZEROES]
            if is_durable:
                offered.append(Feature.CONFIG_WCE)
        if self.config.queues > 1:
            offered.append(Feature.MQ)
        return sum(bit(feature) for feature in offered)

    def config_space(self) -> bytes:
        """struct virtio_blk_config."""
        alignment = self.config.block_size // SECTOR
        return Space(
            self._sectors,
            self._size_max,
            SEG_MAX,
            self.config.block_size,
            self._writeback,
            self.config.queues,
            _TOLD_DISCARD_SECTORS,
            _TOLD_RANGES,
            alignment,
            _MAX_ZERO_SECTORS,
            _TOLD_RANGES,
            1,  # write_zeroes_may_unmap
        ).pack()

    def start(self, features: int) -> None:
        """Accept the requests that were negotiated, and what was written before."""
        self._operations = {
            Request.IN: self._read,
            Request.OUT: self._write,
            Request.GET_ID: self._get_id,
        }
        for feature, request, operation in (
            (Feature.FLUSH, Request.FLUSH, self._flush),
            (Feature.DISCARD, Request.DISCARD, self._discard),
            (Feature.WRITE_ZEROES, Request.WRITE_ZEROES, self._write_zeroes),
        ):
            if features & bit(feature):
                self._operations[request] = operation
        self._features = features
        self._renew_cache()

    def stop(self) -> None:
        """What is agreed next may be something else."""
        self._features = None
        self._close()

    def reset(self) -> None:
        """See Device."""
        self._wish = None
        self._renew_cache()

    def write_config(self, offset: int, data: bytes) -> None:
        """Of all fields only ``writeback`` is the driver's (5.2.4)."""
        if offset <= WRITEBACK_AT < offset + len(data):
            self._wish = bool(data[WRITEBACK_AT - offset])
            self._set_cache()

    def _renew_cache(self) -> None:
        before = self._writeback
        self._set_cache()
        if self._writeback != before:
            self.config_changed()

    def _set_cache(self) -> None:
        # Whether a write may be complete before it is durable (5.2.5.2, 5.2.6.2): not for a driver
        # that cannot flush, nor for one that wants none to be.
        agreed = self._features
        is_cached = agreed is None or bool(agreed & bit(Feature.FLUSH))
        has_field = agreed is None or bool(agreed & bit(Feature.CONFIG_WCE))
        if has_field and self._wish is not None:
            is_cached = self._wish
        self._writeback = is_cached or not has_field
        is_relied_on = self.config.cache != "unsafe"
        self._write_flags = os.RWF_DSYNC if is_relied_on and not is_cached else 0
        for disk in self._disks:
            disk.write_flags = self._write_flags
            disk.may_flush = self.config.engine == "io_uring" and Request.FLUSH in self._operations
        if agreed is not None and self._wish is False and self._write_flags:
            self._catch_up()

    def _close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            self.counters["io_errors"] += 1
            _logger.error("what was written last is not durable: %s", error.strerror)

    def _catch_up(self) -> None:
        # With what was written before: it will not be flushed any more.
        try:
            self._make_durable()
        except OSError as error:
            self.counters["io_errors"] += 1
            _logger.error("what was written so far is not durable: %s", error.strerror)

    def lane(self, index: int, build: Build) -> Lane:
        """Reads and writes in C."""
        disk = build.ffi.new("struct blk_disk *")
        disk.image = self.fds.get("image-of-ring", self._image)
        disk.readonly = self.config.readonly
        disk.alignment = 1 if self._bounce is None else self.config.block_size
        disk.sectors = self._sectors
        disk.most = SEG_MAX * self._size_max
        if self._overlay is not None:
            disk.base = self.fds["base"]
            disk.data = self._overlay.data
            disk.here = self._here = build.ffi.from_buffer(self._overlay.current)
        keeper = None
        if self.config.engine == "io_uring":
            if self.config.cache == "none":
                # What a killed process has asked of a disk goes on without it, into memory that
                # would be the driver's again. All else ends with its threads.
                disk.alive = self.fds["alive"]
            if error := build.lib.blk_open_requests(disk):
                raise HostError(f"no io_uring: {os.strerror(-error)}")
            disk = build.ffi.gc(disk, build.lib.blk_close_requests)
            keeper = build.lib.blk_keeper(disk)
        self._disks.append(disk)
        counted = ("reads", "writes", "flushes")
        return Lane(build, build.lib.blk_carry_out, disk, self.counters, counted, keeper)

    @virtqueue(0, size=QUEUE_SIZE, verdict=1)
    def requestq(self, chain: Chain) -> int:
        """Carry one request out. All of the writable part is written, zeros where there is
        nothing to say: the status is its last byte, and the length has to cover it."""
        data = chain.writable
        if not data.size:
            self.counters["refused"] += 1
            _logger.warning("a request without room for its status")
            return 0
        last = data.split(data.size - 1)
        status = self._carry_out(chain.readable, data)
        while data.left:
            data.write(_ZEROS[: data.left])
        last.write(bytes([status]))
        return data.size + 1

    def limit(self, index: int) -> Limit | None:
        """As the options say, of all queues together."""
        return self._limit

    def fail(self, index: int, chain: Chain) -> int:
        """An I/O error, whatever was asked for."""
        data = chain.writable
        while data.left > 1:
            data.write(_ZEROS[: data.left - 1])
        return data.size if data.write(bytes([Status.IOERR])) else 0

    @classmethod
    def why_unfit(cls, ours: Offer, theirs: Offer) -> str | None:
        """A driver that was not offered RO writes. It read its limits once: a successor's may not
        be lower, and the disk must be the same size."""
        return why_unfit(ours, theirs)

    def _carry_out(self, request: Reader, data: Writer) -> Status:
        # A copy, so that what is checked is what is done.
        header = request.read(_HEADER.size)
        try:
            if len(header) < _HEADER.size:
                raise _Refused(Status.IOERR, f"a header of {len(header)} bytes")
            kind, _, sector = _HEADER.unpack(header)
            operation = self._operations.get(kind)
            if operation is None:
                raise _Refused(Status.UNSUPP, f"request type {kind}")
            operation(sector, request, data)
        except _Refused as refused:
            self.counters["refused"] += 1
            _logger.warning("refused: %s", refused)
            return refused.status
        except OSError as error:
            self.counters["io_errors"] += 1
            _logger.warning("sector %d: %s", sector, error.strerror)
            return Status.UNSUPP if error.errno == errno.EOPNOTSUPP else Status.IOERR
        return Status.OK

    def _read(self, sector: int, request: Reader, data: Writer) -> None:
        offset = self._offset(sector, data.left)
        self.counters["reads"] += 1
        while data.left:
            file, place, size = self._file.find(offset, data.left)
            if self._bounce is None:
                count = os.preadv(file, data.buffers(size), place)
                data.advance(count)
            else:
                count = os.preadv(file, [self._bounce[:size]], place)
                data.write(self._bounce[:count])
            if not count:
                raise OSError(errno.EIO, "the image is shorter than it was")
            offset += count

    def _write(self, sector: int, request: Reader, data: Writer) -> None:
        self._check_writable()
        offset = self._offset(sector, request.left)
        self.counters["writes"] += 1
        while request.left:
            source = partial(self._source, request)
            count = self._file.write(source, request.left, offset, self._write_flags)
            request.advance(count)
            offset += count

    def _source(self, request: Reader, most: int) -> list[memoryview]:
        # Of what is left: so much, or as much of it as can be copied to where it is aligned.
        if self._bounce is None:
            return request.buffers(most)
        size = 0
        for piece in request.buffers(min(most, _BOUNCE_SIZE)):
            self._bounce[size : size + len(piece)] = piece
            size += len(piece)
        return [self._bounce[:size]]

    def _flush(self, sector: int, request: Reader, data: Writer) -> None:
        self.counters["flushes"] += 1
        self._make_durable()

    def _make_durable(self) -> None:
        self._file.flush()

    def _get_id(self, sector: int, request: Reader, data: Writer) -> None:
        data.write(self.config.serial.encode().ljust(ID_SIZE, b"\0"))

    def _discard(self, sector: int, request: Reader, data: Writer) -> None:
        self._check_writable()
        for offset, size, _ in self._ranges(request, _MAX_DISCARD_SECTORS, flags=0):
            self._file.discard(offset, size)
        self._written("discards")

    def _write_zeroes(self, sector: int, request: Reader, data: Writer) -> None:
        self._check_writable()
        for offset, size, unmap in self._ranges(request, _MAX_ZERO_SECTORS, flags=_UNMAP):
            # A file system may know neither.
            try:
                self._file.zero(offset, size, unmap=unmap)
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                self._write_zeros(offset, size)
        self._written("write_zeroes")

    def _write_zeros(self, offset: int, size: int) -> None:
        end = offset + size
        while offset < end:
            offset += self._file.write(zeros, end - offset, offset, 0)

    def _written(self, counter: str) -> None:
        self.counters[counter] += 1
        if self._write_flags:
            self._file.flush()

    def _ranges(self, request: Reader, most: int, flags: int) -> list[tuple[int, int, bool]]:
        # All are checked before the first is touched: (offset, size, unmap) in bytes.
        if not 0 < request.left <= _MAX_RANGES * _RANGE.size or request.left % _RANGE.size:
            raise _Refused(Status.IOERR, f"ranges in {request.left} bytes")
        found = []
        for sector, sectors, flag in _RANGE.iter_unpack(request.read()):
            if flag & ~flags:
                raise _Refused(Status.UNSUPP, f"flags {flag:#x}")
            if sectors > most:
                raise _Refused(Status.IOERR, f"{sectors} sectors at once")
            self._check_bounds(sector, sectors)
            if sectors:
                found.append((sector * SECTOR, sectors * SECTOR, bool(flag & _UNMAP)))
        return found

    def _offset(self, sector: int, size: int) -> int:
        if size % SECTOR or size > SEG_MAX * self._size_max:
            raise _Refused(Status.IOERR, f"{size} bytes of data")
        self._check_bounds(sector, size // SECTOR)
        return sector * SECTOR

    def _check_bounds(self, sector: int, sectors: int) -> None:
        # Python's numbers do not overflow, so a sum is a sum.
        if sector + sectors > self._sectors:
            raise _Refused(Status.IOERR, f"{sectors} sectors at {sector} of {self._sectors}")

    def _check_writable(self) -> None:
        if self.config.readonly:
            raise _Refused(Status.IOERR, "the disk is read-only")


class MappedBlk(Blk):
    """The same disk by other means: the image is mapped, and a request is a copy.

    The kernel keeps a file that is mapped and a file that is read and written the same, so this
    one and :class:`Blk` may follow each other on an image while the guest runs. An image that
    somebody truncates meanwhile costs the process (SIGBUS), as often as what is gone is touched.
    """

    jail = Jail(frozenset({"fdatasync", "fallocate", "msync", "pwritev", "pwritev2"}))

    @classmethod
    def open(cls, config: Config, host: Host) -> dict[str, int]:
        """See Blk; a mapping is the page cache."""
        if config.cache == "none":
            raise BadInput("cache", "a mapped image cannot go around the page cache (none)")
        if config.overlay:
            raise BadInput("overlay", "a mapped image has none")
        return super().open(config, host)

    def __init__(self, config: Config, fds: Mapping[str, int], runtime: Runtime) -> None:
        super().__init__(config, fds, runtime)
        access = mmap.ACCESS_READ if config.readonly else mmap.ACCESS_WRITE
        self._map = mmap.mmap(self._image, 0, access=access)
        self._view = memoryview(self._map)

    def _read(self, sector: int, request: Reader, data: Writer) -> None:
        offset = self._offset(sector, data.left)
        self.counters["reads"] += 1
        data.write(self._view[offset : offset + data.left])

    def _write(self, sector: int, request: Reader, data: Writer) -> None:
        self._check_writable()
        start = offset = self._offset(sector, request.left)
        self.counters["writes"] += 1
        for piece in request.buffers():
            self._view[offset : offset + len(piece)] = piece
            offset += len(piece)
        if self._write_flags:
            self._sync(start, offset)

    def _make_durable(self) -> None:
        self._map.flush()

    def _sync(self, start: int, end: int) -> None:
        start -= start % mmap.PAGESIZE  # as msync(2) wants it
        self._map.flush(start, end - start)


def _check(image: int, config: Config, host: Host, *, shared: bool) -> None:
    path, mode = config.path, os.fstat(image).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise BadInput("path", f"{path}: neither a file nor a block device")
    size = os.lseek(image, 0, os.SEEK_END)
    if size == 0:
        raise BadInput("path", f"{path}: is empty")
    if size % config.block_size:
        raise BadInput("path", f"{path}: {size} bytes are no multiple of {config.block_size}")
    if not host.lock(image, shared=shared):
        raise BadInput("path", f"{path}: is in use: by another process, or twice in this run")


def _go_direct(image: int, config: Config) -> None:
    # By setting the flag, and not by opening once more: a path may lead somewhere else by then.
    try:
        fcntl.fcntl(image, fcntl.F_SETFL, fcntl.fcntl(image, fcntl.F_GETFL) | os.O_DIRECT)
    except OSError as error:
        why = f"{config.path}: its file system has no direct I/O"
        raise BadInput("cache", f"none: {why}: {error.strerror}") from error
    block = memoryview(mmap.mmap(-1, 2 * _PAGE))[config.block_size :][: config.block_size]
    try:
        os.preadv(image, [block], 0)
    except OSError as error:
        why = f"{config.path}: no direct I/O in blocks of {config.block_size} bytes"
        raise BadInput("cache", f"none: {why}: {error.strerror}") from error
