"""ioeventfd and irqfd: the guest's doorbells and interrupts, past the VMM."""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections.abc import Iterator

import pytest

from protocol.errors import HostError
from tests.support.bare import (
    CODE,
    DEADLINE,
    DEVICE,
    STOP_PORT,
    BareMachine,
    assembled,
    bare_machine,
)
from vmm.hypervisor.base import Stop
from vmm.hypervisor.detect import kvm_is_software as is_software

pytestmark = pytest.mark.kvm

WRITES = """
    89 07     # mov [rdi], eax
    89 1f     # mov [rdi], ebx
    66 89 1f  # mov [rdi], bx
    f4        # hlt
"""
OUT = """
    e6 50  # out 0x50, al
    f4     # hlt
"""

# The 8259 with its vectors at 0x20, everything masked but line 5; then wait for interrupts.
READY_PORT, ACKNOWLEDGED_PORT = 0xF5, 0xF6
PIC_LINE_5 = """
    b0 11  # mov al, 0x11   ICW1: edge, cascaded, ICW4 follows
    e6 20  # out 0x20, al
    b0 20  # mov al, 0x20   ICW2: vectors from 0x20
    e6 21  # out 0x21, al
    b0 04  # mov al, 0x04   ICW3: the second one is at line 2
    e6 21  # out 0x21, al
    b0 01  # mov al, 0x01   ICW4: 8086
    e6 21  # out 0x21, al
    b0 df  # mov al, 0xdf   mask: all but 5
    e6 21  # out 0x21, al
    e6 f5  # out 0xf5, al   ready
    fb     # sti
    f4     # hlt
    eb fc  # jmp back to sti
"""
PIC_HANDLER = """
    b0 20  # mov al, 0x20
    e6 20  # out 0x20, al   end of interrupt
    e6 f4  # out 0xf4, al   stop
    48 cf  # iretq
"""

# Local APIC on; IOAPIC line 20 to vector 0x30, level-triggered, to APIC id 0.
IOAPIC_LINE_20 = """
    bf 00 00 e0 fe                 # mov edi, 0xfee00000
    c7 87 f0 00 00 00 ff 01 00 00  # mov dword [rdi + 0xf0], 0x1ff
    be 00 00 c0 fe                 # mov esi, 0xfec00000
    c7 06 38 00 00 00              # mov dword [rsi], 0x38
    c7 46 10 30 80 00 00           # mov dword [rsi + 0x10], 0x8030
    c7 06 39 00 00 00              # mov dword [rsi], 0x39
    c7 46 10 00 00 00 00           # mov dword [rsi + 0x10], 0
    e6 f5                          # out 0xf5, al
    fb                             # sti
    f4                             # hlt
    eb fc                          # jmp back to sti
"""
IOAPIC_HANDLER = """
    e6 f6                          # out 0xf6, al   the device is acknowledged here
    c7 87 b0 00 00 00 00 00 00 00  # mov dword [rdi + 0xb0], 0   end of interrupt
    e6 f4                          # out 0xf4, al
    48 cf                          # iretq
"""


@contextlib.contextmanager
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        yield fd
    finally:
        os.close(fd)


def signals(fd: int) -> int:
    """How many times the eventfd was signalled since the last look."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def run_writes(machine: BareMachine) -> None:
    machine.start_at(CODE, rdi=DEVICE, rax=7, rbx=8)
    assert machine.run() is Stop.HALTED


def test_ioeventfd_takes_its_value_without_an_exit_and_leaves_the_others() -> None:
    with eventfd() as fd, bare_machine(WRITES) as machine:
        machine.vm.add_ioeventfd(fd, DEVICE, 4, value=7)

        run_writes(machine)

        assert signals(fd) == 1
        assert machine.bus.accesses == [("write", DEVICE, 4, 8), ("write", DEVICE, 2, 8)]
        assert machine.vcpu.run_returns == 2 + 1  # and HLT


def test_ioeventfd_without_a_value_takes_every_one_of_its_size() -> None:
    with eventfd() as fd, bare_machine(WRITES) as machine:
        machine.vm.add_ioeventfd(fd, DEVICE, 4)

        run_writes(machine)

        assert signals(fd) == 2
        assert machine.bus.accesses == [("write", DEVICE, 2, 8)]


def test_ioeventfd_of_size_0_takes_every_size() -> None:
    with eventfd() as fd, bare_machine(WRITES) as machine:
        machine.vm.add_ioeventfd(fd, DEVICE, 0)

        run_writes(machine)

        assert (signals(fd), machine.bus.accesses) == (3, [])


def test_ioeventfd_is_by_value_so_that_each_queue_has_its_own() -> None:
    with eventfd() as first, eventfd() as second, bare_machine(WRITES) as machine:
        machine.vm.add_ioeventfd(first, DEVICE, 4, value=7)
        machine.vm.add_ioeventfd(second, DEVICE, 4, value=8)

        run_writes(machine)

        assert (signals(first), signals(second)) == (1, 1)


def test_removed_ioeventfd_lets_the_writes_exit_again() -> None:
    with eventfd() as fd, bare_machine(WRITES) as machine:
        machine.vm.add_ioeventfd(fd, DEVICE, 4, value=7)
        machine.vm.remove_ioeventfd(fd, DEVICE, 4, value=7)

        run_writes(machine)

        assert signals(fd) == 0
        assert machine.bus.accesses[0] == ("write", DEVICE, 4, 7)


def test_ioeventfd_on_a_port_takes_the_write_without_an_exit() -> None:
    with eventfd() as fd, bare_machine(OUT) as machine:
        machine.vm.add_ioeventfd(fd, 0x50, 1, pio=True)

        stop = machine.run()

        assert (stop, signals(fd), machine.bus.accesses) == (Stop.HALTED, 1, [])


def test_ioeventfd_on_a_read_only_page_takes_the_write_without_an_exit() -> None:
    # How a register page works: reads come from memory, the doorbell goes to the device.
    with eventfd() as fd, bare_machine(WRITES) as machine:
        page = memoryview(mmap.mmap(-1, 4096))
        page[:8] = b"register"
        machine.vm.map_ram(1, DEVICE, page, read_only=True)
        machine.vm.add_ioeventfd(fd, DEVICE, 4)

        run_writes(machine)

        assert signals(fd) == 2
        assert machine.bus.accesses == [("write", DEVICE, 2, 8)]
        assert bytes(page[:8]) == b"register"


def test_the_same_ioeventfd_twice_is_refused_with_the_name_of_the_call() -> None:
    with eventfd() as fd, bare_machine(WRITES) as machine:
        machine.vm.add_ioeventfd(fd, DEVICE, 4)

        with pytest.raises(HostError, match="KVM_IOEVENTFD: File exists"):
            machine.vm.add_ioeventfd(fd, DEVICE, 4)


def test_irqfd_delivers_an_interrupt_to_the_guests_handler() -> None:
    with eventfd() as fd, bare_machine(PIC_LINE_5, irqchip=True) as machine:
        machine.handle_interrupt(0x25, assembled(PIC_HANDLER))
        machine.vm.add_irqfd(fd, 5)
        machine.bus.on_port[READY_PORT] = lambda: os.eventfd_write(fd, 1)

        stop = machine.run()

        assert stop is Stop.KICKED
        assert [port for _, port, _, _ in machine.bus.accesses] == [READY_PORT, STOP_PORT]


def test_set_irq_delivers_an_interrupt_to_the_guests_handler() -> None:
    with bare_machine(PIC_LINE_5, irqchip=True) as machine:
        machine.handle_interrupt(0x25, assembled(PIC_HANDLER))
        machine.bus.on_port[READY_PORT] = lambda: machine.vm.set_irq(5, True)

        machine.run()

        assert [port for _, port, _, _ in machine.bus.accesses] == [READY_PORT, STOP_PORT]


def test_removed_irqfd_interrupts_no_more() -> None:
    with eventfd() as fd, bare_machine(PIC_LINE_5, irqchip=True) as machine:
        machine.handle_interrupt(0x25, assembled(PIC_HANDLER))
        machine.vm.add_irqfd(fd, 5)
        machine.vm.remove_irqfd(fd, 5)
        waiting = threading.Event()
        machine.bus.on_port[READY_PORT] = waiting.set
        runner = machine.start(machine.vcpu)
        assert waiting.wait(DEADLINE)
        os.eventfd_write(fd, 1)

        machine.vcpu.kick()

        assert runner.result() is Stop.KICKED
        assert signals(fd) == 1  # nobody took it
        assert [port for _, port, _, _ in machine.bus.accesses] == [READY_PORT]


@contextlib.contextmanager
def level_interrupted(fd: int, resample: int) -> Iterator[tuple[BareMachine, list[int]]]:
    """A machine that will take line 20 from ``fd``; and a list of what ``resample`` had told
    when the guest's handler had begun, and when the handler had ended the interrupt."""
    with bare_machine(IOAPIC_LINE_20, irqchip=True) as machine:
        told: list[int] = []
        machine.handle_interrupt(0x30, assembled(IOAPIC_HANDLER))
        machine.vm.add_irqfd(fd, 20, resample)
        machine.bus.on_port[READY_PORT] = lambda: os.eventfd_write(fd, 1)
        machine.bus.on_port[ACKNOWLEDGED_PORT] = lambda: told.append(signals(resample))
        yield machine, told
        told.append(signals(resample))


def test_irqfd_with_resample_interrupts_once_and_tells_once() -> None:
    with eventfd() as fd, eventfd() as resample:
        with level_interrupted(fd, resample) as (machine, told):
            stop = machine.run()

        assert stop is Stop.KICKED
        assert sum(told) == 1
        ports = [port for _, port, _, _ in machine.bus.accesses]
        assert ports == [READY_PORT, ACKNOWLEDGED_PORT, STOP_PORT]


def test_irqfd_with_resample_tells_at_the_end_of_interrupt_and_not_before() -> None:
    if is_software():
        pytest.skip("software KVM ends an interrupt itself when it delivers it (measured)")
    with eventfd() as fd, eventfd() as resample:
        with level_interrupted(fd, resample) as (machine, told):
            machine.run()

        assert told == [0, 1]
