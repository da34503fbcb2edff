"""A device for a front-end that is none of ours: QEMU, user-mode Linux, whoever speaks vhost-user.

What :mod:`devices.runtime.session` does for the VMM, with the same worker: messages in, calls of
the worker, replies out. The front-end owns the guest's memory and rings, and comes to them piece
by piece, in an order of its own and more than once. So whatever it says is noted, and then each
ring is brought to where it ought to be::

              size, addresses, kick  │  enabled, features, memory that holds it
    stopped ─────────────────────────┴───────────────────────────────────────────► served
       ▲                                                                              │
       └─── drained: GET_VRING_BASE, disabled, reset, or one of these is another now ─┘

It is hostile. What it gets wrong costs it the connection, and with that this process, which serves
nobody else. A ring that its driver broke costs the device, until that resets it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from devices.runtime import transfer
from devices.runtime.device import Device
from devices.runtime.loop import Loop
from devices.runtime.worker import Worker
from protocol import doorbell, fds, journal, vhost_user
from protocol.config_space import MAX_CONFIG, Written
from protocol.errors import HostError, ProtocolError
from protocol.memory import PAGE_SIZE, GuestMemory, Region
from protocol.messages import MAX_STATE, QueueSetup
from protocol.ring import RingBroken
from protocol.vhost_user import (
    F_PROTOCOL_FEATURES,
    STATE_NOFD,
    VRING_INDEX,
    VRING_NOFD,
    BackendRequest,
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
)
from protocol.virtio import MAX_QUEUE_SIZE, Status, bit

_logger = logging.getLogger(__name__)

_PROTOCOL_FEATURES = sum(
    bit(feature)
    for feature in (
        ProtocolFeature.MQ,
        ProtocolFeature.REPLY_ACK,
        # User-mode Linux takes interrupts from none that has it not.
        ProtocolFeature.BACKEND_REQ,
        ProtocolFeature.INFLIGHT_SHMFD,
        ProtocolFeature.RESET_DEVICE,
        ProtocolFeature.CONFIGURE_MEM_SLOTS,
        ProtocolFeature.STATUS,
    )
)

MAX_SLOTS = 32
"""Regions of memory that there may be at a time (arbitrary: a PC of QEMU has two to four, and one
more for each DIMM that is plugged in)."""

LARGEST_QUEUE = 1024
"""Entries of the largest ring that an in-flight region has room for (arbitrary: the most that QEMU
makes, and four times what user-mode Linux does). Without one, rings may be larger."""

_BELLS = {
    Request.SET_VRING_KICK: "kick",
    Request.SET_VRING_CALL: "call",
    Request.SET_VRING_ERR: "err",
}


def descriptors(queues: int) -> int:
    """How many a device of so many queues may be sent, and have at a time: memory, doorbells, an
    in-flight region, a socket for requests, one for its state, and those of a message that is
    looked at."""
    return MAX_SLOTS + len(_BELLS) * queues + 3 + vhost_user.MAX_DESCRIPTORS


@dataclass(slots=True)
class _Ring:
    # What is known of it. Addresses are the front-end's, 0 until they are told; so is the size.
    index: int
    size: int = 0
    desc: int = 0
    avail: int = 0
    used: int = 0
    base: int = 0
    bells: dict[str, int] = field(default_factory=dict)
    is_enabled: bool = False
    is_served: bool = False

    @property
    def is_complete(self) -> bool:
        known = self.size and self.desc and self.avail and self.used and "kick" in self.bells
        return bool(known) and self.is_enabled

    def set_bell(self, name: str, fd: int | None) -> None:
        if (before := self.bells.pop(name, None)) is not None:
            os.close(before)
        if fd is not None:
            self.bells[name] = fd


class _Memory:
    # The front-end's table of memory: regions, and their files.

    def __init__(self) -> None:
        self.slots: list[tuple[MemoryRegion, int]] = []

    def add(self, region: MemoryRegion, fd: int) -> None:
        """``fd`` is ours from now on, whether or not there is room for it."""
        try:
            _check(region, fd)
            if len(self.slots) >= MAX_SLOTS:
                raise ProtocolError(f"more than {MAX_SLOTS} regions of memory")
            for other, _ in self.slots:
                if _overlap(region.guest_address, other.guest_address, region, other) or _overlap(
                    region.user_address, other.user_address, region, other
                ):
                    raise ProtocolError(f"memory at {region.guest_address:#x} is there already")
        except ProtocolError:
            os.close(fd)
            raise
        self.slots.append((region, fd))

    def remove(self, wanted: MemoryRegion) -> None:
        for slot in self.slots:
            # Some say another offset in the file when they take it back.
            if slot[0] == MemoryRegion(
                wanted.guest_address, wanted.size, wanted.user_address, slot[0].mmap_offset
            ):
                self.slots.remove(slot)
                os.close(slot[1])
                return
        raise ProtocolError(f"there is no memory at {wanted.guest_address:#x} to be taken back")

    def clear(self) -> None:
        fds.close_all(fd for _, fd in self.slots)
        self.slots.clear()

    def map(self) -> GuestMemory:
        return GuestMemory.of_files(
            [
                (fd, Region(region.guest_address, region.size, region.mmap_offset))
                for region, fd in self.slots
            ]
        )

    def guest_address(self, address: int) -> int:
        """Of what the front-end sees at ``address``."""
        for region, _ in self.slots:
            if 0 <= address - region.user_address < region.size:
                return region.guest_address + address - region.user_address
        raise ProtocolError(f"{address:#x} is in no region of memory")


class BackEnd:
    """Speaks over ``connection`` on behalf of ``worker``, in ``loop``, which it stops when the
    other side hangs up, or has said what makes no sense.

    ``inflight`` is the file of a journal for queues of ``sizes``. It goes out once with what
    ``share`` is given, a message to the front-end, and comes back with the next connection: a
    process that may receive descriptors had better not be able to send any. ``written`` is what
    front-ends have written into the configuration, to those before this process too.
    """

    def __init__(
        self,
        connection: Connection,
        worker: Worker,
        loop: Loop,
        inflight: int,
        sizes: Sequence[int],
        share: Callable[[bytes], None],
        written: Written,
    ) -> None:
        self._connection = connection
        self._worker = worker
        self._loop = loop
        self._inflight = inflight
        self._sizes = sizes
        self._share = share
        self._written = written
        for offset, data in written:
            worker.device.write_config(offset, data)
        self._features = 0
        self._protocol_features = 0
        self._status = 0
        self._is_broken = False
        self._requests_to: int | None = None
        # The device's state, as of its last rest or as it was loaded; how its last transfer went,
        # and what one that is not over has brought, through which descriptor.
        self._state = b""
        self._went_well = False
        self._loading: int | None = None
        self._brought = b""
        self._memory = _Memory()
        self._rings = [_Ring(queue.declaration.index) for queue in worker.queues]
        worker.broken = self._ring_broken
        worker.changed = self._config_changed
        loop.add(connection.fileno(), self._readable)
        # What each request leads to, and the protocol feature without which it makes no sense.
        feature = ProtocolFeature
        self._requests: dict[
            Request, tuple[Callable[[Message], bytes | None], ProtocolFeature | None]
        ] = {
            Request.GET_FEATURES: (self._get_features, None),
            Request.SET_FEATURES: (self._set_features, None),
            Request.GET_PROTOCOL_FEATURES: (lambda _: _u64(self.protocol_features), None),
            Request.SET_PROTOCOL_FEATURES: (self._set_protocol_features, None),
            Request.SET_OWNER: (lambda _: None, None),
            Request.RESET_OWNER: (self._reset, None),
            Request.RESET_DEVICE: (self._reset, feature.RESET_DEVICE),
            Request.GET_QUEUE_NUM: (lambda _: _u64(len(self._rings)), feature.MQ),
            Request.SET_MEM_TABLE: (self._set_mem_table, None),
            Request.GET_MAX_MEM_SLOTS: (lambda _: _u64(MAX_SLOTS), feature.CONFIGURE_MEM_SLOTS),
            Request.ADD_MEM_REG: (self._add_mem_reg, feature.CONFIGURE_MEM_SLOTS),
            Request.REM_MEM_REG: (self._rem_mem_reg, feature.CONFIGURE_MEM_SLOTS),
            Request.SET_VRING_NUM: (self._set_vring_num, None),
            Request.SET_VRING_ADDR: (self._set_vring_addr, None),
            Request.SET_VRING_BASE: (self._set_vring_base, None),
            Request.GET_VRING_BASE: (self._get_vring_base, None),
            Request.SET_VRING_ENABLE: (self._set_vring_enable, None),
            Request.SET_VRING_KICK: (self._set_bell, None),
            Request.SET_VRING_CALL: (self._set_bell, None),
            Request.SET_VRING_ERR: (self._set_bell, None),
            Request.SET_BACKEND_REQ_FD: (self._set_backend_req_fd, feature.BACKEND_REQ),
            Request.GET_CONFIG: (self._get_config, feature.CONFIG),
            Request.SET_CONFIG: (self._set_config, feature.CONFIG),
            Request.GET_INFLIGHT_FD: (self._get_inflight_fd, feature.INFLIGHT_SHMFD),
            Request.SET_INFLIGHT_FD: (self._set_inflight_fd, feature.INFLIGHT_SHMFD),
            Request.SET_STATUS: (self._set_status, feature.STATUS),
            Request.GET_STATUS: (self._get_status, feature.STATUS),
            Request.SET_DEVICE_STATE_FD: (self._set_device_state_fd, feature.DEVICE_STATE),
            Request.CHECK_DEVICE_STATE: (self._check_device_state, feature.DEVICE_STATE),
        }

    def close(self) -> None:
        """Carry out what was begun, hang up, and close whatever the front-end has sent."""
        self._halt()
        self._loop.remove(self._connection.fileno())
        self._connection.close()
        self._end_loading()
        self._memory.clear()
        self._worker.memory = self._worker.journal = None
        if self._requests_to is not None:
            os.close(self._requests_to)
            self._requests_to = None
        for ring in self._rings:
            for name in tuple(ring.bells):
                ring.set_bell(name, None)

    @property
    def protocol_features(self) -> int:
        """Those that are offered; CONFIG and DEVICE_STATE where there is any."""
        device = self._worker.device
        has_config, has_state = bool(device.config_space()), type(device).save is not Device.save
        return (
            _PROTOCOL_FEATURES
            | has_config << ProtocolFeature.CONFIG
            | has_state << ProtocolFeature.DEVICE_STATE
        )

    # ── the conversation ──────────────────────────────────────────────────────────────

    def _readable(self) -> None:
        # One message a turn: who sends very many does not keep the queues waiting.
        try:
            if (message := self._connection.receive()) is not None:
                with message:
                    self._answer(message)
        except vhost_user.HungUp:
            _logger.info("the front-end has hung up")
            self._loop.stop()
        except (ProtocolError, HostError) as error:
            _logger.error("the front-end: %s", error)
            self._loop.stop()

    def _answer(self, message: Message) -> None:
        try:
            reply = self._carry_out(message)
        except (ProtocolError, HostError) as error:
            if self._wants_word(message):
                self._connection.send(message.request, _u64(1), is_reply=True)
            raise ProtocolError(f"{message.request.name}: {error}") from error
        if message.request is Request.GET_INFLIGHT_FD:
            return  # somebody else has replied
        if reply is None and self._wants_word(message):
            reply = _u64(0)
        if reply is not None:
            self._connection.send(message.request, reply, is_reply=True)

    def _wants_word(self, message: Message) -> bool:
        # Asked afterwards: user-mode Linux wants one of the message that negotiates it.
        return message.needs_reply and self._has(ProtocolFeature.REPLY_ACK)

    def _carry_out(self, message: Message) -> bytes | None:
        if message.is_reply:
            raise ProtocolError("a reply to nothing")
        handle, feature = self._requests[message.request]
        if feature is not None and not self._has(feature):
            raise ProtocolError(f"{feature.name} was not negotiated")
        return handle(message)

    def _has(self, feature: ProtocolFeature) -> bool:
        return bool(self._protocol_features & bit(feature))

    # ── features, status, configuration ───────────────────────────────────────────────

    def _get_features(self, message: Message) -> bytes:
        return _u64(self._worker.features | bit(F_PROTOCOL_FEATURES))

    def _set_features(self, message: Message) -> None:
        features = message.number
        if unknown := features & ~(self._worker.features | bit(F_PROTOCOL_FEATURES)):
            raise ProtocolError(f"features {unknown:#x} were not offered")
        if not features & bit(F_PROTOCOL_FEATURES):
            for ring in self._rings:
                ring.is_enabled = True  # nobody will say so
        features &= ~bit(F_PROTOCOL_FEATURES)
        if features != self._features:
            self._halt()
            self._features = features
        self._update()

    def _set_protocol_features(self, message: Message) -> None:
        if unknown := message.number & ~self.protocol_features:
            raise ProtocolError(f"protocol features {unknown:#x} were not offered")
        self._protocol_features = message.number

    def _set_status(self, message: Message) -> None:
        if message.number == 0:
            self._reset(message)
        self._status = message.number & 0xFF

    def _get_status(self, message: Message) -> bytes:
        return _u64(self._status | (Status.DEVICE_NEEDS_RESET if self._is_broken else 0))

    def _reset(self, message: Message) -> None:
        # Where the rings stood is still asked for afterwards.
        self._halt()
        self._mend()
        self._status = 0
        for ring in self._rings:
            ring.set_bell("kick", None)
            ring.is_enabled = False

    def _get_config(self, message: Message) -> bytes:
        wanted = _config(message)
        end = wanted.offset + len(wanted.data)
        # What is asked for may be more than there is.
        space = self._worker.device.config_space().ljust(end, b"\0")
        return ConfigSpace(wanted.offset, wanted.flags, space[wanted.offset : end]).pack()

    def _set_config(self, message: Message) -> None:
        # It stays, whatever is reset: QEMU neither resets its own copy, nor says it once more.
        wish = _config(message)
        self._written.note(wish.offset, wish.data)
        self._worker.device.write_config(wish.offset, wish.data)

    def _set_backend_req_fd(self, message: Message) -> None:
        fd = message.take()
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            os.close(fd)
            raise ProtocolError("the descriptor is no socket")
        if self._requests_to is not None:
            os.close(self._requests_to)
        self._requests_to = fd

    def _config_changed(self) -> None:
        if self._requests_to is not None:
            # It may hang up at any time, or not read.
            with contextlib.suppress(OSError):
                os.write(self._requests_to, vhost_user.pack(BackendRequest.CONFIG_CHANGE_MSG))

    # ── memory ────────────────────────────────────────────────────────────────────────

    def _set_mem_table(self, message: Message) -> None:
        regions = vhost_user.unpack_table(message.payload)
        if len(regions) != len(message.descriptors):
            raise ProtocolError(f"{len(message.descriptors)} files for {len(regions)} regions")
        self._forget_memory()
        self._memory.clear()
        for region in regions:
            self._memory.add(region, message.take())
        self._update()

    def _add_mem_reg(self, message: Message) -> None:
        self._forget_memory()
        self._memory.add(vhost_user.unpack_region(message.payload), message.take())
        self._update()

    def _rem_mem_reg(self, message: Message) -> None:
        # A descriptor that comes with it is nothing to us.
        self._forget_memory()
        self._memory.remove(vhost_user.unpack_region(message.payload))
        self._update()

    def _forget_memory(self) -> None:
        self._halt()
        self._worker.memory = None

    # ── the in-flight region ──────────────────────────────────────────────────────────

    # It is our journal (docs/journal.md) from its second page on. The first, with the positions of
    # streams, goes along in the file: a front-end need not know.

    def _get_inflight_fd(self, message: Message) -> None:
        wanted = Inflight.unpack(message.payload)
        if not 0 < wanted.num_queues <= len(self._rings):
            raise ProtocolError(f"{wanted.num_queues} queues, of {len(self._rings)}")
        if not 0 < wanted.queue_size <= LARGEST_QUEUE:
            raise ProtocolError(f"{wanted.queue_size} entries, of {LARGEST_QUEUE} at most")
        self._halt()
        # The one before may be somebody's still; whoever asks wants a fresh one.
        with journal.Journal(self._inflight, self._sizes) as fresh:
            fresh.clear()
        # Whatever was asked for: a driver under QEMU's virtio-mmio makes rings of 1024, where QEMU
        # speaks of 128.
        size = journal.size_of(self._sizes) - PAGE_SIZE
        found = Inflight(size, PAGE_SIZE, wanted.num_queues, LARGEST_QUEUE).pack()
        # A compiler that pads pads the reply, too.
        padded = found.ljust(len(message.payload), b"\0")
        self._share(vhost_user.pack(message.request, padded, is_reply=True))

    def _set_inflight_fd(self, message: Message) -> None:
        # One that we have made has room for our largest rings; one of a front-end's own, which is
        # laid out alike, for those that it has in mind.
        told = Inflight.unpack(message.payload)
        known = [tuple(self._sizes)]
        if told.num_queues == len(self._rings) and 0 < told.queue_size <= LARGEST_QUEUE:
            known.append((told.queue_size,) * told.num_queues)
        where = told.mmap_offset, told.mmap_offset + told.mmap_size
        fits = [sizes for sizes in known if where == (PAGE_SIZE, journal.size_of(sizes))]
        if not fits:
            raise ProtocolError("the in-flight region is none of ours")
        fd = message.take()
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ProtocolError("the in-flight region is not in a file")
            self._halt()
            self._worker.journal = journal.Journal(fd, fits[0])
        finally:
            os.close(fd)
        self._update()

    # ── the device's state ────────────────────────────────────────────────────────────

    # It goes when the reply has gone, and comes when it comes; then it is asked how that went.

    def _set_device_state_fd(self, message: Message) -> bytes:
        told = DeviceState.unpack(message.payload)
        if told.phase or told.direction not in tuple(Direction):
            raise ProtocolError(f"direction {told.direction}, phase {told.phase}")
        self._must_rest()
        self._end_loading()
        self._went_well = False
        fd = message.take()
        try:
            transfer.check(fd)
        except ProtocolError:
            os.close(fd)
            raise
        if told.direction == Direction.SAVE:
            self._loop.soon(partial(self._save_to, fd))
        else:
            self._loading, self._brought = fd, b""
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                self._loop.add(fd, self._bring)
        return _u64(STATE_NOFD)

    def _save_to(self, fd: int) -> None:
        try:
            transfer.send(fd, self._state)
            self._went_well = True
        except ProtocolError as error:
            _logger.warning("%s", error)
        finally:
            os.close(fd)

    def _bring(self) -> None:
        # So that who sends more than there is room for on the way need not wait.
        assert self._loading is not None
        try:
            piece = os.read(self._loading, MAX_STATE)
        except OSError:
            piece = b""
        self._brought += piece
        if not piece:
            self._loop.remove(self._loading)
        elif len(self._brought) > MAX_STATE:
            _logger.warning("the state is more than %d bytes", MAX_STATE)
            self._end_loading()

    def _check_device_state(self, message: Message) -> bytes:
        if self._loading is not None:
            self._must_rest()
            try:
                state = transfer.receive(self._loading, self._brought)
                if state:
                    self._worker.device.restore(state)
                self._state, self._went_well = state, True
            except (ProtocolError, ValueError) as error:
                _logger.warning("state: %s", error)
            self._end_loading()
        return _u64(0 if self._went_well else 1)

    def _end_loading(self) -> None:
        if self._loading is not None:
            self._loop.remove(self._loading)
            os.close(self._loading)
            self._loading = None

    def _must_rest(self) -> None:
        if any(ring.is_served for ring in self._rings):
            raise ProtocolError("the device is not stopped")

    def _rest(self) -> None:
        # What it knows then is told later on, as often as it is asked.
        if self._worker.is_running:
            self._state = self._worker.device.save()
        self._worker.stop()

    # ── rings ─────────────────────────────────────────────────────────────────────────

    def _ring(self, index: int) -> _Ring:
        if index >= len(self._rings):
            raise ProtocolError(f"there is no ring {index}")
        return self._rings[index]

    def _set_vring_num(self, message: Message) -> None:
        state = VringState.unpack(message.payload)
        if not 0 < state.num <= MAX_QUEUE_SIZE or state.num & (state.num - 1):
            raise ProtocolError(f"a ring of {state.num} entries")
        ring = self._ring(state.index)
        self._stop(ring)
        ring.size = state.num
        self._update()

    def _set_vring_addr(self, message: Message) -> None:
        told = VringAddr.unpack(message.payload)
        if told.flags & vhost_user.VRING_F_LOG:
            raise ProtocolError("a log was not offered")
        ring = self._ring(told.index)
        self._stop(ring)
        ring.desc, ring.avail, ring.used = told.descriptor, told.available, told.used
        self._update()

    def _set_vring_base(self, message: Message) -> None:
        # A ring goes on where its used.idx stands, and that is where it was left.
        state = VringState.unpack(message.payload)
        self._ring(state.index).base = state.num & 0xFFFF

    def _get_vring_base(self, message: Message) -> bytes:
        ring = self._ring(VringState.unpack(message.payload).index)
        self._stop(ring)
        ring.set_bell("kick", None)
        self._mend()
        self._update()
        return VringState(ring.index, ring.base).pack()

    def _set_vring_enable(self, message: Message) -> None:
        state = VringState.unpack(message.payload)
        self._ring(state.index).is_enabled = bool(state.num)
        self._update()

    def _set_bell(self, message: Message) -> None:
        name, payload = _BELLS[message.request], message.number
        ring = self._ring(payload & VRING_INDEX)
        if payload & VRING_NOFD:
            if name == "kick":
                raise ProtocolError("a ring that is to be polled: it needs a kick")
            bell = None
        else:
            bell = _bell(message, may_be_socket=name == "call")
        if name == "kick":
            self._stop(ring)
        elif name == "call":
            # Interrupts go there from now on, whatever the queue is doing; then the one before
            # may be closed.
            self._worker.queue(ring.index).call = -1 if bell is None else bell
        ring.set_bell(name, bell)
        self._update()

    def _update(self) -> None:
        # Bring every ring to where it ought to be.
        for ring in self._rings:
            if not ring.is_complete:
                self._stop(ring)
        if self._worker.is_running and not any(ring.is_served for ring in self._rings):
            self._rest()
        for ring in self._rings:
            can_be = self._memory.slots and self._features and not self._is_broken
            if can_be and ring.is_complete and not ring.is_served:
                self._serve(ring)

    def _serve(self, ring: _Ring) -> None:
        if self._worker.memory is None:
            self._worker.memory = self._memory.map()
        address = self._memory.guest_address
        setup = QueueSetup(
            ring.index, ring.size, address(ring.desc), address(ring.avail), address(ring.used)
        )
        self._worker.queue(ring.index).kick = ring.bells["kick"]
        try:
            if not self._worker.is_running:
                self._worker.start(self._features, ())
            self._worker.start_queue(setup)
            ring.is_served = True
        except RingBroken as error:
            self._worker.stop()
            self._ring_broken(str(error))

    def _stop(self, ring: _Ring) -> None:
        # What was begun is finished; what the device keeps comes again when the ring is served
        # again, and until then stands in the journal, if there is one.
        if not ring.is_served:
            return
        queue = self._worker.queue(ring.index)
        ring.base = queue.drain()
        if self._worker.journal is not None and not queue.in_flight:
            # The next ring here may be another driver's.
            self._worker.journal.queue(ring.index).clear()
        queue.stop()
        ring.is_served = False

    def _mend(self) -> None:
        # Its driver has been told, and starts afresh.
        if self._is_broken:
            self._is_broken = False
            if self._worker.journal is not None:
                self._worker.journal.clear()

    def _halt(self) -> None:
        for ring in self._rings:
            self._stop(ring)
        self._rest()

    def _ring_broken(self, reason: str) -> None:
        # The worker has stopped.
        _logger.warning("%s; the device waits for its reset", reason)
        self._is_broken = True
        for ring in self._rings:
            ring.is_served = False
            if "err" in ring.bells:
                doorbell.ring(ring.bells["err"])


def _u64(value: int) -> bytes:
    return vhost_user.U64(value).pack()


def _config(message: Message) -> ConfigSpace:
    found = ConfigSpace.unpack(message.payload)
    if found.offset + len(found.data) > MAX_CONFIG:
        raise ProtocolError(f"{len(found.data)} bytes at {found.offset} of a configuration space")
    return found


def _bell(message: Message, *, may_be_socket: bool) -> int:
    # User-mode Linux has its interrupts written into a socket.
    fd = message.take()
    if doorbell.is_one(fd) or (may_be_socket and stat.S_ISSOCK(os.fstat(fd).st_mode)):
        return fd
    os.close(fd)
    raise ProtocolError("the descriptor is no eventfd")


def _check(region: MemoryRegion, fd: int) -> None:
    where = f"memory at {region.guest_address:#x}"
    sizes = (region.guest_address, region.size, region.mmap_offset)
    if not region.size or any(size % PAGE_SIZE for size in sizes):
        raise ProtocolError(f"{where} does not consist of pages")
    for start in (region.guest_address, region.user_address, region.mmap_offset):
        if start + region.size > 1 << 64:
            raise ProtocolError(f"{where} does not end")
    file = os.fstat(fd)
    if not stat.S_ISREG(file.st_mode):
        raise ProtocolError(f"{where} is not in a file")
    if file.st_size < region.mmap_offset + region.size:
        raise ProtocolError(f"{where} is more than its file of {file.st_size} bytes")


def _overlap(start: int, other_start: int, region: MemoryRegion, other: MemoryRegion) -> bool:
    return start < other_start + other.size and other_start < start + region.size
