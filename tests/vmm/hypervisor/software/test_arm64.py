"""The arm64 vCPU in software, by guests that run on it."""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from protocol.errors import GuestDied
from protocol.memory import GuestMemory, create_memfd
from protocol.specs import BootSpec
from vmm import arm64_map, memory_map
from vmm.boot import Hardware
from vmm.boot.arm64 import load, plan
from vmm.bus import Bus
from vmm.hypervisor.base import Stop
from vmm.memory_map import MIB
from vmm.platform.mmio_console import MmioConsole

pytest.importorskip("unicorn", reason="the Unicorn engine is not installed")

from vmm.hypervisor.software.arm64 import Arm64Vcpu, Arm64Vm

KERNELS = Path(__file__).parents[3] / "kernels"
ENTRY = 0x1_0000

WFI, BRANCH_TO_ITSELF, HVC = 0xD503_207F, 0x1400_0000, 0xD400_0002
STORE_X0 = 0xF900_0020  # str x0, [x1]
# movz x0, #0x8400, lsl #16; movk x0, #number
PSCI = 0xD2B0_8000


def code(*words: int) -> bytes:
    return struct.pack(f"<{len(words)}I", *words)


def psci(number: int) -> bytes:
    """A call of PSCI's function ``number``, and nothing behind it."""
    return code(PSCI, 0xF280_0000 | number << 5, HVC, BRANCH_TO_ITSELF)


def guest(name: str) -> bytes:
    path = KERNELS / f"{name}.raw"
    if not path.exists():
        pytest.skip(f"{path.name} is not built: that needs clang, lld and llvm")
    return path.read_bytes()


class Arm64Machine:
    """An arm64 machine in this process, with a raw binary and a console."""

    def __init__(self, binary: int, memory: GuestMemory) -> None:
        first = plan(BootSpec(True, "", ENTRY, None), binary, None, Hardware(16 * MIB))
        load(first, memory)
        self.vm = Arm64Vm(irqchip=True)
        for slot, region in enumerate(memory.regions):
            ram = memory.whole[region.offset : region.offset + region.size]
            self.vm.map_ram(slot, region.gpa, ram)
        self.printed = bytearray()
        self.console = MmioConsole(
            self._print, set_irq=lambda level: self.vm.set_irq(arm64_map.CONSOLE_GSI, level)
        )
        self.bus = Bus()
        self.bus.add_mmio(memory_map.MMIO_CONSOLE, memory_map.MMIO_CONSOLE_SIZE, self.console)
        vcpu = self.vm.create_vcpu(0)
        assert isinstance(vcpu, Arm64Vcpu)
        self.vcpu = vcpu
        vcpu.start_at(first.cpu)
        self._kick_at = b""
        self._threads: list[threading.Thread] = []

    def _print(self, data: bytes) -> None:
        self.printed += data
        if data == b"?":
            # As if somebody typed: from another thread.
            self._threads.append(threading.Thread(target=self.console.receive, args=(b"k",)))
            self._threads[-1].start()
        if data == self._kick_at:
            self.vcpu.kick()

    def kick_at(self, data: bytes) -> None:
        """Kick the vCPU when it prints this byte."""
        self._kick_at = data

    def write_x1(self, value: int) -> None:
        self.vcpu.write_general(1, value)

    def run(self) -> Stop:
        return self.vcpu.run(self.bus)

    def close(self) -> None:
        for thread in self._threads:
            thread.join()
        self.vm.close()


@pytest.fixture
def machine_of(tmp_path: Path) -> Iterator[Callable[[bytes], Arm64Machine]]:
    """A function that gives a machine which runs the bytes given."""
    with contextlib.ExitStack() as stack:

        def make(binary: bytes) -> Arm64Machine:
            path = tmp_path / "binary"
            path.write_bytes(binary)
            fd = create_memfd("guest", 16 * MIB)
            stack.callback(os.close, fd)
            memory = stack.enter_context(GuestMemory(fd, memory_map.regions(16 * MIB)))
            with path.open("rb") as file:
                made = Arm64Machine(file.fileno(), memory)
            stack.callback(made.close)
            return made

        yield make


MachineOf = Callable[[bytes], Arm64Machine]


def test_hello_is_printed(machine_of: MachineOf) -> None:
    machine = machine_of(guest("arm64_hello"))

    assert machine.run() is Stop.POWERED_OFF
    assert machine.printed == b"Hello World\n"


def test_a_kernel_finds_all_that_it_needs(machine_of: MachineOf) -> None:
    machine = machine_of(guest("arm64_machine"))

    assert machine.run() is Stop.POWERED_OFF
    assert machine.printed == b"1SUUUVsGTT?k\n"


@pytest.mark.parametrize(("number", "stop"), [(8, Stop.POWERED_OFF), (9, Stop.RESET)])
def test_the_guest_ends_by_a_call(machine_of: MachineOf, number: int, stop: Stop) -> None:
    machine = machine_of(psci(number))

    assert machine.run() is stop


def test_a_call_that_is_unknown_is_answered(machine_of: MachineOf) -> None:
    machine = machine_of(code(HVC, STORE_X0, BRANCH_TO_ITSELF))
    machine.write_x1(memory_map.MMIO_CONSOLE)
    machine.kick_at(b"\xff")

    assert machine.run() is Stop.KICKED
    assert machine.printed == b"\xff"


@pytest.mark.parametrize(
    "binary",
    [code(BRANCH_TO_ITSELF), code(WFI, BRANCH_TO_ITSELF), psci(1)],
    ids=["loop", "wfi", "suspend"],
)
def test_a_kick_stops_it_whatever_it_does(machine_of: MachineOf, binary: bytes) -> None:
    machine = machine_of(binary)
    kicker = threading.Timer(0.05, machine.vcpu.kick)
    kicker.start()

    assert machine.run() is Stop.KICKED

    kicker.join()
    machine.vcpu.kick()
    assert machine.run() is Stop.KICKED


def test_an_access_beyond_all_addresses_is_the_end_and_says_where(machine_of: MachineOf) -> None:
    machine = machine_of(code(STORE_X0, BRANCH_TO_ITSELF))
    machine.write_x1(1 << 41)

    with pytest.raises(
        GuestDied, match=r"(?s)CPU 0: it accesses memory at 0x20000000000, .*pc .*010000"
    ) as died:
        machine.run()

    assert "code at pc: 200000f9 00000014" in str(died.value)
