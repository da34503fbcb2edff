"""A queue in this process, with a loop that the test turns: who gets a turn when."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from devices.runtime import queue as queue_module
from devices.runtime.device import QueueDeclaration
from devices.runtime.loop import Loop
from devices.runtime.queue import Queue
from protocol import doorbell, fds
from protocol.messages import QueueSetup
from protocol.ring import Chain
from protocol.virtio import Feature, bit
from tests.support.driver import Driver
from tests.support.ring_pair import guest_memory

Serve = Callable[..., tuple[Driver, Loop, Queue]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serve a queue of 64 with a handler; the driver's half, and the loop."""
    doorbells = (doorbell.create(), doorbell.create())
    queues, loops = [], []
    with guest_memory() as memory:

        def make(
            handler: Callable[[Chain], int | None],
            published: Callable[[int], None] = lambda position: None,
            position: int = 0,
        ) -> tuple[Driver, Loop, Queue]:
            loop = Loop()
            driver = Driver(memory, 64)
            declaration = QueueDeclaration(0, 64, "q")
            queue = Queue(declaration, doorbells, handler, loop, pytest.fail, published)
            setup = QueueSetup(0, 64, driver.desc, driver.avail, driver.used)
            queue.attach(memory, setup, bit(Feature.VERSION_1), position=position)
            queue.start()
            queues.append(queue)
            loops.append(loop)
            return driver, loop, queue

        yield make
        for queue in queues:
            queue.stop()
        for loop in loops:
            loop.close()
    fds.close_all(doorbells)


def test_slow_chains_share_the_loop_one_by_one(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A clock that moves a second whenever it is looked at: every chain is slow.
    clock = itertools.count()
    monkeypatch.setattr(queue_module, "monotonic", lambda: next(clock))
    monkeypatch.setattr(queue_module, "TURN_SECONDS", 2)
    driver, loop, _ = serve(lambda chain: 0)
    seen = []

    def other() -> None:
        seen.append(driver.used_idx)
        if driver.used_idx == 8:
            loop.stop()
        loop.soon(other)

    for _ in range(8):
        driver.add([b"x"])
    driver.publish()
    loop.soon(other)
    loop.run()

    assert seen == [1, 2, 3, 4, 5, 6, 7, 8]


def test_what_is_offered_while_kicks_are_off_is_found_without_one(serve: Serve) -> None:
    # The handler offers more, as a driver on another CPU would, and nobody kicks.
    def handler(chain: Chain) -> int:
        if len(handled) < 5:
            driver.add([b"more"])
            assert not driver.publish()
        handled.append(chain.head)
        if len(handled) == 6:
            loop.stop()
        return 0

    handled: list[int] = []
    driver, loop, _ = serve(handler)
    driver.add([b"first"])
    driver.publish()

    loop.run()

    assert len(handled) == 6
    assert driver.used_idx == 6


def test_a_position_is_published_with_its_chains_and_told_then(serve: Serve) -> None:
    # At the start, for a predecessor may have published and died; then when it has moved.
    def handler(chain: Chain) -> int:
        if chain.readable.left > 1:
            queue.advance(chain.readable.left)
        return 0

    def tell(position: int) -> None:
        told.append(position)
        if len(told) == 2:
            assert driver.used_idx == 3
            loop.stop()

    told: list[int] = []
    driver, loop, queue = serve(handler, tell, 100)
    assert told == [100]
    for size in (3, 5, 1):
        driver.add([bytes(size)])
    driver.publish()

    loop.run()

    assert told == [100, 108]
    assert queue.position == 108
