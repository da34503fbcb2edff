"""A device at work: its instance, its queues, and what they are in the middle of."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from devices.runtime.device import AnyDevice, QueueDeclaration
from devices.runtime.loop import Loop
from devices.runtime.queue import Handler, Queue, TracedQueue
from devices.runtime.stats import flat
from protocol.errors import ProtocolError
from protocol.journal import Journal
from protocol.memory import GuestMemory
from protocol.messages import QueueSetup
from protocol.ring import Chain
from protocol.trace import Trace
from protocol.virtio import RING_FEATURES, Feature, bit

if TYPE_CHECKING:
    from devices.runtime.faults import Injector


class Worker:
    """Makes one device of ``kind`` and serves its queues; it is that device's Runtime.

    ``fds`` is what the kind opened, and may hold the doorbells, ``kick0`` … ``kickN`` and ``call``.
    ``memory`` is the guest's, and ``journal`` where a successor finds what was in flight; both can
    be others, or none, while the device is stopped. ``broken`` is told of a ring that its driver
    broke, ``changed`` of a new configuration space. One that is ``failing`` answers every request
    with an error. Chains of more than ``largest_chain`` bytes do not reach it; 0: any does. With
    an ``injector`` its queues pass points at which faults can strike.
    """

    def __init__(
        self,
        kind: type[AnyDevice],
        config: Any,
        fds: Mapping[str, int],
        memory: GuestMemory | None,
        journal: Journal | None,
        loop: Loop,
        trace: Trace | None,
        *,
        failing: bool = False,
        largest_chain: int = 0,
        injector: Injector | None = None,
    ) -> None:
        self.broken: Callable[[str], None] = lambda reason: None
        self.changed: Callable[[], None] = lambda: None
        self.largest_chain = largest_chain
        self.memory = memory
        self.journal = journal
        self._loop = loop
        self._watched: set[int] = set()
        self._features = 0
        self._running = False
        self.device = kind(config, fds, self)
        self.queues = self._make_queues(fds, trace, injector, failing=failing)

    def _make_queues(
        self,
        fds: Mapping[str, int],
        trace: Trace | None,
        injector: Injector | None,
        *,
        failing: bool,
    ) -> list[Queue]:
        kind, made = type(self.device), list[Queue]()
        plain = Queue if injector is None else injector.queue_type
        traced = TracedQueue if injector is None else injector.traced_queue_type
        lanes = kind.lanes
        if failing or trace is not None:  # which tells of each chain
            lanes = None
        elif lanes is not None and injector is not None:
            lanes = injector.lanes
        for declaration in kind.virtqueues(self.device.config):
            arguments = (
                declaration,
                (fds.get(f"kick{declaration.index}", -1), fds.get("call", -1)),
                self._handler(declaration, failing=failing),
                self._loop,
                self._ring_broken,
                partial(self.device.published, declaration.index),
            )
            lane = None if lanes is None else self.device.lane(declaration.index, lanes)
            limit = self.device.limit(declaration.index)
            if lane is None:
                made.append((plain if trace is None else traced)(*arguments))
            elif made and limit is None:
                made.append(lane.build.threaded(lane, *arguments))
            else:
                # The first is the loop's own; and what is limited is in no hurry.
                made.append(lane.build.queue(lane, *arguments))
            made[-1].limit = limit
        for queue in made:
            if isinstance(queue, TracedQueue) and trace is not None:
                queue.trace = trace
            if injector is not None:
                injector.join(queue, partial(self.device.fail, queue.declaration.index))
        return made

    def _handler(self, declaration: QueueDeclaration, *, failing: bool) -> Handler:
        if failing:
            return partial(self.device.fail, declaration.index)
        handler: Handler = getattr(self.device, declaration.handler)
        return handler

    @property
    def queue_sizes(self) -> tuple[int, ...]:
        """The most entries of each queue."""
        return tuple(queue.size for queue in type(self.device).virtqueues(self.device.config))

    @property
    def features(self) -> int:
        """All that is offered to the driver."""
        return RING_FEATURES | self.device.features

    def start(self, features: int, setups: Sequence[QueueSetup], state: bytes = b"") -> None:
        """Serve the queues in ``setups``, going on with the ``state`` of a predecessor.

        ProtocolError, and nothing is started, if the VMM asks for what was not offered, or the
        device makes nothing of the state; RingBroken if the driver misplaced a ring."""
        if features & ~self.features:
            raise ProtocolError(f"features {features & ~self.features:#x} were not offered")
        if not features & bit(Feature.VERSION_1):
            raise ProtocolError("the driver is of the time before virtio 1.0")
        queues = [self._queue(setup) for setup in setups]
        if len(set(queues)) != len(queues):
            raise ProtocolError("a queue is set up twice")
        try:
            for queue, setup in zip(queues, setups, strict=True):
                self._attach(queue, setup, features)
            if state:
                self._restore(state)
            self._features, self._running = features, True
            self.device.start(features)
            for queue in queues:
                queue.start()
        except BaseException:
            self.stop()
            raise

    def start_queue(self, setup: QueueSetup) -> None:
        """One more, of a device that runs; RingBroken."""
        queue = self.queue(setup.index)
        self._attach(queue, setup, self._features)
        queue.start()

    def _attach(self, queue: Queue, setup: QueueSetup, features: int) -> None:
        assert self.memory is not None
        journal = None if self.journal is None else self.journal.queue(setup.index)
        position = self.device.initial_position(setup.index)
        queue.attach(self.memory, setup, features, journal, position)

    def _queue(self, setup: QueueSetup) -> Queue:
        queue = self.queue(setup.index)
        if setup.size > queue.declaration.size:
            raise ProtocolError(f"queue {setup.index} has no {setup.size} entries")
        return queue

    def queue(self, index: int) -> Queue:
        """Queue ``index``; ProtocolError if there is no such."""
        if index >= len(self.queues):
            raise ProtocolError(f"there is no queue {index}")
        return self.queues[index]

    @property
    def descriptors(self) -> list[int]:
        """Those that it has made for itself."""
        return [fd for queue in self.queues for fd in (*queue.descriptors, *queue.urings)]

    @property
    def urings(self) -> list[int]:
        """Those of them that are io_urings."""
        return [fd for queue in self.queues for fd in queue.urings]

    @property
    def is_running(self) -> bool:
        """Whether it was started, and not stopped since."""
        return self._running

    def _restore(self, state: bytes) -> None:
        try:
            self.device.restore(state)
        except ValueError as error:
            raise ProtocolError(f"state of {len(state)} bytes: {error}") from error

    def quiesce(self) -> bytes:
        """Be quiet, for a successor, to whom the journal tells what is in flight; the device's
        own state."""
        for queue in self.queues:
            queue.settle()
        state = self.device.save() if self._running else b""
        self.stop()
        return state

    def stop(self) -> None:
        """Be quiet: guest memory is not touched again, nothing in flight is completed."""
        self._stop_queues()
        for fd in tuple(self._watched):
            self.unwatch(fd)
        if self._running:
            self._running = False
            self.device.stop()

    def stop_queue(self, index: int) -> None:
        """The same for one queue; ProtocolError if there is no such."""
        self.queue(index).stop()

    def _stop_queues(self) -> None:
        for queue in self.queues:
            queue.stop()

    def _ring_broken(self, reason: str) -> None:
        self.stop()
        self.broken(reason)

    def counters(self) -> dict[str, int]:
        """Every counter of the queues and of the device, by name."""
        for queue in self.queues:
            queue.count()
        stats = ((queue.declaration.handler, queue.stats) for queue in self.queues)
        return flat(stats, self.device.counters)

    # The device's Runtime.

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """See :meth:`Device.watch`."""
        self._loop.add(fd, callback, select.EPOLLIN | select.EPOLLET)
        self._watched.add(fd)

    def unwatch(self, fd: int) -> None:
        """See :meth:`Device.unwatch`."""
        self._watched.discard(fd)
        self._loop.remove(fd)

    def soon(self, callback: Callable[[], None]) -> None:
        """See :meth:`Device.soon`."""
        self._loop.soon(callback)

    def complete(self, index: int, chain: Chain, written: int) -> None:
        """See :meth:`Device.complete`."""
        self.queues[index].complete(chain, written)

    def oldest(self, index: int) -> Chain | None:
        """See :meth:`Device.oldest`."""
        return self.queues[index].oldest()

    def kept(self, index: int) -> Iterator[Chain]:
        """See :meth:`Device.kept`."""
        return self.queues[index].kept()

    def position(self, index: int) -> int:
        """See :meth:`Device.position`."""
        return self.queues[index].position

    def advance(self, index: int, count: int) -> None:
        """See :meth:`Device.advance`."""
        self.queues[index].advance(count)

    def config_changed(self) -> None:
        """See :meth:`Device.config_changed`."""
        self.changed()
