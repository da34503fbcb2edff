"""virtio over MMIO, version 2 (virtio 1.2, section 4.2), so that a request costs no exit.

What the guest reads is a page of memory (page.py). What it writes comes here as an exit, but
for the two registers of the data path: QueueNotify is an eventfd per queue, which wakes the
device process, and InterruptACK of 1 an eventfd that nobody reads. The device raises its
interrupt by irqfd. So InterruptStatus cannot be kept per interrupt; it says "used buffer"
constantly from DRIVER_OK until reset, which a driver takes for a look at its rings.

Whatever the driver does wrong is ignored, counted and logged; it gets a device that does not
work, never a VMM that does not.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from protocol.messages import QueueSetup
from protocol.virtio import (
    INTERRUPT_CONFIG_CHANGE,
    INTERRUPT_USED_BUFFER,
    MMIO_MAGIC,
    MMIO_VERSION,
    RING_FEATURES,
    Feature,
    Mmio,
    Status,
    bit,
)
from vmm.transport.page import RegisterPage

log = logging.getLogger(__name__)

VENDOR_ID = int.from_bytes(b"VIBE", "little")
_ONES = 0xFFFF_FFFF
_QUEUE_ADDRESSES = {
    Mmio.QUEUE_DESC_LOW: ("desc", 0),
    Mmio.QUEUE_DESC_HIGH: ("desc", 32),
    Mmio.QUEUE_DRIVER_LOW: ("avail", 0),
    Mmio.QUEUE_DRIVER_HIGH: ("avail", 32),
    Mmio.QUEUE_DEVICE_LOW: ("used", 0),
    Mmio.QUEUE_DEVICE_HIGH: ("used", 32),
}


class Backend(Protocol):
    """The device, as its transport sees it: there all the time (vmm.seat.Seat). Every call ends
    within a deadline, at which the process that serves is killed and fenced."""

    name: str
    device_id: int

    @property
    def features(self) -> int:
        """What the device offers; another process may offer something else."""
        ...

    @property
    def queue_sizes(self) -> Sequence[int]:
        """The most entries of each queue."""
        ...

    def start(self, features: int, queues: tuple[QueueSetup, ...]) -> str | None:
        """Serve the queues; the reason, if the device will not."""
        ...

    def stop(self) -> None:
        """Return when the device is quiet: it touches guest memory no more."""
        ...

    def forget(self) -> None:
        """The driver has reset what it had not started; no process is asked."""
        ...

    def stop_queue(self, index: int) -> None:
        """:meth:`stop` for one queue."""
        ...

    def write_config(self, offset: int, data: bytes) -> bytes:
        """Change the configuration space; what it is now."""
        ...


class Line(Protocol):
    """The device's interrupt line, for the interrupts that the VMM itself raises."""

    def pulse(self) -> None:
        """One edge."""
        ...


@dataclass(slots=True)
class _Queue:
    size_max: int
    size: int = 0
    desc: int = 0
    avail: int = 0
    used: int = 0
    ready: bool = False


class MmioTransport:
    """The registers of one device, on the bus at its slot's address.

    Two locks: ``page.lock`` for what the guest reads, held only for stores, which any thread may
    take; and one that serialises what drivers write, held while the device process answers.
    """

    def __init__(self, page: RegisterPage, backend: Backend, line: Line, config: bytes) -> None:
        self._page = page
        self._backend = backend
        self._line = line
        self._offered = backend.features | RING_FEATURES
        self._driver = threading.Lock()
        self._status = Status(0)
        self._accepted = 0
        self._device_features_sel = 0
        self._driver_features_sel = 0
        self._queue_sel = 0
        self._queues = [_Queue(size) for size in backend.queue_sizes]
        self.refused = 0
        """Writes that the driver should not have made."""
        for register, value in (
            (Mmio.MAGIC_VALUE, MMIO_MAGIC),
            (Mmio.VERSION, MMIO_VERSION),
            (Mmio.DEVICE_ID, backend.device_id),
            (Mmio.VENDOR_ID, VENDOR_ID),
            # No shared memory regions: their length and base read as ones (section 4.2.2).
            (Mmio.SHM_LEN_LOW, _ONES),
            (Mmio.SHM_LEN_HIGH, _ONES),
            (Mmio.SHM_BASE_LOW, _ONES),
            (Mmio.SHM_BASE_HIGH, _ONES),
        ):
            page.store(register, value)
        page.set_config(config)
        self._refresh_windows()

    # ── the bus ───────────────────────────────────────────────────────────────────────

    def read(self, offset: int, size: int) -> int:
        """A read that left the guest: the page was away, or cannot be mapped."""
        return self._page.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """A write by the driver, on the thread of its vCPU."""
        with self._driver:
            if offset >= Mmio.CONFIG:
                self._write_config(offset - Mmio.CONFIG, size, value)
            elif size != 4 or offset % 4:
                self._refuse(f"{size}-byte write at {offset:#x}; registers are 4 bytes, aligned")
            else:
                self._write_register(offset, value)

    def reset(self) -> None:
        """The machine is reset: as if the driver had written 0 to Status. Nothing that the device
        still says interrupts anybody."""
        with self._driver:
            self._reset()

    # ── the device process ────────────────────────────────────────────────────────────

    def config_changed(self, config: bytes) -> None:
        """The device has a new configuration. Never waits for a driver."""
        with self._page.lock:
            if self._page.set_config(config) and self._status & Status.DRIVER_OK:
                self._interrupt_config()

    def needs_reset(self, reason: str) -> None:
        """The device cannot go on until the driver resets it. Never waits for a driver."""
        log.warning("%s needs a reset: %s", self._backend.name, reason)
        with self._page.lock:
            self._store_status(self._status | Status.DEVICE_NEEDS_RESET)
            if self._status & Status.DRIVER_OK:
                self._interrupt_config()

    @property
    def status(self) -> Status:
        """The device status field as the guest reads it."""
        return self._status

    # ── registers ─────────────────────────────────────────────────────────────────────

    def _write_register(self, register: int, value: int) -> None:
        match register:
            case Mmio.STATUS:
                self._write_status(value)
            case Mmio.INTERRUPT_ACK:
                self._acknowledge(value)
            case Mmio.DEVICE_FEATURES_SEL:
                self._device_features_sel = value
                self._refresh_windows()
            case Mmio.DRIVER_FEATURES_SEL:
                self._driver_features_sel = value
            case Mmio.DRIVER_FEATURES:
                self._write_driver_features(value)
            case Mmio.QUEUE_SEL:
                self._queue_sel = value
                self._refresh_windows()
            case Mmio.QUEUE_READY:
                self._write_queue_ready(value)
            case Mmio.QUEUE_SIZE:
                if queue := self._configurable_queue("QueueSize"):
                    queue.size = value
            case register if register in _QUEUE_ADDRESSES:
                self._write_queue_address(*_QUEUE_ADDRESSES[Mmio(register)], value)
            case Mmio.QUEUE_NOTIFY:
                # Of the queues that exist notifications are eventfds. One that gets here came
                # while a successor's took the place of another's, which will look by itself.
                if value >= len(self._queues):
                    self._refuse(f"QueueNotify for queue {value}, which does not exist")
            case Mmio.SHM_SEL:
                pass  # whichever is selected does not exist
            case _:
                self._refuse(f"write to register {register:#x}")

    def _refresh_windows(self) -> None:
        sel = self._device_features_sel
        features = self._offered >> 32 * sel & _ONES if sel < 2 else 0
        queue = self._queue()
        self._page.store(Mmio.DEVICE_FEATURES, features)
        self._page.store(Mmio.QUEUE_SIZE_MAX, queue.size_max if queue else 0)
        self._page.store(Mmio.QUEUE_READY, int(queue.ready) if queue else 0)

    def _queue(self) -> _Queue | None:
        return self._queues[self._queue_sel] if self._queue_sel < len(self._queues) else None

    def _write_driver_features(self, value: int) -> None:
        if not self._status & Status.DRIVER or self._status & Status.FEATURES_OK:
            self._refuse("features are written between DRIVER and FEATURES_OK")
        elif self._driver_features_sel < 2:
            shift = 32 * self._driver_features_sel
            self._accepted = self._accepted & ~(_ONES << shift) | value << shift
        elif value:
            self._refuse(f"features above bit 63: {value:#x}")

    def _configurable_queue(self, register: str) -> _Queue | None:
        queue = self._queue()
        if queue is None:
            self._refuse(f"{register} of queue {self._queue_sel}, which does not exist")
        elif queue.ready:
            self._refuse(f"{register} of queue {self._queue_sel}, which is ready")
        elif self._status & Status.DRIVER_OK:
            self._refuse(f"{register} after DRIVER_OK")
        else:
            return queue
        return None

    def _write_queue_address(self, part: str, shift: int, value: int) -> None:
        if queue := self._configurable_queue(f"address of {part}"):
            other = getattr(queue, part) & ~(_ONES << shift)
            setattr(queue, part, other | value << shift)

    def _write_queue_ready(self, value: int) -> None:
        if not value & 1:
            self._stop_queue()
        elif queue := self._configurable_queue("QueueReady"):
            size_is_legal = 0 < queue.size <= queue.size_max and not queue.size & queue.size - 1
            if not self._status & Status.FEATURES_OK:
                self._refuse("QueueReady before FEATURES_OK")
            elif not size_is_legal:
                self._refuse(f"QueueSize {queue.size} is not a power of two up to {queue.size_max}")
            else:
                queue.ready = True
        self._refresh_windows()

    def _stop_queue(self) -> None:
        queue = self._queue()
        if queue is None or not queue.ready:
            return
        queue.ready = False
        if self._status & Status.DRIVER_OK:
            self._backend.stop_queue(self._queue_sel)

    def _write_config(self, offset: int, size: int, value: int) -> None:
        if not self._status & Status.DRIVER:
            self._refuse("write to the configuration before DRIVER")
            return
        config = self._backend.write_config(offset, value.to_bytes(size, "little"))
        # The driver's own write is no configuration change: no interrupt.
        self._page.set_config(config)

    # ── status and interrupts ─────────────────────────────────────────────────────────

    def _write_status(self, value: int) -> None:
        if value == 0:
            self._reset()
            return
        wanted = Status(value & 0xFF) & ~Status.DEVICE_NEEDS_RESET
        if self._status & ~wanted & ~Status.DEVICE_NEEDS_RESET:
            self._refuse(f"status {value:#x} clears bits of {int(self._status):#x}")
            return
        # In the order of section 3.1.1, each only on top of the one before.
        for step, needed in (
            (Status.ACKNOWLEDGE, Status(0)),
            (Status.DRIVER, Status.ACKNOWLEDGE),
            (Status.FEATURES_OK, Status.DRIVER),
            (Status.DRIVER_OK, Status.FEATURES_OK),
            (Status.FAILED, Status(0)),
        ):
            if step & wanted & ~self._status:
                if self._status & needed != needed:
                    self._refuse(f"{step.name} without {needed.name}")
                    return
                if not self._enter(step):
                    return

    def _enter(self, step: Status) -> bool:
        if step is Status.FEATURES_OK and not self._features_are_legal():
            return False
        if step is Status.DRIVER_OK:
            reason = self._start()
            with self._page.lock:
                self._page.store(Mmio.INTERRUPT_STATUS, INTERRUPT_USED_BUFFER)
                self._store_status(self._status | step)
            if reason is not None:
                self.needs_reset(reason)
            return True
        with self._page.lock:
            self._store_status(self._status | step)
        return True

    def _features_are_legal(self) -> bool:
        if self._accepted & ~self._offered:
            self._refuse(f"features {self._accepted & ~self._offered:#x} were not offered")
            return False
        if not self._accepted & bit(Feature.VERSION_1):
            self._refuse("a driver that does not know VERSION_1")
            return False
        return True

    def _start(self) -> str | None:
        setups = tuple(
            QueueSetup(index, queue.size, queue.desc, queue.avail, queue.used)
            for index, queue in enumerate(self._queues)
            if queue.ready
        )
        return self._backend.start(self._accepted, setups)

    def _reset(self) -> None:
        # Only when the device is quiet may this return: a driver writes 0, reads nothing back,
        # and frees its rings. A device that is not quiet in time has been killed by stop().
        with self._page.lock:
            was_started = self._status & Status.DRIVER_OK
            self._status = Status(0)  # what the device still says interrupts nobody
        if was_started:
            self._backend.stop()
        else:
            self._backend.forget()
        self._accepted = 0
        self._offered = self._backend.features | RING_FEATURES
        self._device_features_sel = self._driver_features_sel = self._queue_sel = 0
        self._queues = [_Queue(size) for size in self._backend.queue_sizes]
        with self._page.lock:
            self._page.store(Mmio.INTERRUPT_STATUS, 0)
            self._store_status(Status(0))
        self._refresh_windows()

    def _store_status(self, status: Status) -> None:
        # The caller holds page.lock: the device process sets a bit of this as well.
        self._status = status
        self._page.store(Mmio.STATUS, int(status))

    def _acknowledge(self, value: int) -> None:
        if value & INTERRUPT_CONFIG_CHANGE:
            with self._page.lock:
                pending = self._page.load(Mmio.INTERRUPT_STATUS) & ~INTERRUPT_CONFIG_CHANGE
                self._page.store(Mmio.INTERRUPT_STATUS, pending)

    def _interrupt_config(self) -> None:
        # Order: the change itself, then the status bit, then the interrupt.
        pending = self._page.load(Mmio.INTERRUPT_STATUS) | INTERRUPT_CONFIG_CHANGE
        self._page.store(Mmio.INTERRUPT_STATUS, pending)
        self._line.pulse()

    def _refuse(self, what: str) -> None:
        self.refused += 1
        log.warning("%s: the driver is wrong: %s", self._backend.name, what)
