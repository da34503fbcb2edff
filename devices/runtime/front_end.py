"""A device whose work a vhost-user back-end does, a program that is none of ours: this process is
its front-end, and stands to the VMM where any device does.

It is not in the data path. The back-end is handed the memory in which its rings lie, and the very
doorbells that a device of ours would wait for and ring::

    VMM ── Start, Stop, WriteConfig … ──► FrontEnd ── SET_VRING_ADDR, GET_VRING_BASE … ──► back-end
                 kick, call, memory: handed on ─────────────────────────────────────────►

The back-end's death is this process's: it ends, and its successor is connected anew. So whatever
makes a device's death unnoticed does the same for a back-end's.

It is hostile. What it sends is bounded (protocol.vhost_user), it has so long for each answer, and
what makes no sense is the end of this process, too.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from devices.runtime import transfer
from devices.runtime.device import C, Device, Jail
from devices.runtime.queue import Queue
from devices.runtime.worker import Worker
from protocol import doorbell, journal
from protocol.errors import HostError, ProtocolError
from protocol.memory import PAGE_SIZE, OutOfRam
from protocol.messages import QueueSetup
from protocol.vhost_user import (
    F_PROTOCOL_FEATURES,
    FROM_BACK_END,
    STATE_ERROR,
    STATE_NOFD,
    U64,
    ConfigSpace,
    Connection,
    DeviceState,
    Direction,
    Inflight,
    MemoryRegion,
    Message,
    ProtocolFeature,
    Request,
    VringAddr,
    VringState,
    pack_table,
)
from protocol.virtio import DEVICE_FEATURES, RING_FEATURES, Feature, Status, bit

if TYPE_CHECKING:
    from devices.runtime.faults import Injector
    from protocol.trace import Trace

PATIENCE = 2.0
"""Seconds that a back-end has for one answer (arbitrary; the VMM waits for five)."""

# Seconds for what it has begun, and milliseconds between two looks (both arbitrary).
_DRAIN, _LOOK = 2.0, 1

# What is added to guest addresses to make those that vhost-user calls the front-end's own: no ring
# is at 0, which some take for none.
_OURS = 0x1000_0000_0000

_UNDERSTOOD = sum(
    bit(feature)
    for feature in (
        ProtocolFeature.MQ,
        ProtocolFeature.REPLY_ACK,
        ProtocolFeature.BACKEND_REQ,
        ProtocolFeature.CONFIG,
        ProtocolFeature.INFLIGHT_SHMFD,
        ProtocolFeature.STATUS,
        ProtocolFeature.DEVICE_STATE,
    )
)

_MAX_UNASKED = 4096


class External(Device[C]):
    """A device that is a back-end's, behind ``back_end``, once that has said what it is."""

    connects = True
    # Descriptors go to the back-end, to nobody else: this process has no other socket but the
    # channel, which takes none. The back-end's state goes through a pipe, or what it has instead,
    # which is looked at.
    jail = Jail(frozenset({"sendmsg", "recvmsg", "pipe2", "fstat", "newfstatat"}), descriptors=3)

    config_size: ClassVar[int] = 0
    """Bytes of the configuration space that the back-end has; 0: it is not asked for it."""
    writable: ClassVar[range] = range(0)
    """What of that a driver may write. Some back-ends hang up on who writes anything else."""
    may_lose: ClassVar[bool] = False
    """What is in flight when it dies may get lost."""

    back_end: BackEnd

    @classmethod
    def check(cls, back_end: BackEnd, config: C) -> None:
        """HostError if ``back_end``, which has said what it is, is of no use for ``config``."""

    @property
    def features(self) -> int:
        """Those of the device's type that the back-end offers."""
        return self.back_end.features & DEVICE_FEATURES

    def config_space(self) -> bytes:
        """The back-end's."""
        return self.back_end.config

    def write_config(self, offset: int, data: bytes) -> None:
        """Hand it on, if it is :attr:`writable`."""
        if data and offset in self.writable and offset + len(data) - 1 in self.writable:
            self.back_end.tell(Request.SET_CONFIG, ConfigSpace(offset, 0, data).pack())
            self.back_end.ask_config(self.config_size)


class BackEnd:
    """The program at the other end of ``connection``. HostError if it hangs up, errs, or does not
    answer in time."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.features = 0
        """That it offers, and of those that belong to no device."""
        self.config = b""
        self._protocol = 0
        self._status = Status(0)

    def negotiate(self, kind: type[External[Any]], config: Any) -> None:
        """Learn what it is, and see that it can be a ``kind`` with ``config``."""
        offered = self.number(Request.GET_FEATURES)
        if not offered & bit(F_PROTOCOL_FEATURES):
            raise HostError("it has no protocol features")
        journals, queues = kind.journals(config), len(kind.virtqueues(config))
        lacking = [feature for feature in _needed(journals=journals) if not offered & bit(feature)]
        if lacking:
            raise HostError(f"it lacks {', '.join(feature.name for feature in lacking)}")
        self.features = offered
        self._protocol = self.number(Request.GET_PROTOCOL_FEATURES) & _UNDERSTOOD
        for feature in _needed_of_protocol(kind, journals=journals):
            if not self.has(feature):
                raise HostError(f"it lacks the protocol feature {feature.name}")
        self.tell(Request.SET_PROTOCOL_FEATURES, U64(self._protocol).pack())
        if self.has(ProtocolFeature.MQ):
            found = self.number(Request.GET_QUEUE_NUM)
            if found < queues:
                raise HostError(f"it has {found} queues, and {queues} are wanted")
        if journals and self.has(ProtocolFeature.INFLIGHT_SHMFD):
            self._check_inflight([queue.size for queue in kind.virtqueues(config)])
        if kind.config_size:
            self.ask_config(kind.config_size)
        kind.check(self, config)

    def has(self, feature: ProtocolFeature) -> bool:
        """Whether that was negotiated."""
        return bool(self._protocol & bit(feature))

    def _check_inflight(self, sizes: Sequence[int]) -> None:
        # What it would have for an in-flight region, were it the one to make it: that tells whether
        # it can do with our journal, which is to outlive it.
        with self.exchange(Request.GET_INFLIGHT_FD, _inflight(sizes, 0).pack()) as reply:
            found = Inflight.unpack(reply.payload)
            # It may have room for larger rings than ours.
            largest = (max(found.queue_size, *sizes),) * len(sizes)
            if found.mmap_size != (ours := journal.size_of(largest) - PAGE_SIZE):
                raise HostError(
                    f"its in-flight region has {found.mmap_size} bytes, and our journal {ours}"
                )
            try:
                _check_layout(reply.take(), found, len(sizes))
            except (ProtocolError, OSError, struct.error) as error:
                raise HostError(f"its in-flight region: {error}") from error

    def add_status(self, status: Status) -> None:
        """Tell it how far the driver is, if it wants to know."""
        self._set_status(self._status | status)

    def reset(self) -> None:
        """Tell it that the driver has reset the device, if it wants to know."""
        self._set_status(Status(0))

    def _set_status(self, status: Status) -> None:
        if self.has(ProtocolFeature.STATUS):
            self.tell(Request.SET_STATUS, U64(status).pack())
        self._status = status

    def agree(self, features: int) -> None:
        """Those of a driver, and its own. ProtocolError if it does without."""
        self.add_status(Status.ACKNOWLEDGE | Status.DRIVER)
        self.tell(Request.SET_FEATURES, U64(features).pack())
        self.add_status(Status.FEATURES_OK)
        if not self.has(ProtocolFeature.STATUS):
            return
        if not self.number(Request.GET_STATUS) & Status.FEATURES_OK:
            self.reset()
            raise ProtocolError(f"the back-end refuses the features {features:#x}")

    def save(self) -> bytes:
        """The state that it has, its rings being stopped; empty if it knows of none."""
        if not self.has(ProtocolFeature.DEVICE_STATE):
            return b""
        try:
            with self._transfer(Direction.SAVE) as end:
                state = transfer.receive(end)
            self._check_state()
        except ProtocolError as error:
            raise HostError(str(error)) from error
        return state

    def load(self, state: bytes) -> None:
        """The opposite. ProtocolError if it makes nothing of it."""
        if not self.has(ProtocolFeature.DEVICE_STATE):
            raise ProtocolError("the back-end takes no state over")
        with self._transfer(Direction.LOAD) as end:
            transfer.send(end, state)
        self._check_state()

    @contextlib.contextmanager
    def _transfer(self, direction: Direction) -> Iterator[int]:
        # Our end of a pipe, or what the back-end has instead.
        with contextlib.ExitStack() as stack:
            ends = os.pipe2(os.O_CLOEXEC)
            ours, theirs = ends if direction is Direction.SAVE else ends[::-1]
            stack.callback(os.close, ours)
            told = DeviceState(direction, 0).pack()
            try:
                reply = self.exchange(Request.SET_DEVICE_STATE_FD, told, [theirs])
            finally:
                os.close(theirs)
            stack.enter_context(reply)
            if reply.number & STATE_ERROR:
                raise ProtocolError(f"the back-end does not {direction.name.lower()} its state")
            if not reply.number & STATE_NOFD:
                ours = reply.take()
                stack.callback(os.close, ours)
                transfer.check(ours)
            yield ours

    def _check_state(self) -> None:
        if said := self.number(Request.CHECK_DEVICE_STATE):
            raise ProtocolError(f"the back-end says that its state went wrong ({said:#x})")

    def ask_config(self, size: int) -> None:
        """Learn its configuration space, of so many bytes."""
        reply = self.ask(Request.GET_CONFIG, ConfigSpace(0, 0, bytes(size)).pack())
        try:
            found = ConfigSpace.unpack(reply).data
        except (ProtocolError, struct.error) as error:
            raise HostError(f"GET_CONFIG of {size} bytes: {len(reply)} in reply") from error
        if len(found) != size:
            raise HostError(f"GET_CONFIG of {size} bytes: it gives {len(found)}")
        self.config = found

    def number(self, request: Request) -> int:
        """The number that it answers with."""
        return U64.unpack(self.ask(request)).value

    def ask(self, request: Request, payload: bytes = b"") -> bytes:
        """The payload of its reply."""
        with self.exchange(request, payload) as message:
            return message.payload

    def exchange(
        self, request: Request, payload: bytes, descriptors: Sequence[int] = ()
    ) -> Message:
        """Its reply, the caller's to close."""
        try:
            self.connection.send(request, payload, descriptors)
            return self._reply(request)
        except ProtocolError as error:
            raise _useless(request, error) from error

    def tell(self, request: Request, payload: bytes, descriptors: Sequence[int] = ()) -> None:
        """Return when it has done that, if it is one that says so."""
        acknowledges = self.has(ProtocolFeature.REPLY_ACK)
        try:
            self.connection.send(request, payload, descriptors, needs_reply=acknowledges)
            if acknowledges:
                with self._reply(request) as message:
                    if message.number:
                        raise HostError(f"{request.name}: it says no")
        except ProtocolError as error:
            raise _useless(request, error) from error

    def _reply(self, request: Request) -> Message:
        message = self.connection.wait(PATIENCE)
        if message.request is not request or not message.is_reply:
            message.close()
            raise ProtocolError(f"{request.name}: {message.request.name} in reply")
        return message


class FrontEnd(Worker):
    """Stands where the worker of a device would, for one that is :class:`External`.

    ``fds`` has ``back-end``, a connection, and the two ends of one for what the back-end says
    unasked, ``requests`` and ``requests-theirs``. Where there are ``relay0`` …, the back-end is
    rung by them, and by us: it can make doorbells block, and whoever rings the kicks must not
    wait. HostError where the back-end is of no use.
    """

    device: External[Any]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        stream = socket.socket(fileno=self._fds["back-end"])
        self._back_end = self.device.back_end = BackEnd(Connection(stream, FROM_BACK_END))
        self._served: dict[int, QueueSetup] = {}
        self._declared = self.device.virtqueues(self.device.config)
        self._journals = self.device.journals(self.device.config)
        self._back_end.negotiate(type(self.device), self.device.config)
        self._back_end.tell(Request.SET_OWNER, b"")
        if self._back_end.has(ProtocolFeature.BACKEND_REQ):
            self._back_end.tell(Request.SET_BACKEND_REQ_FD, b"", [self._fds["requests-theirs"]])
            self._loop.add(self._fds["requests"], self._said_unasked)
        os.close(self._fds["requests-theirs"])
        self._loop.add(stream.fileno(), self._hung_up)
        self._kicks = {index: self._kick(index) for index, _ in enumerate(self._declared)}

    def _kick(self, index: int) -> int:
        # That which the back-end gets.
        kick = self._fds[f"kick{index}"]
        if (relay := self._fds.get(f"relay{index}")) is None:
            return kick

        def pass_on() -> None:
            doorbell.drain(kick)
            doorbell.ring(relay)

        self._loop.add(kick, pass_on)
        return relay

    def _make_queues(
        self,
        fds: Mapping[str, int],
        trace: Trace | None,
        injector: Injector | None,
        *,
        failing: bool,
    ) -> list[Queue]:
        # They are the back-end's.
        self._fds = fds
        return []

    def start(self, features: int, setups: Sequence[QueueSetup], state: bytes = b"") -> None:
        """See Worker. It goes on where each ring's used.idx stands; what is in flight beyond that,
        mediators or the back-end's own journal tell."""
        if features & ~self.features:
            raise ProtocolError(f"features {features & ~self.features:#x} were not offered")
        agreed = features & self._back_end.features | bit(F_PROTOCOL_FEATURES)
        self._back_end.agree(agreed)
        self._share_memory()
        self._share_journal(setups)
        if state:
            self._back_end.load(state)
        for setup in setups:
            self._show(setup)
        for setup in setups:
            state_of = VringState(setup.index, 1).pack()
            self._back_end.tell(Request.SET_VRING_ENABLE, state_of)
        self._back_end.add_status(Status.DRIVER_OK)
        self._running = True
        for setup in setups:
            # For what was made available before.
            doorbell.ring(self._kicks[setup.index])
        # And for what it has ended of its last front-end's, while it came to know us.
        doorbell.ring(self._fds["call"])

    def quiesce(self) -> bytes:
        """See Worker. What is in flight is finished, or stands in the back-end's journal: on the
        guest's own rings there is always something new."""
        for setup in tuple(self._served.values()):
            self._stop(setup, drain=not self._journals)
        # It is not reset: what it has in flight is the next one's.
        state = self._back_end.save() if self._running else b""
        self._running = False
        return state

    def stop(self) -> None:
        """See Worker. HostError, and this process ends, if the back-end does not come to rest."""
        for index in tuple(self._served):
            self.stop_queue(index)
        if self._running:
            self._running = False
            self._back_end.reset()

    def stop_queue(self, index: int) -> None:
        """See Worker."""
        if (setup := self._served.get(index)) is not None:
            self._stop(setup, drain=True)

    def _stop(self, setup: QueueSetup, *, drain: bool) -> None:
        if drain and self._declared[setup.index].owes:
            self._drain(setup)
        self._back_end.ask(Request.GET_VRING_BASE, VringState(setup.index, 0).pack())
        del self._served[setup.index]

    def _drain(self, setup: QueueSetup) -> None:
        # Some forget what they have begun when they are asked for their base.
        pause, until = select.poll(), time.monotonic() + _DRAIN
        while self._index(setup.used) != self._index(setup.avail):
            if time.monotonic() >= until:
                raise HostError(f"it does not finish what it has begun in queue {setup.index}")
            pause.poll(_LOOK)

    def _base(self, setup: QueueSetup) -> int:
        if setup.index >= len(self._declared):
            raise ProtocolError(f"there is no queue {setup.index}")
        try:
            return self._index(setup.used)
        except OutOfRam as error:
            raise ProtocolError(f"queue {setup.index}: {error}") from error

    def _index(self, ring: int) -> int:
        # Of either ring, behind its flags (virtio 1.2, sections 2.7.6 and 2.7.8).
        assert self.memory is not None
        return int.from_bytes(self.memory.read(ring + 2, 2), "little")

    def _share_memory(self) -> None:
        assert self.memory is not None
        regions = [
            MemoryRegion(region.gpa, region.size, region.gpa + _OURS, region.offset)
            for region in self.memory.regions
        ]
        files = [self._fds["memory"]] * len(regions)
        self._back_end.tell(Request.SET_MEM_TABLE, pack_table(regions), files)

    def _share_journal(self, setups: Sequence[QueueSetup]) -> None:
        # Ours, from its second page on, is laid out as an in-flight region is (docs/journal.md).
        assert self.journal is not None
        if not self._journals:
            # Whoever served before may have left something there, which is no longer so.
            self.journal.clear()
        elif self._back_end.has(ProtocolFeature.INFLIGHT_SHMFD):
            sizes = [queue.size for queue in self._declared]
            region = _inflight(sizes, PAGE_SIZE).pack()
            self._back_end.tell(Request.SET_INFLIGHT_FD, region, [self._fds["journal"]])

    def _show(self, setup: QueueSetup) -> None:
        index, base, tell = setup.index, self._base(setup), self._back_end.tell
        desc, used, avail = setup.desc + _OURS, setup.used + _OURS, setup.avail + _OURS
        tell(Request.SET_VRING_NUM, VringState(index, setup.size).pack())
        tell(Request.SET_VRING_BASE, VringState(index, base).pack())
        tell(Request.SET_VRING_ADDR, VringAddr(index, 0, desc, used, avail, 0).pack())
        self._served[index] = setup
        tell(Request.SET_VRING_CALL, U64(index).pack(), [self._fds["call"]])
        tell(Request.SET_VRING_KICK, U64(index).pack(), [self._kicks[index]])

    def _hung_up(self) -> None:
        # It says nothing unasked here.
        try:
            with self._back_end.connection.wait(PATIENCE) as message:
                raise HostError(f"the back-end: {message.request.name}, unasked")
        except ProtocolError as error:
            raise HostError(f"the back-end: {error}") from error

    def _said_unasked(self) -> None:
        # All that it may say here, by the protocol features that were negotiated, is that its
        # configuration has changed.
        requests = self._fds["requests"]
        if not os.read(requests, _MAX_UNASKED):
            self._loop.remove(requests)
        elif type(self.device).config_size:
            before = self.device.config_space()
            self._back_end.ask_config(type(self.device).config_size)
            if self.device.config_space() != before:
                self.changed()


def _useless(request: Request, error: ProtocolError) -> HostError:
    # What is wrong with a message names it already.
    why = str(error)
    return HostError(why if why.startswith(request.name) else f"{request.name}: {why}")


def _inflight(sizes: Sequence[int], offset: int) -> Inflight:
    # Our journal's, at ``offset`` of its file.
    return Inflight(journal.size_of(sizes) - PAGE_SIZE, offset, len(sizes), max(sizes))


def _check_layout(fd: int, region: Inflight, queues: int) -> None:
    # Of a fresh one: what is at the beginning of each queue's part. The file is closed.
    try:
        _check_shared_memory(fd)
        if os.fstat(fd).st_size < region.mmap_offset + region.mmap_size:
            raise ProtocolError("it is more than its file")
        for index in range(queues):
            at = region.mmap_offset + region.mmap_size // queues * index
            header = os.pread(fd, journal.HEADER.size, at)
            features, version, desc_num = journal.HEADER.unpack(header)
            if (
                features
                or version not in (0, journal.VERSION)
                or desc_num not in (0, region.queue_size)
            ):
                raise ProtocolError(
                    f"queue {index} has features {features:#x}, version {version}, {desc_num} "
                    "entries"
                )
    finally:
        os.close(fd)


def _check_shared_memory(fd: int) -> None:
    # To read any other file may take as long as whoever serves it likes.
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise ProtocolError("it is not in shared memory") from error
        raise


def _needed(*, journals: bool) -> list[Feature]:
    # Of a ring that is the driver's own, the transport offers all that ours can do.
    if not journals:
        return [Feature.VERSION_1]
    return [feature for feature in Feature if RING_FEATURES & bit(feature)]


def _needed_of_protocol(kind: type[External[Any]], *, journals: bool) -> list[ProtocolFeature]:
    needed = [ProtocolFeature.CONFIG] if kind.config_size else []
    if journals and not kind.may_lose:
        needed.append(ProtocolFeature.INFLIGHT_SHMFD)
    return needed
