"""Devices killed at each step of the commit order, by name, while a guest looks: nothing is lost.

What types at the echoing guest knows every byte that has to come back, and no run of it is lucky:
the guest waits for the next one. The other guest writes sectors that differ in every word, reads
them back and compares them, and then wants entropy; it is held while its faults are armed.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from launcher.api import VM
from protocol import control as wire
from protocol.ring.faults import POINTS as ENGINE_POINTS
from tests.support.bare import BACKENDS, require_backend
from tests.support.guest import ECHO, demo
from tests.support.leaks import none_left

pytestmark = pytest.mark.slow

DEADLINE = 60.0
SECTORS = 1500

# Where a driver's first process begins, and a successor of one that died before it had settled.
BEGIN = ["attach", *(point for point in ENGINE_POINTS if point.startswith("begin_"))]
RECOVER = [point for point in ENGINE_POINTS if point.startswith("recover_")]
# The guest's driver has EVENT_IDX, with which kicks are not disabled by a store.
WORK = ["handle", "complete", "interrupt", "answer_start", "attach"] + [
    point for point in ENGINE_POINTS if point not in (*BEGIN, *RECOVER, "kicks_disable")
]

Start = Callable[..., VM]


@pytest.fixture(scope="module", params=BACKENDS)
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Starts the demo guest in a mode, with options of VM; each is gone at the end."""
    require_backend(request.param)
    with (
        tempfile.TemporaryDirectory(prefix="vibe-") as name,
        pytest.MonkeyPatch.context() as patch,
        none_left(),
        ExitStack() as machines,
    ):
        patch.setenv("XDG_RUNTIME_DIR", name)

        def started(image: bytes, **options: Any) -> VM:
            guest = Path(name, "guest.raw")
            guest.write_bytes(image)
            machine = VM(
                binary=guest,
                entry="0x100000",
                mem="64M",
                hypervisor=request.param,
                allow_inject=True,
                **options,
            )
            machines.enter_context(machine)
            machine.wait_ready()
            return machine

        yield started


# ── every step, by a console ──────────────────────────────────────────────────────────────


class Echo:
    """The echoing guest, behind console0."""

    def __init__(self, machine: VM) -> None:
        self.machine = machine
        self._stream = machine.attach("console0")
        self._stream.settimeout(DEADLINE)

    def type(self, keys: bytes) -> None:
        """Type ``keys``, which have to come back, and nothing else."""
        self._stream.sendall(keys)
        got = b""
        while len(got) < len(keys):
            data = self._stream.recv(4096)
            assert data, f"the stream ended after {got!r}"
            got += data
        assert got == keys

    def settle(self) -> None:
        """Type until who serves has served for a while: one that dies young has a successor that
        comes later (launcher.policy), for which no test has to wait."""
        until = time.monotonic() + 0.15
        while time.monotonic() < until:
            self.type(b"settling")

    def close(self) -> None:
        self._stream.close()


@pytest.fixture(scope="module")
def echo(start: Start) -> Iterator[Echo]:
    made = Echo(start(demo(ECHO, sleep=True), console="terminal", serial="none"))
    made.type(b"at first")
    yield made
    made.type(b"q")
    assert made.machine.wait(DEADLINE) == 0
    made.close()


@pytest.mark.parametrize("point", [*WORK, *RECOVER])
def test_killed_at_any_step_a_console_loses_nothing(echo: Echo, point: str) -> None:
    echo.machine.inject("console0", "none")
    echo.settle()
    # What happens only when a successor begins needs a death before it, and one that leaves it
    # something to do.
    if point in (*RECOVER, "attach", "answer_start"):
        echo.machine.inject("console0", "kill", at="push_used_idx")
    echo.machine.inject("console0", "kill", at=point)

    for number in range(3):
        echo.type(b"%s %d, " % (point.encode(), number))

    struck = echo.machine.inject("console0")
    assert {fault.strikes for fault in struck} == {1}, struck


def test_killed_again_and_again_a_console_loses_nothing(echo: Echo) -> None:
    echo.machine.inject("console0", "none")
    echo.machine.inject("console0", "kill", at="push_used_idx", after=1, every=100)

    while echo.machine.inject("console0")[0].strikes < 4:
        echo.type(b"again and again")
    echo.machine.inject("console0", "none")
    echo.type(b"at last")


# ── disks and entropy ─────────────────────────────────────────────────────────────────────


@pytest.fixture
def held(start: Start, tmp_path: Path) -> VM:
    """The demo guest, held somewhere at the beginning of its disk, with an rng to come."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(SECTORS * 512))
    image = demo(sleep=True, count=SECTORS)
    machine = start(image, disk=disk, devices=["rng"], timeout=DEADLINE)
    machine.pause()
    return machine


def deaths(machine: VM) -> list[str]:
    """Let it run to its end; the devices that died, and recovered, one by one."""
    events = [event for event in machine.events() if isinstance(event, wire.Event)]
    assert [e.device for e in events if e.kind == "died"] == [
        e.device for e in events if e.kind == "recovered"
    ]
    return [event.device for event in events if event.kind == "died"]


def test_killed_at_every_step_a_disk_loses_nothing(held: VM) -> None:
    # Backwards, for the last, which asks for kicks, may be passed once for two requests.
    points = [point for point in WORK[::-1] if point not in ("attach", "answer_start")]
    # Slow, so that nobody dies young: see Echo.settle.
    held.inject("blk0", "delay", every=1, delay=0.001)
    for number, point in enumerate(points):
        held.inject("blk0", "kill", at=point, after=110 * (number + 1))
    held.resume()

    assert deaths(held) == ["blk0"] * len(points)
    assert held.wait(DEADLINE) == 0


def test_killed_while_its_driver_begins_a_device_serves(held: VM) -> None:
    for point in BEGIN:
        held.inject("rng0", "kill", at=point)
    held.resume()

    happened = [e.kind for e in held.events() if isinstance(e, wire.Event) and e.device == "rng0"]
    # Some die before they serve, as successors do that take over the queue.
    assert happened.count("died") + happened.count("failed") == len(BEGIN)
    assert happened[-1] == "recovered"
    assert held.wait(DEADLINE) == 0


# ── the guest's own check ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fault", ["corrupt-payload", "io-error"])
def test_lie_is_seen_by_the_guest(held: VM, fault: str) -> None:
    # Negative control: if it saw nothing here, what it says above would mean nothing.
    held.inject("blk0", fault, after=5)
    held.resume()

    assert held.wait(DEADLINE) == 1


def test_completion_that_comes_twice_is_seen_by_the_guest(start: Start, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(SECTORS * 512))
    machine = start(demo(count=SECTORS), disk=disk, timeout=5)
    machine.inject("blk0", "duplicate-used")

    # It panics, or waits for what was never so far ahead.
    assert machine.wait(DEADLINE) in (1, 4)


def test_interrupt_that_is_not_sent_is_made_up_for_by_a_successor(held: VM) -> None:
    held.inject("blk0", "drop-call", every=1)
    held.resume()
    # It may see the end of some requests before it falls asleep; of one it does not.
    looks = [0]
    while not looks[-1] or looks.count(looks[-1]) < 100:
        looks.append(held.inject("blk0")[0].passes)

    assert looks[-1] < SECTORS
    held.inject("blk0", "none")
    held.restart("blk0")
    assert held.wait(DEADLINE) == 0
