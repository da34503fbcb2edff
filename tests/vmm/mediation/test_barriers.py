"""The software CPU drops its guest's barriers, and mediation makes up for that.

The guest drives a queue and makes both bargains of a notification (barriers.c), in which at least
one side has to notice the other. Run natively, its half loses none of 400,000; without MFENCE some
two hundred.
"""

from __future__ import annotations

import ctypes
import os
import platform
import select
import shutil
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from protocol import doorbell, fds
from protocol.memory import GuestMemory, Region, create_memfd
from protocol.messages import QueueSetup
from protocol.ring import Ring
from protocol.virtio import Feature, bit
from tests.support.bare import (
    BACKEND,
    CODE,
    DEVICE,
    RAM_SIZE,
    BareMachine,
    bare_machine,
)
from vmm.hypervisor.base import MediatedVm
from vmm.mediation import NativeHook
from vmm.mediation.device import MediatedDevice, OnVcpu
from vmm.seat import Seat

HERE = Path(__file__).parent
ENGINE = HERE.parents[2] / "protocol" / "ring"

# Addresses and bits of barriers.c.
QUEUE = QueueSetup(0, 4, 0x20000, 0x20100, 0x20200)
GUEST_CAME, HOST_CAME, NOBODY, GUEST_FOUND = 0x20400, 0x20480, 0x20600, 0x90000
KICK, INTERRUPT = 1, 2

BUFFER = Region(0x30000, 4096, 0x10000)  # where the one chain of the guest leads
SHADOW = Region(0x8000_0000, 0x10000, 0)

# Of 200,000 rounds ten to two thousand lose something here, as the two sides happen to meet. So
# the first race does mostly, and all of them always.
ROUNDS, RACES = 10_000, 50
# Each is the way to another thread and back. Fewer than 2^16: used.idx says which it is.
MEDIATED_ROUNDS = 10_000
# The most turns of a loop by which the guest shifts its part, as powers of two: for the race, and
# about as long as the way of a mediated completion.
SHORT, LONG = 5, 13

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None or platform.machine() != "x86_64",
    reason="needs a C compiler for x86-64",
)
needs_two_cpus = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="on one CPU nothing happens at the same time"
)


@pytest.fixture(autouse=True)
def _software() -> Iterator[None]:
    before = BACKEND.set("software")
    yield
    BACKEND.reset(before)


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The code of the guest, to be entered at its first byte, at CODE."""
    program = tmp_path_factory.mktemp("guest") / "guest.bin"
    options = "-DGUEST -O2 -ffreestanding -nostdlib -static -no-pie -fno-pic -mno-red-zone "
    options += "-mgeneral-regs-only -fcf-protection=none -fno-asynchronous-unwind-tables "
    options += f"-Wl,--build-id=none,--oformat=binary,-Ttext={CODE:#x},-e,drive"
    subprocess.run(
        ["cc", *options.split(), HERE / "barriers.c", "-o", program], check=True, timeout=60
    )
    return program.read_bytes()


@contextmanager
def machine_with(guest: bytes, rounds: int, doorbell_at: int, bits: int) -> Iterator[BareMachine]:
    """The software CPU about to enter drive() of barriers.c."""
    with bare_machine(guest.hex()) as machine:
        machine.load(QUEUE.desc, struct.pack("<QIHH", BUFFER.gpa, 16, 2, 0))
        machine.start_at(CODE, rdi=rounds, rsi=doorbell_at, rdx=bits)
        yield machine


@pytest.mark.slow
@needs_two_cpus
def test_who_works_on_the_ring_while_the_guest_runs_loses_notifications(
    guest: bytes, tmp_path: Path
) -> None:
    """What mediation is for. A device on the guest's own ring would, and so would a mediator on
    another thread than the vCPU's: both are the ring engine at work while the guest runs."""
    library = tmp_path / "device.so"
    sources = [HERE / "barriers.c", ENGINE / "ring.c", ENGINE / "journal.c"]
    options = ["-O2", "-shared", "-fPIC"]
    subprocess.run(["cc", *options, *sources, "-o", library], check=True, timeout=60)
    race = ctypes.CDLL(str(library)).race

    for _ in range(RACES):
        guest_found, device_found = race_with(guest, race)
        if neither(guest_found, device_found, KICK | INTERRUPT):
            return
    pytest.skip(f"in {RACES} races of {ROUNDS} rounds no load overtook a store: not on this host")


def race_with(guest: bytes, race: Callable[..., None]) -> tuple[bytes, bytes]:
    """What the guest found in each round, and what race() of barriers.c, on a thread."""
    device_found = (ctypes.c_uint8 * ROUNDS)()
    with machine_with(guest, ROUNDS, NOBODY, SHORT) as machine:
        ram = ctypes.addressof(ctypes.c_char.from_buffer(machine.ram))
        arguments = (ctypes.c_void_p(ram), ctypes.c_uint64(RAM_SIZE), ROUNDS, device_found)
        device = threading.Thread(target=race, args=arguments)
        device.start()
        try:
            machine.run()
        finally:
            # Nobody waits for a guest that has failed.
            machine.load(GUEST_CAME, struct.pack("<i", 2**31 - 1))
            device.join()
        return machine.memory.read(GUEST_FOUND, ROUNDS), bytes(device_found)


def neither(guest_found: bytes, device_found: bytes, bargains: int) -> int:
    """How often one of these bargains came out as neither: that many notifications were lost."""
    both = zip(guest_found, device_found, strict=True)
    return sum((~(ours | theirs) & bargains).bit_count() for ours, theirs in both)


@dataclass
class Process:
    """A device process, as far as a MediatedDevice knows it (Seat): it answers at once."""

    memory: GuestMemory
    kick: int
    call: int
    name: str = "litmus"
    device_id: int = 0
    features: int = 0
    queue_sizes: tuple[int, ...] = (QUEUE.size,)

    def start(self, features: int, queues: tuple[QueueSetup, ...]) -> None:
        (queue,) = queues
        self._ring = Ring(
            *(self.memory, queue.size, queue.desc, queue.avail, queue.used),
            event_idx=False,
            indirect=False,
        )
        self._is_over = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while select.select([self.kick], [], []) and not self._is_over:
            doorbell.drain(self.kick)
            for chain in self._ring.pop():
                self._ring.push([(chain.head, 0)])
                doorbell.ring(self.call)

    def stop(self) -> None:
        self._is_over = True
        doorbell.ring(self.kick)
        self._thread.join()
        self._ring.close()


@contextmanager
def process() -> Iterator[tuple[Process, GuestMemory]]:
    """A device process, and its shadow memory as the VMM maps it."""
    fd, kick, call = create_memfd("shadow", 0x11000), doorbell.create(), doorbell.create()
    try:
        with GuestMemory(fd, [SHADOW, BUFFER]) as memory, GuestMemory(fd, [SHADOW]) as shadow:
            yield Process(memory, kick, call), shadow
    finally:
        fds.close_all([fd, kick, call])


@pytest.mark.slow
def test_mediated_queue_loses_none_of_them(guest: bytes) -> None:
    """The way of a real device: doorbell, mediator, eventfd, the waker, the mediator between two
    blocks. A lost kick, or a completion that is not published, is a guest that never ends."""
    published_on = set()
    found = bytearray(MEDIATED_ROUNDS)
    with (
        process() as (remote, shadow),
        machine_with(guest, MEDIATED_ROUNDS, DEVICE, LONG) as machine,
    ):

        def interrupt() -> None:
            published_on.add(threading.get_ident())
            (used_idx,) = struct.unpack_from("<H", machine.ram, QUEUE.used + 2)
            found[used_idx - 1] |= INTERRUPT

        vm = cast(MediatedVm, machine.vm)
        device = MediatedDevice(
            cast(Seat, remote),
            machine.memory,
            shadow,
            NativeHook(*vm.written_hook()),
        )
        device.runner = runner = OnVcpu(interrupt, device.broken)
        runner.connect({"kick0": remote.kick, "call": remote.call})
        vm.on_write(DEVICE, 4, 0, partial(runner.kick, 0))
        vm.watch(remote.call, runner.complete)
        # The guest waits for nobody: the other side has come to every meeting.
        machine.load(HOST_CAME, struct.pack("<i", 2**31 - 1))
        device.start(bit(Feature.VERSION_1) | bit(Feature.EVENT_IDX), (QUEUE,))
        try:
            machine.run()
        finally:
            device.stop()
            device.close()
        guest_found = machine.memory.read(GUEST_FOUND, MEDIATED_ROUNDS)

    assert neither(guest_found, bytes(found), INTERRUPT) == 0
    # The two did race, and the guest was not running when the device's half was done.
    assert 0 < sum(they & INTERRUPT > 0 for they in found) < MEDIATED_ROUNDS
    assert 0 < sum(they & INTERRUPT > 0 for they in guest_found) < MEDIATED_ROUNDS
    assert published_on == {threading.get_ident()}
