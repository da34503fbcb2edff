"""What the engine lacks of a processor, and engine.c adds: stops, exceptions, interrupts, CPUID."""

from __future__ import annotations

import contextlib
import itertools
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
from vmm.hypervisor.software._engine import ffi, lib

from protocol import doorbell
from protocol.errors import GuestDied, HostError
from tests.support.bare import (
    BACKEND,
    CODE,
    DEVICE,
    GDT,
    HANDLER,
    IDT,
    PAGE_TABLES,
    STACK,
    BareMachine,
    bare_machine,
)
from vmm.hypervisor.base import Stop
from vmm.hypervisor.software import Software, unicorn
from vmm.hypervisor.software import vcpu as software_vcpu
from vmm.hypervisor.state import Table

DIVIDE, BREAKPOINT, INVALID, PROTECTION, PAGE_FAULT = 0, 3, 6, 13, 14


@pytest.fixture(autouse=True)
def _software() -> Iterator[None]:
    before = BACKEND.set("software")
    yield
    BACKEND.reset(before)


def test_stops_fall_between_instructions_that_are_done_once_however_many_there_are() -> None:
    # A count in memory and one in a register: an access that is done again makes them differ.
    code = """
        48 ff 03  # inc qword [rbx]
        48 ff c0  # inc rax
        eb f8     # jmp to the first
    """
    with bare_machine(code) as machine:
        machine.start_at(CODE, rbx=0x9000)
        is_over = threading.Event()
        kicker = threading.Thread(target=kick_until, args=(is_over, machine.vcpu.kick))
        kicker.start()
        try:
            for _ in range(200):
                assert machine.vcpu.run(machine.bus) is Stop.KICKED
        finally:
            is_over.set()
            kicker.join()

        (count,) = struct.unpack_from("<Q", machine.ram, 0x9000)
        assert count == machine.vcpu.get_regs().rax > 0


def kick_until(is_over: threading.Event, kick: Callable[[], None]) -> None:
    while not is_over.is_set():
        kick()


@pytest.mark.parametrize(
    ("code", "vector", "error", "length"),
    [
        ("31 c9 f7 f1", DIVIDE, None, 2),  # xor ecx, ecx; div ecx
        ("90 0f 0b", INVALID, None, 1),  # nop; ud2
        ("66 b8 38 12 8e d8", PROTECTION, 0x1238, 4),  # mov ax, 0x1238; mov ds, ax
        ("90 cc", BREAKPOINT, None, 2),  # nop; int3: rip is behind it
    ],
)
def test_exception_enters_its_handler_with_the_frame_of_the_manual(
    code: str, vector: int, error: int | None, length: int
) -> None:
    # pop rax; pop rbx; hlt: error code and rip, or rip and cs.
    with bare_machine(code) as machine:
        machine.handle_interrupt(vector, bytes.fromhex("58 5b f4"))

        assert machine.run() is Stop.HALTED

        regs = machine.vcpu.get_regs()
        expected = (error, CODE + length) if error is not None else (CODE + length, 8)
        assert (regs.rax, regs.rbx) == expected


def test_page_fault_has_its_address_and_why() -> None:
    with bare_machine("48 89 03") as machine:  # mov [rbx], rax
        machine.load(PAGE_TABLES + 0x1008, bytes(8))  # the second GiB is not mapped
        machine.start_at(CODE, rbx=0x4000_1238)
        machine.handle_interrupt(PAGE_FAULT, bytes.fromhex("58 f4"))

        machine.run()

        assert machine.vcpu.get_regs().rax == 2  # a write, of a page that is not there
        assert machine.vcpu.get_sregs().cr2 == 0x4000_1238


def test_the_second_fault_is_as_good_as_the_first() -> None:
    # The engine would take it for a double fault.
    with bare_machine("0f0b 0f0b 0f0b f4") as machine:
        machine.start_at(CODE, rsi=0)
        # add qword [rsp], 2; inc rsi; iretq
        machine.handle_interrupt(INVALID, bytes.fromhex("48 83 04 24 02 48 ff c6 48 cf"))

        machine.run()

        assert machine.vcpu.get_regs().rsi == 3


def test_instruction_that_the_engine_lacks_is_named_once_and_the_guest_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # vaddps ymm0, ymm0, ymm0, twice at one place; then ud2, which is meant.
    with bare_machine("c5fc58c0 0f0b") as machine:
        # inc rsi; cmp rsi, 2; jb to iretq; ja to hlt; add qword [rsp], 4; iretq; hlt
        handler = "48ffc6 4883fe02 7207 7707 4883042404 48cf f4"
        machine.start_at(CODE, rsi=0)
        machine.handle_interrupt(INVALID, bytes.fromhex(handler))

        machine.run()

    assert [record.getMessage()[:46] for record in caplog.records] == [
        "the guest met an AVX instruction at 0x1000 tha"
    ]


def test_fault_without_a_handler_is_the_end_with_a_dump() -> None:
    with bare_machine("90 0f 0b") as machine, pytest.raises(GuestDied) as died:
        machine.run()

    assert "triple fault, after exception 6" in str(died.value)
    assert "code at rip: 0f 0b" in str(died.value)


def test_a_kick_stops_a_guest_whose_handler_is_in_no_memory() -> None:
    # ud2: its handler is not mapped, nor is the one of the page fault that comes of it. Both begin
    # on the same stack, so the faults never end.
    gate = struct.pack("<HHBBHII", 0, 0x08, 1, 0x8E, 0, 0xF0, 0)
    with bare_machine("0f 0b") as machine:
        machine.handle_interrupt(INVALID, b"")
        for vector in (INVALID, PAGE_FAULT):
            machine.load(IDT + 16 * vector, gate)
        machine.load(0x8000 + 36, struct.pack("<Q", STACK))  # the first of the table of stacks
        sregs = machine.vcpu.get_sregs()
        sregs.tr = replace(sregs.tr, base=0x8000, limit=0x67)
        machine.vcpu.set_sregs(sregs)
        stopper = threading.Timer(0.2, machine.vcpu.kick)
        stopper.start()

        assert machine.vcpu.run(machine.bus) is Stop.KICKED

        stopper.join()
        assert machine.vcpu.get_regs().rip == 0xF0_0000_0000


@pytest.mark.parametrize(("iopl", "done"), [(0, []), (3, [("out", 0x80, 1, 0x5A)])])
def test_a_program_reaches_ports_only_where_its_kernel_lets_it(
    iopl: int, done: list[tuple[str, int, int, int]]
) -> None:
    # mov al, 0x5a; out 0x80, al; int3, whose handler halts: in ring 3, which is returned to.
    with bare_machine("48 cf" + "90" * 14 + "b0 5a e6 80 cc") as machine:
        machine.handle_interrupt(BREAKPOINT, b"\xf4")
        machine.load(IDT + 16 * BREAKPOINT + 5, b"\xee")  # a gate for programs
        # Code and data of ring 3 behind the kernel's; pages are everybody's.
        machine.load(GDT + 24, struct.pack("<2Q", 0x00AF_FB00_0000_FFFF, 0x00CF_F300_0000_FFFF))
        for table, entries in ((PAGE_TABLES, 1), (PAGE_TABLES + 0x1000, 4)):
            for at in range(table, table + 8 * entries, 8):
                machine.ram[at] |= 4
        machine.ram[PAGE_TABLES + 0x2000] |= 4
        frame = (CODE + 16, 0x18 | 3, 2 | iopl << 12, STACK, 0x20 | 3)
        machine.load(STACK - 40, struct.pack("<5Q", *frame))
        machine.load(0x8000 + 4, struct.pack("<Q", STACK - 0x1000))  # the kernel's stack
        machine.start_at(CODE, rsp=STACK - 40)
        sregs = machine.vcpu.get_sregs()
        sregs.gdt, sregs.idt = Table(GDT, 5 * 8 - 1), Table(IDT, 16 * 256 - 1)
        sregs.tr = replace(sregs.tr, base=0x8000, limit=0x67)
        machine.vcpu.set_sregs(sregs)

        assert machine.run() is Stop.HALTED

        assert machine.bus.accesses == done


def test_running_into_mmio_is_the_end_and_says_where() -> None:
    with bare_machine("ff e3") as machine:  # jmp rbx
        machine.start_at(CODE, rbx=DEVICE)

        with pytest.raises(GuestDied, match="executes code at 0x90000000, where there is none"):
            machine.run()


# mov [rdi], rax; mov byte [rsi], 0x55; mov [rsi], cx; hlt
ACROSS = "488907 c60655 66890e f4"
# The address of the second write is the first of a page, as the rest of the first one's would be.
THREE_BYTES = ("write", DEVICE + 0x1FFFFD, 3, 0x332211)
AFTERWARDS = [("write", DEVICE, 1, 0x55), ("write", DEVICE, 2, 0x9999)]


@contextlib.contextmanager
def across_pages(second: int) -> Iterator[BareMachine]:
    """ACROSS: its first write has three bytes on a page of MMIO and five on the next, which has
    the page-table entry ``second``."""
    with bare_machine(ACROSS) as machine:
        machine.load(PAGE_TABLES + 0x3000, struct.pack("<2Q", DEVICE | 3 | 1 << 7, second))
        registers = {"rax": 0x8877665544332211, "rcx": 0x9999, "rbx": PAGE_TABLES + 0x3008}
        machine.start_at(CODE, rdi=0x4020_0000 - 3, rsi=DEVICE, **registers)
        yield machine
        assert machine.ram[:5] == bytes.fromhex("4455667788")


def test_a_write_that_ends_in_ram_hides_none_after_it() -> None:
    with across_pages(3 | 1 << 7) as machine:  # address 0, present, writable, large
        machine.run()

        assert machine.bus.accesses == [THREE_BYTES, *AFTERWARDS]


def test_a_write_that_faults_on_its_second_page_is_done_once_and_hides_none_after_it() -> None:
    with across_pages(0) as machine:
        # mov qword [rbx], 0x83; add rsp, 8; iretq
        handler = bytes.fromhex("48c70383000000 4883c408 48cf")
        machine.handle_interrupt(PAGE_FAULT, handler)

        machine.run()

        assert machine.bus.accesses == [THREE_BYTES, *AFTERWARDS]


def test_interrupt_wakes_a_halted_guest_and_is_taken_once() -> None:
    code = """
        fb     # sti
        f4     # hlt
        e6 f4  # out 0xf4, al
    """
    with bare_machine(code, irqchip=True) as machine:
        # inc rax; mov edx, 0xfee000b0; mov [rdx], ecx (EOI); iretq
        handler = "48 ff c0 ba b0 00 e0 fe 89 0a 48 cf"
        machine.handle_interrupt(0x30, bytes.fromhex(handler))
        chips = machine.vm.chips  # type: ignore[attr-defined]
        program_ioapic(machine.vm.chip_bus, 5, 0x30)  # type: ignore[attr-defined]
        timer = threading.Timer(0.1, lambda: (chips.set_irq(5, True), chips.set_irq(5, False)))
        timer.start()

        assert machine.run() is Stop.KICKED

        timer.join()
        assert machine.vcpu.get_regs().rax & 0xFF == 1


def test_interrupt_waits_while_the_guest_has_them_disabled() -> None:
    code = """
        48 ff c9  # dec rcx
        75 fb     # jnz to the first
        fb        # sti
        eb fe     # jmp to itself
    """
    with bare_machine(code, irqchip=True) as machine:
        machine.start_at(CODE, rcx=1_000_000)
        machine.handle_interrupt(0x30, bytes.fromhex("48 89 cb e6 f4 eb fe"))  # mov rbx, rcx; out
        program_ioapic(machine.vm.chip_bus, 5, 0x30)  # type: ignore[attr-defined]
        machine.vm.set_irq(5, True)

        machine.run()

        regs = machine.vcpu.get_regs()
        assert (regs.rip, regs.rcx, regs.rbx) == (HANDLER + 5, 0, 0)


@pytest.mark.parametrize(
    "window",
    [
        "fb 90 fa",  # sti; nop; cli
        "68 02 02 00 00 9d fa",  # push 0x202; popf; cli
    ],
)
def test_interrupt_is_taken_in_the_first_instruction_that_lets_it_in(window: str) -> None:
    # Nearly all of the time the guest is where it takes none, as a driver that waits for its device
    # with a lock held.
    listing = f"""
        ff c3           # inc ebx             how many windows there were
        b9 00 10 00 00  # mov ecx, 4096
        ff c9           # dec ecx
        75 fc           # jnz to the one before
        {window}
        81 fb 00 04 00 00  # cmp ebx, 1024    no more than so many
        72 {-(2 + 5 + 2 + 2 + len(bytes.fromhex(window)) + 6 + 2) & 0xFF:02x}  # jb to the first
        e6 f4           # out 0xf4, al
        eb fe           # jmp to itself
    """
    with bare_machine(listing, irqchip=True) as machine:
        machine.handle_interrupt(0x30, bytes.fromhex("e6 f4 eb fe"))  # out 0xf4, al
        program_ioapic(machine.vm.chip_bus, 5, 0x30)  # type: ignore[attr-defined]
        machine.vm.set_irq(5, True)

        machine.run()

        assert machine.vcpu.get_regs().rbx == 1


def program_ioapic(bus, pin: int, vector: int) -> None:  # type: ignore[no-untyped-def]
    bus.pio_write(0x21, 1, 0xFF)  # the 8259 has nothing to say
    bus.mmio_write(0xFEE000F0, 4, 0x1FF)  # the local APIC is on
    bus.mmio_write(0xFEC00000, 4, 0x10 + 2 * pin)
    bus.mmio_write(0xFEC00010, 4, vector)


def test_signalled_eventfd_raises_its_line_while_the_guest_runs() -> None:
    code = "fb eb fe"  # sti; jmp to itself
    with bare_machine(code, irqchip=True) as machine:
        machine.handle_interrupt(0x30, bytes.fromhex("e6 f4 eb fe"))  # out 0xf4, al
        program_ioapic(machine.vm.chip_bus, 5, 0x30)  # type: ignore[attr-defined]
        bell = doorbell.create()
        machine.vm.add_irqfd(bell, 5)
        timer = threading.Timer(0.1, lambda: doorbell.ring(bell))
        timer.start()

        assert machine.run() is Stop.KICKED

        timer.join()
        machine.vm.remove_irqfd(bell, 5)
        os.close(bell)


def test_cpuid_tells_of_one_processor_that_the_engine_can_be() -> None:
    with bare_machine("0f a2 f4") as machine:
        machine.start_at(CODE, rax=0x15)

        machine.run()

        regs = machine.vcpu.get_regs()
        tsc_hz = regs.rcx * regs.rbx // regs.rax
        earliest, before, latest = read_tsc()
        time.sleep(0.2)
        earliest_end, after, latest_end = read_tsc()
        assert regs.rcx == 25_000_000
        assert (after - before) / (latest_end - earliest) < 1.01 * tsc_hz
        assert (after - before) / (earliest_end - latest) > 0.99 * tsc_hz


@pytest.mark.parametrize("held_up", range(12))
def test_the_tsc_is_measured_right_whenever_who_does_it_is_held_up(
    held_up: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, looks = [0], itertools.count()

    def look() -> int:
        now[0] += 5_000_000 if next(looks) == held_up else 100
        return now[0]

    monkeypatch.setattr(software_vcpu, "lib", SimpleNamespace(engine_ticks=lambda: 3 * look()))
    clock = SimpleNamespace(monotonic_ns=look, sleep=lambda seconds: None)
    monkeypatch.setattr(software_vcpu, "time", clock)
    tsc = software_vcpu.Tsc()
    now[0] += 20_000_000

    assert abs(tsc.hz() / 3e9 - 1) < 1e-4


def read_tsc() -> tuple[float, int, float]:
    """It, between the seconds before and after it: who reads may be held up at any moment."""
    return time.monotonic(), int(lib.engine_ticks()), time.monotonic()


def test_code_that_somebody_else_has_written_runs_as_it_is_now() -> None:
    """In an address space where linear addresses are not physical ones."""
    with bare_machine("f4") as machine:
        machine.load(PAGE_TABLES + 0x3000, struct.pack("<Q", 0 | 3 | 1 << 7))  # 1 GiB on: as 0
        machine.load(0x9000, bytes.fromhex("b8 01000000 f4"))  # mov eax, 1; hlt
        for value in (1, 2, 3):
            machine.ram[0x9001] = value
            written(machine, 0x9001, 1)
            machine.start_at(0x4000_9000)
            machine.run()

            assert machine.vcpu.get_regs().rax == value


def test_code_that_the_guest_writes_where_it_may_not_execute_runs_as_it_is_now() -> None:
    """Two functions of a page, of which the engine would remember the second (Engine.hook)."""
    code = """
        ff d6        # call rsi
        ff d7        # call rdi
        c6 43 01 02  # mov byte [rbx + 1], 2
        c6 43 11 02  # mov byte [rbx + 0x11], 2
        ff d6        # call rsi
        41 89 c0     # mov r8d, eax
        ff d7        # call rdi
        f4           # hlt
    """
    with bare_machine(code) as machine:
        for function in (0x9000, 0x9010):
            machine.load(function, bytes.fromhex("b8 01000000 c3"))  # mov eax, 1; ret
        no_execute = 1 << 63
        machine.load(PAGE_TABLES + 0x3000, struct.pack("<Q", no_execute | 3 | 1 << 7))  # 1 GiB: 0
        machine.start_at(CODE, rsi=0x9000, rdi=0x9010, rbx=0x4000_9000)
        sregs = machine.vcpu.get_sregs()
        sregs.efer |= 1 << 11  # NXE
        machine.vcpu.set_sregs(sregs)

        machine.run()

        regs = machine.vcpu.get_regs()
        assert (regs.r8, regs.rax) == (2, 2)


def test_translations_stay_where_nothing_was_said_and_where_others_wrote_data() -> None:
    with bare_machine("f4") as machine:
        machine.load(0x9000, bytes.fromhex("b8 01000000 f4"))
        for said in (lambda: None, lambda: written(machine, 0x20000, 0x4000)):
            machine.start_at(0x9000)
            machine.run()
            machine.ram[0x9001] = 2
            said()
            machine.start_at(0x9000)
            machine.run()

            assert machine.vcpu.get_regs().rax == 1  # stale, as nobody has a right to expect
            machine.ram[0x9001] = 1


def written(machine, gpa: int, length: int) -> None:  # type: ignore[no-untyped-def]
    function, context = machine.vm.written_hook()
    assert function == int(ffi.cast("uintptr_t", ffi.addressof(lib, "engine_written")))
    lib.engine_written(ffi.cast("void *", context), gpa, length)


def test_two_processors_are_refused() -> None:
    with pytest.raises(HostError, match="2 CPUs: the software CPU is one"):
        Software().create_vm(2)


def test_engine_that_is_not_installed_is_said_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unicorn, "find_spec", lambda _: None)
    unicorn.library.cache_clear()
    try:
        with pytest.raises(HostError, match=r"pip install 'vibe-vmm\[software\]'"):
            Software()
    finally:
        unicorn.library.cache_clear()
