"""The arm64 vCPU in software, by guests that run on it."""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from protocol.errors import GuestDied
from protocol.memory import GuestMemory, create_memfd
from protocol.specs import BootSpec
from vmm import arm64_map, memory_map
from vmm.boot import Hardware
from vmm.boot.arm64 import load, plan
from vmm.bus import Bus
from vmm.hypervisor.arm64_state import Arm64State
from vmm.hypervisor.base import Stop
from vmm.interrupts.arm_timer import SystemRegister
from vmm.memory_map import MIB
from vmm.platform.mmio_console import MmioConsole

pytest.importorskip("unicorn", reason="the Unicorn engine is not installed")

from vmm.hypervisor.software._engine import ffi, lib

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
        self.memory = memory
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

    def write_system(self, register: SystemRegister, value: int) -> None:
        """As the guest's kernel would."""
        self.vm._engine.write_system(register, value)  # type: ignore[attr-defined]

    def translate(self, va: int) -> int | None:
        """Where the guest's tables have ``va``."""
        gpa = ffi.new("uint64_t *")
        found = lib.engine_translate(self.vm._engine.state, va, gpa)
        return int(gpa[0]) if found else None

    def written(self, gpa: int, length: int) -> None:
        """Say that somebody else has written there."""
        function, context = self.vm.written_hook()
        assert function == int(ffi.cast("uintptr_t", ffi.addressof(lib, "engine_written")))
        lib.engine_written(ffi.cast("void *", context), gpa, length)

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


def test_instruction_that_the_engine_lacks_is_named_once_with_its_address(
    machine_of: MachineOf, caplog: pytest.LogCaptureFixture
) -> None:
    # ldadd x0, x2, [x1]; its handler, at 0x200, is UDF for ever.
    machine = machine_of(code(0xF820_0022))
    stopper = threading.Timer(0.2, machine.vcpu.kick)
    stopper.start()

    assert machine.run() is Stop.KICKED

    stopper.join()
    assert [record.getMessage()[:73] for record in caplog.records] == [
        "the guest met an atomic instruction of Armv8.1 (LSE) at 0x10000 that the "
    ]


def test_an_access_beyond_all_addresses_is_the_end_and_says_where(machine_of: MachineOf) -> None:
    machine = machine_of(code(STORE_X0, BRANCH_TO_ITSELF))
    machine.write_x1(1 << 41)

    with pytest.raises(
        GuestDied, match=r"(?s)CPU 0: it accesses memory at 0x20000000000, .*pc .*010000"
    ) as died:
        machine.run()

    assert "code at pc: 200000f9 00000014" in str(died.value)


# ── with the MMU on ───────────────────────────────────────────────────────────────────────

BRANCH_TO_X2 = 0xD61F_0040
TTBR0, TTBR1 = SystemRegister(3, 0, 2, 0, 0), SystemRegister(3, 0, 2, 0, 1)
TCR, MAIR = SystemRegister(3, 0, 2, 0, 2), SystemRegister(3, 0, 10, 2, 0)
SCTLR, VBAR = SystemRegister(3, 0, 1, 0, 0), SystemRegister(3, 0, 12, 0, 0)

# Descriptors: valid, and a table or page (else a block); accessed before.
BLOCK, TABLE, PAGE, ACCESSED = 0b01, 0b11, 0b11, 1 << 10
TABLES, CODE = 0x40_0000, 0x20_0000
UPPER = 0xFFFF_FF80_0000_0000


@dataclass(frozen=True)
class Paging:
    """``root`` is a map of index and descriptor of the first table, and so on for the tables
    behind it, which lie 64 KiB apart; ``va`` is where the page CODE then is."""

    tcr: int
    va: int
    tables: tuple[dict[int, int], ...]


def table(number: int) -> int:
    return TABLES + number * 0x1_0000


# 39 bits of addresses in pages of 4 KiB: three levels, of 30, 21 and 12 bits. Memory and the
# console are where they are.
PAGES_4K = (
    {0: BLOCK | ACCESSED, 2: 0x8000_0000 | BLOCK | ACCESSED, 1: table(1) | TABLE},
    {3: table(2) | TABLE},
    {5: CODE | PAGE | ACCESSED},
)
# 42 bits in pages of 64 KiB: two levels, of 29 and 16 bits.
PAGES_64K = (
    {0: BLOCK | ACCESSED, 4: 0x8000_0000 | BLOCK | ACCESSED, 1: table(1) | TABLE},
    {7: CODE | PAGE | ACCESSED},
)
PAGINGS = {
    "4K": Paging(25, 0x4000_0000 | 3 << 21 | 5 << 12, PAGES_4K),
    "64K": Paging(22 | 1 << 14, 1 << 29 | 7 << 16, PAGES_64K),
}
# The upper half, in pages of 4 KiB; the lower one stays for the console.
TCR_UPPER = 25 | 25 << 16 | 2 << 30


def turn_on(machine: Arm64Machine, paging: Paging) -> None:
    for number, entries in enumerate(paging.tables):
        for index, entry in entries.items():
            machine.memory.write(table(number) + 8 * index, struct.pack("<Q", entry))
    machine.write_system(MAIR, 0xFF)
    machine.write_system(TCR, paging.tcr)
    machine.write_system(TTBR0, table(0))
    machine.write_system(TTBR1, table(0))
    machine.write_system(SCTLR, 0x30C5_0838 | 1)  # the bits that are always one, and M


def load_code(machine: Arm64Machine, value: int) -> None:
    """At CODE: movz x0, #value; str w0, [x1]; b ."""
    words = code(0xD280_0000 | value << 5, 0xB900_0020, BRANCH_TO_ITSELF)
    machine.memory.write(CODE, words)


def run_code(machine: Arm64Machine, at: int, value: int, *, directly: bool = False) -> None:
    """Run what is at ``at`` until it prints ``value``, which it should; from a jump elsewhere, or
    ``directly``, as the first of a run."""
    del machine.printed[:]
    machine.kick_at(bytes([value]))
    machine.memory.write(ENTRY, code(BRANCH_TO_X2))
    machine.vcpu.start_at(Arm64State(pc=at if directly else ENTRY))
    machine.write_x1(memory_map.MMIO_CONSOLE)
    machine.vcpu.write_general(2, at)
    patience = threading.Timer(5, machine.vcpu.kick)
    patience.start()
    machine.run()
    patience.cancel()
    patience.join()


@pytest.mark.parametrize("directly", [True, False], ids=["first", "jump"])
@pytest.mark.parametrize("name", [*PAGINGS, "upper"])
def test_code_that_somebody_else_has_written_runs_as_it_is_now(
    machine_of: MachineOf, name: str, directly: bool
) -> None:
    paging = PAGINGS.get(name) or replace(PAGINGS["4K"], tcr=TCR_UPPER)
    at = paging.va | (UPPER if name == "upper" else 0)
    machine = machine_of(code(BRANCH_TO_ITSELF))
    turn_on(machine, paging)
    for value in (1, 2, 3):
        load_code(machine, value)
        machine.written(CODE, 12)
        run_code(machine, at, value, directly=directly)

        assert machine.printed == bytes([value])


def test_translations_stay_where_nothing_was_said(machine_of: MachineOf) -> None:
    machine = machine_of(code(BRANCH_TO_ITSELF))
    paging = PAGINGS["4K"]
    turn_on(machine, paging)
    load_code(machine, 1)
    run_code(machine, paging.va, 1)
    load_code(machine, 2)
    machine.written(CODE + 0x1000, 0x1000)
    run_code(machine, paging.va, 1)

    assert machine.printed == b"\1"  # stale, as nobody has a right to expect


@pytest.mark.parametrize("name", PAGINGS)
def test_the_guests_tables_are_walked(machine_of: MachineOf, name: str) -> None:
    machine, paging = machine_of(code(BRANCH_TO_ITSELF)), PAGINGS[name]
    before = machine.translate(0x1234)
    turn_on(machine, paging)

    assert before == machine.translate(0x1234) == 0x1234
    assert machine.translate(paging.va + 0x678) == CODE + 0x678
    assert machine.translate(0x9000_0004) == 0x9000_0004
    assert machine.translate(paging.va + 0x1_0000) is None
    assert machine.translate(0x30 << 30) is None


def test_a_kick_stops_a_guest_whose_handlers_are_in_no_memory(machine_of: MachineOf) -> None:
    machine, paging = machine_of(code(BRANCH_TO_ITSELF)), PAGINGS["4K"]
    turn_on(machine, paging)
    machine.write_system(VBAR, paging.va + 0x1_0000)
    machine.memory.write(CODE, code(0))  # udf
    machine.vcpu.start_at(Arm64State(pc=paging.va))
    stopper = threading.Timer(0.2, machine.vcpu.kick)
    stopper.start()

    assert machine.run() is Stop.KICKED

    stopper.join()


def test_a_guest_that_dies_in_mapped_memory_shows_its_code(machine_of: MachineOf) -> None:
    machine, paging = machine_of(code(BRANCH_TO_ITSELF)), PAGINGS["4K"]
    beyond = dict(paging.tables[0]) | {4: 1 << 41 | BLOCK | ACCESSED}
    turn_on(machine, replace(paging, tables=(beyond, *paging.tables[1:])))
    machine.memory.write(CODE, code(STORE_X0, BRANCH_TO_ITSELF))
    machine.vcpu.start_at(Arm64State(pc=paging.va))
    machine.write_x1(4 << 30)

    with pytest.raises(GuestDied, match="code at pc: 200000f9 00000014"):
        machine.run()
