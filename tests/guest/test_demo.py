"""The demo guest on KVM, with devices on threads: its driver, the transport and the ring engine."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from protocol.virtio import DeviceId
from tests.support.bare import require_kvm
from tests.support.guest import (
    DEMO,
    ECHO,
    STREAM,
    WATCH_CONFIG,
    GuestMachine,
    build,
    demo,
)
from tests.support.inprocess import ThreadDevice, console, disk, entropy, plugged_in
from vmm.platform.power import Reason

pytestmark = pytest.mark.kvm

SECTORS = 64
CAPACITY = struct.pack("<Q", SECTORS)
READ_ONLY, FLUSH = 1 << 5, 1 << 9


@pytest.fixture(autouse=True)
def _kernels() -> None:
    require_kvm()
    build()


class Lab:
    """Boots the demo guest as told; what is plugged in goes when the test ends."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self._image = directory / "demo.raw"
        self._stack = stack

    def machine(self, mode: int, *, sleep: bool, count: int = 0) -> GuestMachine:
        self._image.write_bytes(demo(mode, sleep=sleep, count=count))
        return self._stack.enter_context(GuestMachine(self._image))

    def plug(self, machine: GuestMachine, slot: int, device: ThreadDevice, config: bytes = b""):
        return self._stack.enter_context(plugged_in(machine, slot, device, config))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with ExitStack() as stack:
        yield Lab(tmp_path, stack)


@pytest.mark.parametrize("sleep", [False, True], ids=["looking", "interrupts"])
def test_every_device_is_tried_and_reported(lab: Lab, sleep: bool) -> None:
    machine = lab.machine(DEMO, sleep=sleep)
    image, said = bytearray(SECTORS * 512), bytearray()
    lab.plug(machine, 0, console(machine.memory, said))
    lab.plug(machine, 1, disk(machine.memory, image, features=FLUSH), CAPACITY)
    lab.plug(machine, 2, disk(machine.memory, image, features=READ_ONLY), CAPACITY)
    lab.plug(machine, 14, entropy(machine.memory))

    reason = machine.run()

    assert machine.printed.decode().splitlines() == [
        f"demo: a guest of Vibe-VMM, waiting for devices by {'interrupt' if sleep else 'looking'}",
        "demo: console0 took 48 bytes",
        f"demo: blk0 wrote {SECTORS} sectors, read them back, verified",
        f"demo: blk1 is read-only; read {SECTORS} sectors",
        "demo: rng0 gave 2 times 32 bytes, which differ",
        "demo: done",
    ]
    assert reason is Reason.POWER_OFF
    assert said == b"Hello from the demo guest, over virtio-console\r\n"
    words = struct.unpack(f"<{len(image) // 8}Q", image)
    assert len(set(words)) == len(words)


def test_a_disk_that_forgets_ends_in_a_panic(lab: Lab) -> None:
    class Forgetful(bytearray):
        def __setitem__(self, key, value) -> None:
            pass

    machine = lab.machine(DEMO, sleep=False)
    lab.plug(machine, 0, disk(machine.memory, Forgetful(SECTORS * 512)), CAPACITY)

    assert machine.run() is Reason.PANIC
    assert machine.printed.endswith(b"demo: FAILED: blk0: sector 0 differs at word 0\n")


def test_entropy_that_repeats_itself_ends_in_a_panic(lab: Lab) -> None:
    machine = lab.machine(DEMO, sleep=False)
    lab.plug(machine, 0, entropy(machine.memory, source=bytes))

    assert machine.run() is Reason.PANIC
    assert machine.printed.endswith(b"demo: FAILED: rng0 said the same twice\n")


@pytest.mark.parametrize("sleep", [False, True], ids=["looking", "interrupts"])
def test_a_thousand_requests_return_from_kvm_run_not_once(lab: Lab, sleep: bool) -> None:
    machine = lab.machine(STREAM, sleep=sleep, count=1000)
    lab.plug(machine, 0, disk(machine.memory, bytearray(512)), struct.pack("<Q", 1))

    assert machine.run() is Reason.POWER_OFF

    before, after = machine.port.run_returns
    # The one is the exit that says that the last request is done.
    assert (machine.port.numbers, after - before) == ([1000, 1000], 1)


def test_config_reads_under_a_stream_of_updates_are_never_torn(lab: Lab) -> None:
    # A guest on a fast host is through before there were updates: it then reads more.
    for count in (20_000, 400_000, 8_000_000):
        reason, (reads, torn, changes) = watch_config(lab, count)
        assert (reason, reads, torn) == (Reason.POWER_OFF, count, 0)
        if changes > 10:
            return
    pytest.fail("the configuration never changed while the guest read it")


def watch_config(lab: Lab, count: int) -> tuple[Reason, list[int]]:
    """Why the guest ended, and what it says of its ``count`` reads: how many there were, how
    many of them torn, how many changes it saw."""
    machine = lab.machine(WATCH_CONFIG, sleep=False, count=count)
    device = ThreadDevice(machine.memory, DeviceId.BLOCK, 1, lambda _queue, _chain: None)
    transport = lab.plug(machine, 0, device, bytes(8))
    done = threading.Event()

    def update() -> None:
        value = 0
        # Not without a pause: locks are not fair, and the vCPU's thread would hardly ever get it.
        while not done.wait(0.0005):
            value += 1
            transport.config_changed(struct.pack("<II", value, value))

    updater = threading.Thread(target=update)
    updater.start()
    try:
        return machine.run(), machine.port.numbers
    finally:
        done.set()
        updater.join()


@pytest.mark.parametrize("sleep", [False, True], ids=["looking", "interrupts"])
def test_the_console_echoes_until_q(lab: Lab, sleep: bool) -> None:
    machine = lab.machine(ECHO, sleep=sleep)
    said = bytearray()
    lab.plug(machine, 0, console(machine.memory, said, typed=[b"hello, ", b"x" * 64, b" q"]))

    assert machine.run() is Reason.POWER_OFF
    assert said == b"hello, " + b"x" * 64 + b" q"


def test_a_mode_that_does_not_exist_is_a_panic_that_says_so(lab: Lab) -> None:
    machine = lab.machine(9, sleep=False)

    assert machine.run() is Reason.PANIC
    assert machine.printed == b"demo: FAILED: mode 9 is unknown\n"
