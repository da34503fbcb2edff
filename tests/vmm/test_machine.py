"""A machine of its own: it ends once, for the first reason, and every vCPU leaves the guest."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.memory import create_memfd
from protocol.messages import MachineStats, QueueSetup
from protocol.specs import BootSpec, DeviceSlot, MachineSpec, OnReboot
from protocol.virtio import Feature, Mmio, Status, bit
from tests.support.bare import require_kvm
from vmm.hypervisor.kvm import Kvm
from vmm.machine import Machine
from vmm.memory_map import MIB, slot_address
from vmm.seat import Wires

pytestmark = pytest.mark.kvm

DEADLINE = 20.0
PRINT_AND_SPIN = bytes.fromhex("66baf803 b048 ee ebfe")  # mov $0x3f8,%dx; mov $'H',%al; out; jmp .
PANIC = bytes.fromhex("66ba0505 b001 ee ebfe")  # the same with pvpanic's port, and 1
COUNT_AND_RESET = bytes.fromhex(  # a count at 2 MiB, printed, then ACPI's reset register
    "ff042500002000 8b042500002000 0430 66baf803 ee 66ba0806 b001 ee ebfe"
)
TRIPLE_FAULT = bytes.fromhex("0f0b")  # ud2, without an IDT
DRIVER_OK = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK


class FakeSeat:
    """The seat of a device that has said hello, and starts when asked to."""

    name, device_id, features, queue_sizes, config = "rng0", 4, 0, (64,), b"\1\0\0\0"
    running: tuple[QueueSetup, ...] = ()
    remote = None
    slot = DeviceSlot("rng0", "rng", 4, 3, 10, (64,), (0,), 1, "")

    def __init__(self) -> None:
        self.on_config: Callable[[bytes], None] = lambda config: None
        self.on_broken: Callable[[str], None] = lambda reason: None
        self.wires: list[Wires] = []
        self.calls: list[str] = []

    def start(self, features: int, queues: tuple[QueueSetup, ...]) -> str | None:
        self.calls.append("start")
        return None

    def stop(self) -> None:
        self.calls.append("stop")

    def forget(self) -> None:
        """Nothing is kept here."""

    def connect(self, wires: Wires) -> None:
        self.wires.append(wires)


class Built:
    """A machine with one program, what it printed, and an event for its end."""

    def __init__(self, machine: Machine, printed: bytearray, ended: threading.Event) -> None:
        self.machine = machine
        self.printed = printed
        self.ended = ended


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Callable[..., Built]]:
    require_kvm()
    with ExitStack() as stack:

        def make(
            program: bytes, cpus: int = 1, stats: bool = False, on_reboot: OnReboot = "reset"
        ) -> Built:
            guest = tmp_path / "guest"
            guest.write_bytes(program)
            descriptors = {
                "memory": create_memfd("test", 16 * MIB),
                "kernel": os.open(guest, os.O_RDONLY | os.O_CLOEXEC),
            }
            for fd in descriptors.values():
                stack.callback(os.close, fd)
            boot = BootSpec(True, "", 0x100000, None)
            spec = MachineSpec("test", "kvm", 16 * MIB, cpus, boot, (), "", on_reboot, 0, stats, 2)
            printed, ended = bytearray(), threading.Event()
            kvm = stack.enter_context(Kvm())
            machine = Machine(spec, descriptors, kvm, printed.extend, lambda: None, ended.set)
            stack.callback(machine.close)
            stack.callback(machine.stop)
            return Built(machine, printed, ended)

        yield make


@pytest.mark.parametrize(("program", "reason"), [(PANIC, "panic"), (TRIPLE_FAULT, "died")])
def test_the_first_reason_to_end_is_the_one_that_counts(
    build: Callable[..., Built], program: bytes, reason: str
) -> None:
    built = build(program)
    built.machine.start()

    assert built.ended.wait(DEADLINE)
    built.machine.stop()

    assert built.machine.end is not None
    assert built.machine.end.reason == reason


@pytest.mark.parametrize("cpus", [1, 3])
def test_stop_takes_a_spinning_and_waiting_vcpus_out_of_the_guest(
    build: Callable[..., Built], cpus: int
) -> None:
    built = build(PRINT_AND_SPIN, cpus)
    built.machine.start()
    waiting = threading.Event()
    while not built.printed:
        waiting.wait(0.01)

    built.machine.stop()

    assert built.printed == b"H"
    assert not [t for t in threading.enumerate() if t.name.startswith("vcpu") and t.is_alive()]
    assert built.machine.end is not None
    assert built.machine.end.reason == "stopped"


def returns(machine: Machine) -> list[int]:
    return [vcpu.run_returns for vcpu in machine.life.vm.vcpus]


@pytest.mark.parametrize("cpus", [1, 3])
def test_paused_every_vcpu_is_out_of_the_guest_until_it_is_resumed(
    build: Callable[..., Built], cpus: int
) -> None:
    machine = build(PRINT_AND_SPIN, cpus).machine
    machine.start()
    for _ in range(20):
        assert machine.pause() == ""
        before = returns(machine)
        # A kick returns from whoever is in the guest, and does nothing to who is held.
        for vcpu in machine.life.vm.vcpus:
            vcpu.kick()
        assert machine.life._held == {f"vcpu{index}" for index in range(cpus)}
        assert returns(machine) == before
        machine.resume()

    assert machine.pause() == ""
    machine.stop()
    assert not [t for t in threading.enumerate() if t.name.startswith("vcpu") and t.is_alive()]


def test_machine_that_is_paused_before_it_starts_begins_when_it_is_resumed(
    build: Callable[..., Built],
) -> None:
    built = build(PANIC)
    assert built.machine.pause() == ""
    built.machine.start()
    assert built.machine.pause() == ""
    assert returns(built.machine) == [0]

    built.machine.resume()

    assert built.ended.wait(DEADLINE)


def test_vcpu_that_does_not_leave_the_guest_is_named_and_nobody_is_held(
    build: Callable[..., Built], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmm.life._VCPU_DEADLINE", 0.1)
    built = build(PANIC)
    entered, free = threading.Event(), threading.Event()
    life = built.machine.life
    life._on_end = lambda: (entered.set(), free.wait(DEADLINE))  # type: ignore[assignment, func-returns-value]
    built.machine.start()
    assert entered.wait(DEADLINE)
    end, life.end = life.end, None  # as if it were in the middle of an exit

    assert built.machine.pause() == "vcpu0"

    life.end = end
    free.set()


def test_exits_are_counted_when_asked_for(build: Callable[..., Built]) -> None:
    built = build(PANIC, stats=True)
    built.machine.start()
    assert built.ended.wait(DEADLINE)
    built.machine.stop()

    (row,) = stats(built.machine).exits

    assert (row.kind, row.address, row.device, row.count) == ("port write", 0x505, "pvpanic", 1)
    assert stats(built.machine).run_returns >= 1


@pytest.fixture
def plugged_in(build: Callable[..., Built]) -> tuple[Machine, FakeSeat]:
    """A machine whose guest has not begun, and its device, with the driver through DRIVER_OK."""
    machine, device = build(PRINT_AND_SPIN).machine, FakeSeat()
    machine.plug_in(device)
    bring_up(machine, device)
    assert seen(machine, device, Mmio.STATUS) == DRIVER_OK
    return machine, device


def seen(machine: Machine, device: FakeSeat, register: int) -> int:
    """A register of ``device``, in the memory that the guest has there."""
    read = machine.life.vm.read(slot_address(device.slot.slot) + register, 4)
    return int.from_bytes(read, "little")


def test_a_device_that_changes_its_configuration_changes_what_the_guest_reads(
    plugged_in: tuple[Machine, FakeSeat],
) -> None:
    machine, device = plugged_in
    before = seen(machine, device, Mmio.CONFIG)

    device.on_config(b"\2\0\0\0")

    assert (before, seen(machine, device, Mmio.CONFIG)) == (1, 2)
    assert seen(machine, device, Mmio.INTERRUPT_STATUS) == 3


def test_a_device_that_is_broken_needs_a_reset_in_what_the_guest_reads(
    plugged_in: tuple[Machine, FakeSeat],
) -> None:
    machine, device = plugged_in

    device.on_broken("its ring is nonsense")

    assert seen(machine, device, Mmio.STATUS) == DRIVER_OK | Status.DEVICE_NEEDS_RESET
    assert seen(machine, device, Mmio.INTERRUPT_STATUS) == 3


def bring_up(machine: Machine, device: FakeSeat) -> None:
    """A driver starts ``device``, which has no queues."""
    registers = slot_address(device.slot.slot)
    for register, value in (
        (Mmio.STATUS, Status.ACKNOWLEDGE | Status.DRIVER),
        (Mmio.DRIVER_FEATURES_SEL, 1),
        (Mmio.DRIVER_FEATURES, bit(Feature.VERSION_1) >> 32),
        (Mmio.STATUS, Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK),
        (Mmio.STATUS, DRIVER_OK),
    ):
        machine.life.bus.mmio_write(registers + register, 4, value)


def wait_for_reset(built: Built) -> None:
    while not built.machine.is_to_reboot:
        assert built.ended.wait(DEADLINE)
        built.ended.clear()


def reboot(built: Built) -> None:
    while built.machine.reboot() is None:
        assert built.ended.wait(DEADLINE)
        built.ended.clear()


def stats(machine: Machine) -> MachineStats:
    return machine.stats(machine.survey(lambda: None))


@pytest.mark.parametrize("cpus", [1, 3])
def test_a_machine_that_is_reset_boots_again(build: Callable[..., Built], cpus: int) -> None:
    built = build(COUNT_AND_RESET, cpus, stats=True)
    built.machine.start()
    wait_for_reset(built)
    first = built.machine.life
    returns = stats(built.machine).run_returns

    reboot(built)
    wait_for_reset(built)

    assert built.printed == b"12"
    assert (built.machine.end, built.machine.reboots) == (None, 1)
    assert built.machine.life is not first
    # What there was is not forgotten.
    assert stats(built.machine).run_returns == returns + built.machine.life.run_returns
    assert {row.address: row.count for row in stats(built.machine).exits} == {0x3F8: 2, 0x608: 2}
    built.machine.stop()
    assert not [t for t in threading.enumerate() if t.name.startswith("vcpu") and t.is_alive()]


def test_a_machine_that_is_paused_is_so_after_a_reset(build: Callable[..., Built]) -> None:
    built = build(COUNT_AND_RESET)
    built.machine.start()
    wait_for_reset(built)
    assert built.machine.pause() == ""

    reboot(built)

    assert built.machine.pause() == ""
    assert (returns(built.machine), built.printed) == ([0], b"1")
    built.machine.resume()
    wait_for_reset(built)
    assert built.printed == b"12"


def test_a_device_that_hangs_in_a_reboot_holds_up_neither_the_others_nor_who_asks(
    build: Callable[..., Built],
) -> None:
    built, hung, other = build(COUNT_AND_RESET), FakeSeat(), FakeSeat()
    other.slot = replace(hung.slot, name="rng1", slot=4, gsi=11)
    is_stopped, is_killed = threading.Event(), threading.Event()
    hung.stop = lambda: assert_(is_killed.wait(DEADLINE))  # type: ignore[method-assign]
    other.stop = is_stopped.set  # type: ignore[method-assign]
    for device in (hung, other):
        built.machine.plug_in(device)
        bring_up(built.machine, device)
    built.machine.start()
    wait_for_reset(built)

    assert built.machine.reboot() is None
    assert is_stopped.wait(DEADLINE)
    assert built.machine.reboot() is None
    is_killed.set()
    reboot(built)

    assert built.machine.reboots == 1


def assert_(condition: bool) -> None:
    assert condition


def test_a_machine_that_is_to_end_with_a_reset_ends(build: Callable[..., Built]) -> None:
    built = build(COUNT_AND_RESET, on_reboot="exit")
    built.machine.start()
    assert built.ended.wait(DEADLINE)
    built.machine.stop()

    assert built.machine.end is not None
    assert built.machine.end.reason == "reset"
    assert not built.machine.is_to_reboot


def test_a_reboot_stops_every_device_and_begins_with_fresh_registers(
    build: Callable[..., Built],
) -> None:
    built, device = build(COUNT_AND_RESET), FakeSeat()
    machine = built.machine
    machine.plug_in(device)
    fresh = (Mmio.STATUS, Mmio.INTERRUPT_STATUS, Mmio.CONFIG_GENERATION)
    first = [seen(machine, device, register) for register in fresh]
    bring_up(machine, device)
    device.config = b"\2\0\0\0"
    device.on_config(device.config)
    device.on_broken("its ring is nonsense")
    told_before = device.on_config
    machine.start()
    wait_for_reset(built)

    reboot(built)

    assert device.calls == ["start", "stop"]
    assert [seen(machine, device, register) for register in fresh] == first
    assert seen(machine, device, Mmio.CONFIG) == 2
    assert len(device.wires) == 2
    # What the device says goes to this life, and what was on its way to the other one nowhere.
    told_before(b"\3\0\0\0")
    device.on_config(b"\4\0\0\0")
    assert seen(machine, device, Mmio.CONFIG) == 4
    wait_for_reset(built)


def test_what_booting_needs_is_put_into_memory_again(build: Callable[..., Built]) -> None:
    built = build(COUNT_AND_RESET)
    memory = built.machine.memory
    built.machine.start()
    wait_for_reset(built)
    code, stack = memory.view(0x100000, len(COUNT_AND_RESET)), memory.view(0xFF00, 0x100)
    code[:], stack[:] = bytes(len(code)), b"\xaa" * len(stack)

    reboot(built)
    wait_for_reset(built)

    assert bytes(code) == COUNT_AND_RESET
    assert bytes(stack) == bytes(len(stack))
