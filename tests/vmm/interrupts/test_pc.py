"""The controllers together: what a guest and its CPU see of them through the bus."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.bus import Bus
from vmm.interrupts.pc import PcInterrupts

IOAPIC, LAPIC = 0xFEC0_0000, 0xFEE0_0000
TPR, EOI, SVR, ESR, ICR = 0x80, 0xB0, 0xF0, 0x280, 0x300
LVT_TIMER, LVT_LINT0, INITIAL, CURRENT, DIVIDE = 0x320, 0x350, 0x380, 0x390, 0x3E0
MASKED, LEVEL, NMI, EXTINT = 1 << 16, 1 << 15, 0x400, 0x700
MASTER_BASE, SLAVE_BASE = 0x30, 0x38
SPURIOUS = 0xFF


class Machine:
    """The controllers on a bus of their own, a clock, and how often the CPU was woken."""

    def __init__(self) -> None:
        self.now = 5_000_000_000
        self.wakes = 0
        self.on_wake: Callable[[], object] = lambda: None
        self.bus = Bus()
        self.irqs = PcInterrupts(
            self.bus, timer_hz=25_000_000, now=lambda: self.now, wake=self._wake
        )

    def _wake(self) -> None:
        self.wakes += 1
        self.on_wake()

    def apic(self, register: int, value: int) -> None:
        self.bus.mmio_write(LAPIC + register, 4, value)

    def read_apic(self, register: int) -> int:
        return self.bus.mmio_read(LAPIC + register, 4)

    def pin(self, pin: int, entry: int) -> None:
        for register, value in ((0x11, entry >> 32), (0x10, entry & 0xFFFF_FFFF)):
            self.bus.mmio_write(IOAPIC, 4, register + 2 * pin)
            self.bus.mmio_write(IOAPIC + 0x10, 4, value)

    def pulse(self, gsi: int) -> None:
        self.irqs.set_irq(gsi, True)
        self.irqs.set_irq(gsi, False)

    def set_up_pics(self, masks: int = 0) -> None:
        """As Linux does it (arch/x86/kernel/i8259.c, init_8259A)."""
        for port, base, icw3 in ((0x20, MASTER_BASE, 0x04), (0xA0, SLAVE_BASE, 0x02)):
            self.bus.pio_write(port, 1, 0x11)
            for value in (base, icw3, 0x01, masks):
                self.bus.pio_write(port + 1, 1, value)

    def set_up_pit(self, mode: int, count: int) -> None:
        self.bus.pio_write(0x43, 1, 0x30 | mode << 1)
        self.bus.pio_write(0x40, 1, count & 0xFF)
        self.bus.pio_write(0x40, 1, count >> 8)


@pytest.fixture
def pic_machine() -> Machine:
    """After a reset and the PICs' initialisation: what a guest without APICs has."""
    machine = Machine()
    machine.set_up_pics()
    return machine


@pytest.fixture
def apic_machine() -> Machine:
    """PICs masked, the local APIC enabled, LINT0 masked: what a guest with APICs has."""
    machine = Machine()
    machine.set_up_pics(masks=0xFF)
    machine.apic(SVR, 0x100 | SPURIOUS)
    machine.apic(LVT_LINT0, MASKED)
    return machine


def test_after_a_reset_nothing_is_pending_and_no_timer_runs() -> None:
    machine = Machine()

    assert machine.irqs.pending() is None
    assert not machine.irqs.pending_nmi()
    assert machine.irqs.deadline() is None


def test_virtual_wire_brings_the_pics_interrupts_to_a_cpu_whose_apic_is_disabled(
    pic_machine: Machine,
) -> None:
    pic_machine.pulse(4)

    assert pic_machine.irqs.pending() == MASTER_BASE + 4
    assert pic_machine.irqs.acknowledge() == MASTER_BASE + 4
    assert pic_machine.irqs.pending() is None


def test_virtual_wire_goes_on_with_an_enabled_apic_until_lint0_is_masked(
    pic_machine: Machine,
) -> None:
    pic_machine.apic(SVR, 0x100 | SPURIOUS)
    pic_machine.pulse(10)
    assert pic_machine.irqs.pending() == SLAVE_BASE + 2

    pic_machine.apic(LVT_LINT0, EXTINT | MASKED)

    assert pic_machine.irqs.pending() is None


def test_a_request_that_vanishes_from_the_pic_is_a_spurious_irq_7(pic_machine: Machine) -> None:
    pic_machine.bus.pio_write(0x4D0, 1, 1 << 5)
    pic_machine.irqs.set_irq(5, True)
    pic_machine.irqs.set_irq(5, False)
    assert pic_machine.irqs.pending() is None

    assert pic_machine.irqs.acknowledge() == MASTER_BASE + 7


def test_a_request_that_vanishes_from_the_apic_is_its_spurious_vector(
    apic_machine: Machine,
) -> None:
    assert apic_machine.irqs.acknowledge() == SPURIOUS


def test_a_pins_edge_becomes_its_vector(apic_machine: Machine) -> None:
    apic_machine.pin(5, 0x41)

    apic_machine.pulse(5)

    assert apic_machine.irqs.pending() == 0x41
    assert apic_machine.irqs.acknowledge() == 0x41
    assert apic_machine.irqs.pending() is None


def test_a_level_comes_again_after_eoi_for_as_long_as_it_lasts(apic_machine: Machine) -> None:
    apic_machine.pin(9, LEVEL | 0x41)
    apic_machine.irqs.set_irq(9, True)

    apic_machine.irqs.acknowledge()
    assert apic_machine.irqs.pending() is None
    apic_machine.apic(EOI, 0)
    assert apic_machine.irqs.acknowledge() == 0x41
    apic_machine.irqs.set_irq(9, False)
    apic_machine.apic(EOI, 0)

    assert apic_machine.irqs.pending() is None


def test_a_level_from_before_the_apic_was_enabled_arrives_when_it_is() -> None:
    machine = Machine()
    machine.set_up_pics(masks=0xFF)
    machine.pin(9, LEVEL | 0x41)
    machine.irqs.set_irq(9, True)
    assert machine.irqs.pending() is None

    machine.apic(SVR, 0x100 | SPURIOUS)

    assert machine.irqs.pending() == 0x41


@pytest.mark.parametrize("gsi", range(16, 24))
def test_lines_above_15_go_to_the_ioapic_only(pic_machine: Machine, gsi: int) -> None:
    pic_machine.pin(gsi, 0x41)
    pic_machine.pulse(gsi)
    assert pic_machine.irqs.pending() is None

    pic_machine.apic(SVR, 0x100 | SPURIOUS)
    pic_machine.pulse(gsi)

    assert pic_machine.irqs.pending() == 0x41


@pytest.mark.parametrize("gsi", [-1, 24])
def test_a_line_that_is_none_is_refused(apic_machine: Machine, gsi: int) -> None:
    with pytest.raises(ValueError, match="no GSI"):
        apic_machine.irqs.set_irq(gsi, True)


def test_the_pit_enters_the_ioapic_where_the_madt_says(apic_machine: Machine) -> None:
    """vmm/boot/acpi/tables.py has no override for IRQ 0, so it is pin 0."""
    apic_machine.pin(0, 0x30)
    apic_machine.set_up_pit(2, 11_932)

    apic_machine.now += 11_000_000
    apic_machine.irqs.tick()

    assert apic_machine.irqs.pending() == 0x30


def test_the_pit_interrupts_through_the_pic(pic_machine: Machine) -> None:
    pic_machine.set_up_pit(2, 11_932)

    deadline = pic_machine.irqs.deadline()
    assert deadline is not None
    pic_machine.now = deadline - 1
    pic_machine.irqs.tick()
    assert pic_machine.irqs.pending() is None
    pic_machine.now = deadline
    pic_machine.irqs.tick()

    assert pic_machine.irqs.pending() == MASTER_BASE


def test_the_deadline_is_the_earlier_of_both_timers(apic_machine: Machine) -> None:
    apic_machine.apic(LVT_TIMER, 0xEC)
    apic_machine.apic(DIVIDE, 0b1011)
    apic_machine.apic(INITIAL, 1_000_000)
    start = apic_machine.now
    assert apic_machine.irqs.deadline() == start + 40_000_000

    apic_machine.set_up_pit(0, 11_932)

    deadline = apic_machine.irqs.deadline()
    assert deadline is not None
    assert start + 10_000_000 < deadline < start + 10_001_000


def test_linux_moves_from_the_pic_to_the_apics_and_their_timer() -> None:
    """The order of arch/x86/kernel: init_8259A, setup_local_APIC, setup_IO_APIC,
    setup_APIC_timer and lapic_next_event."""
    machine = Machine()
    machine.set_up_pics(masks=0xFF)
    machine.apic(TPR, 0x10)
    machine.apic(SVR, 0x1FF)
    machine.apic(LVT_LINT0, EXTINT | MASKED)
    machine.apic(0x360, NMI)
    machine.apic(ESR, 0)
    machine.pin(5, 1 << 56 | 0x800 | 0x22)
    machine.apic(0xE0, 0xFFFF_FFFF)
    machine.apic(0xD0, 0x0100_0000)
    machine.apic(LVT_TIMER, 0xEC)
    machine.apic(DIVIDE, 0b0011)

    machine.pulse(5)
    assert machine.irqs.acknowledge() == 0x22
    machine.apic(EOI, 0)
    machine.apic(INITIAL, 1000)
    deadline = machine.irqs.deadline()
    assert deadline == machine.now + 1000 * 16 * 40
    machine.now = deadline
    machine.irqs.tick()

    assert machine.irqs.acknowledge() == 0xEC
    machine.apic(EOI, 0)
    assert machine.irqs.pending() is None
    assert machine.irqs.deadline() is None


def test_a_cpu_that_slept_through_many_periods_gets_one_tick(apic_machine: Machine) -> None:
    apic_machine.apic(LVT_TIMER, 1 << 17 | 0xEC)
    apic_machine.apic(INITIAL, 12_500)
    start = apic_machine.now

    apic_machine.now += 10_000_500_000
    apic_machine.irqs.tick()
    apic_machine.irqs.acknowledge()
    apic_machine.apic(EOI, 0)
    apic_machine.irqs.tick()

    assert apic_machine.irqs.pending() is None
    assert apic_machine.irqs.deadline() == start + 10_001_000_000


def test_a_tick_with_nothing_due_changes_nothing(apic_machine: Machine) -> None:
    apic_machine.apic(LVT_TIMER, 0xEC)
    apic_machine.apic(INITIAL, 1000)

    apic_machine.irqs.tick()

    assert apic_machine.irqs.pending() is None


def test_an_nmi_from_a_pin_is_taken_once(apic_machine: Machine) -> None:
    apic_machine.pin(6, NMI)

    apic_machine.pulse(6)

    assert apic_machine.irqs.pending_nmi()
    assert (apic_machine.irqs.take_nmi(), apic_machine.irqs.take_nmi()) == (True, False)


def test_an_extint_pin_makes_the_cpu_ask_the_pic(apic_machine: Machine) -> None:
    apic_machine.pin(8, EXTINT)

    apic_machine.pulse(8)

    # Nothing is requested there, so it is the spurious IRQ 7.
    assert apic_machine.irqs.pending() == MASTER_BASE + 7
    assert apic_machine.irqs.acknowledge() == MASTER_BASE + 7
    assert apic_machine.irqs.pending() is None


def test_cr8_holds_interrupts_back_and_lets_them_go(apic_machine: Machine) -> None:
    apic_machine.pin(5, 0x41)
    apic_machine.pulse(5)

    apic_machine.irqs.set_tpr(4 << 4)
    assert apic_machine.irqs.pending() is None
    assert apic_machine.read_apic(TPR) == 0x40
    apic_machine.apic(TPR, 0x20)

    assert apic_machine.irqs.get_tpr() >> 4 == 2
    assert apic_machine.irqs.pending() == 0x41


def test_an_error_on_a_read_interrupts(apic_machine: Machine) -> None:
    apic_machine.apic(0x370, 0xFE)
    assert apic_machine.irqs.pending() is None

    apic_machine.read_apic(0x40)

    assert apic_machine.irqs.pending() == 0xFE


def test_the_cpu_is_woken_for_what_it_can_take_and_for_nothing_else(
    apic_machine: Machine,
) -> None:
    apic_machine.pin(6, NMI)
    apic_machine.pulse(5)
    assert apic_machine.wakes == 0
    apic_machine.pin(5, 0x41)

    apic_machine.pulse(5)
    assert apic_machine.wakes == 1
    apic_machine.pulse(5)
    assert apic_machine.wakes == 1
    apic_machine.pulse(6)

    assert apic_machine.wakes == 2


def test_the_cpu_is_woken_without_a_lock(apic_machine: Machine) -> None:
    seen: list[int] = []

    def ask_from_another_thread() -> None:
        cpu = threading.Thread(target=lambda: seen.append(apic_machine.irqs.acknowledge()))
        cpu.start()
        cpu.join(10)

    apic_machine.on_wake = ask_from_another_thread
    apic_machine.pin(5, 0x41)

    apic_machine.irqs.set_irq(5, True)

    assert seen == [0x41]


def test_interrupts_of_many_threads_all_arrive(apic_machine: Machine) -> None:
    for gsi in range(16, 24):
        apic_machine.pin(gsi, 0x40 + gsi)
    threads = [
        threading.Thread(target=lambda gsi=gsi: [apic_machine.pulse(gsi) for _ in range(100)])
        for gsi in range(16, 24)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = set()
    while apic_machine.irqs.pending() is not None:
        found.add(apic_machine.irqs.acknowledge())
        apic_machine.apic(EOI, 0)

    assert found == {0x40 + gsi for gsi in range(16, 24)}


PORTS = st.sampled_from([*range(0x1E, 0x24), *range(0x3E, 0x46), 0x60, 0x61, *range(0x9F, 0xA3)])
REGISTERS = st.one_of(
    st.builds(lambda i: IOAPIC + i, st.integers(0, 0x20)),
    st.builds(lambda i: LAPIC + 0x10 * i, st.integers(0, 0x40)),
    st.builds(lambda i: LAPIC + i, st.integers(-8, 0x1008)),
)
STEPS = st.one_of(
    st.tuples(st.just("pio"), PORTS, st.integers(1, 8), st.integers(0, (1 << 64) - 1)),
    st.tuples(st.just("mmio"), REGISTERS, st.integers(1, 8), st.integers(0, (1 << 64) - 1)),
    st.tuples(st.just("irq"), st.integers(0, 23), st.integers(0, 1), st.just(0)),
    st.tuples(st.just("time"), st.integers(0, 1 << 40), st.just(0), st.just(0)),
    st.tuples(st.just("cpu"), st.integers(0, 0xFF), st.just(0), st.just(0)),
)


@given(st.lists(STEPS, max_size=60))
def test_whatever_the_guest_does_nothing_is_raised_and_every_answer_fits(
    steps: list[tuple[str, int, int, int]],
) -> None:
    machine = Machine()
    bus, irqs = machine.bus, machine.irqs

    for what, a, b, c in steps:
        if what == "pio":
            bus.pio_write(a, b, c & (1 << 8 * b) - 1)
            assert 0 <= bus.pio_read(a, b) < 1 << 8 * b
        elif what == "mmio":
            bus.mmio_write(a, b, c & (1 << 8 * b) - 1)
            assert 0 <= bus.mmio_read(a, b) < 1 << 8 * b
        elif what == "irq":
            irqs.set_irq(a, bool(b))
        elif what == "time":
            machine.now += a
            irqs.tick()
            deadline = irqs.deadline()
            assert deadline is None or deadline > machine.now
        else:
            irqs.set_tpr(a)
            pending = irqs.pending()
            vector = irqs.acknowledge()
            assert 0 <= vector <= 0xFF
            assert pending in (None, vector)
