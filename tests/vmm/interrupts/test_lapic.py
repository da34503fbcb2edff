"""The local APIC: priorities, ends of interrupts, IPIs to itself, LINT0, errors, registers."""

from __future__ import annotations

import pytest

from vmm.interrupts.lapic import LocalApic

TPR, PPR, EOI, LDR, DFR, SVR, ESR = 0x80, 0xA0, 0xB0, 0xD0, 0xE0, 0xF0, 0x280
ISR, TMR, IRR = 0x100, 0x180, 0x200
ICR, ICR_HIGH = 0x300, 0x310
LVT_TIMER, LVT_LINT0, LVT_LINT1, LVT_ERROR = 0x320, 0x350, 0x360, 0x370
INITIAL, CURRENT, DIVIDE = 0x380, 0x390, 0x3E0
MASKED, LEVEL, PERIODIC = 1 << 16, 1 << 15, 1 << 17
LOWEST, SMI, NMI, INIT, STARTUP, EXTINT = 0x100, 0x200, 0x400, 0x500, 0x600, 0x700
LOGICAL = 0x800
SELF, ALL, OTHERS = 0x4_0000, 0x8_0000, 0xC_0000
ENABLED = 0x1FF


class Apic:
    """A local APIC with a clock, and what it told the IOAPIC."""

    def __init__(self) -> None:
        self.now = 0
        self.ended: list[int] = []
        self.reconfigured = 0
        self.apic = LocalApic(25_000_000, lambda: self.now, self.ended.append, self._reconfigured)

    def _reconfigured(self) -> None:
        self.reconfigured += 1

    def put(self, register: int, value: int) -> None:
        self.apic.write(register, 4, value)

    def get(self, register: int) -> int:
        return self.apic.read(register, 4)

    def send(self, *messages: int) -> list[bool]:
        return [self.apic.receive(message) for message in messages]

    def bits(self, base: int) -> set[int]:
        """The vectors whose bits are set in ISR, TMR or IRR."""
        return {
            32 * i + bit
            for i in range(8)
            for bit in range(32)
            if self.get(base + 0x10 * i) >> bit & 1
        }


@pytest.fixture
def apic() -> Apic:
    """A local APIC that its driver has enabled, with spurious vector 0xFF."""
    apic = Apic()
    apic.put(SVR, ENABLED)
    return apic


def test_a_reset_leaves_the_apic_disabled_and_the_pic_wired_through() -> None:
    apic = Apic()

    assert apic.get(0x20) == 0
    assert apic.get(0x30) == 0x0005_0014
    assert (apic.get(SVR), apic.get(DFR), apic.get(LDR)) == (0xFF, 0xFFFF_FFFF, 0)
    assert (apic.get(LVT_LINT0), apic.get(LVT_LINT1)) == (EXTINT, NMI)
    assert (apic.get(LVT_TIMER), apic.get(LVT_ERROR)) == (MASKED, MASKED)


def test_registers_keep_only_the_bits_they_have(apic: Apic) -> None:
    expected = {
        TPR: 0xFF,
        LDR: 0xFF00_0000,
        DFR: 0xFFFF_FFFF,
        SVR: 0x1FF,
        ICR_HIGH: 0xFF00_0000,
        LVT_TIMER: 0x0003_00FF,
        LVT_LINT0: 0x0001_A7FF,
        LVT_LINT1: 0x0001_A7FF,
        LVT_ERROR: 0x0001_00FF,
        INITIAL: 0xFFFF_FFFF,
        DIVIDE: 0xB,
    }
    for register in expected:
        apic.put(register, 0xFFFF_FFFF)

    assert {register: apic.get(register) for register in expected} == expected


def test_a_vector_goes_from_request_to_service_to_nowhere(apic: Apic) -> None:
    apic.send(0x41)
    assert (apic.bits(IRR), apic.bits(ISR)) == ({0x41}, set())

    assert apic.apic.acknowledge() == 0x41
    assert (apic.bits(IRR), apic.bits(ISR)) == (set(), {0x41})
    apic.put(EOI, 0)

    assert apic.bits(ISR) == set()


def test_the_highest_vector_comes_first(apic: Apic) -> None:
    apic.send(0x41, 0xE0, 0x92)

    assert apic.apic.request() == 0xE0


def test_a_higher_class_interrupts_a_lower_one_in_service(apic: Apic) -> None:
    apic.send(0x41)
    apic.apic.acknowledge()

    apic.send(0x51)

    assert apic.apic.request() == 0x51


def test_a_vector_of_the_class_in_service_waits_for_the_end_of_interrupt(apic: Apic) -> None:
    apic.send(0x41)
    apic.apic.acknowledge()
    apic.send(0x4F)
    assert apic.apic.request() is None

    apic.put(EOI, 0)

    assert apic.apic.request() == 0x4F


def test_nested_interrupts_end_from_the_highest_down(apic: Apic) -> None:
    for vector in (0x41, 0x51, 0x61):
        apic.send(vector)
        apic.apic.acknowledge()

    seen = []
    for _ in range(3):
        apic.put(EOI, 0)
        seen.append(apic.bits(ISR))

    assert seen == [{0x41, 0x51}, {0x41}, set()]


def test_the_task_priority_holds_back_its_class_and_those_below(apic: Apic) -> None:
    apic.send(0x41)

    apic.put(TPR, 0x40)
    assert apic.apic.request() is None
    apic.put(TPR, 0x3F)

    assert apic.apic.request() == 0x41


def test_the_processor_priority_is_the_higher_of_task_and_service(apic: Apic) -> None:
    apic.send(0x52)
    apic.apic.acknowledge()

    found = []
    for priority in (0x00, 0x4F, 0x53, 0x61):
        apic.put(TPR, priority)
        found.append(apic.get(PPR))

    assert found == [0x50, 0x50, 0x53, 0x61]


def test_the_same_vector_twice_is_one_interrupt(apic: Apic) -> None:
    assert apic.send(0x41, 0x41) == [True, True]

    apic.apic.acknowledge()
    apic.put(EOI, 0)

    assert apic.apic.request() is None


def test_an_end_of_interrupt_is_broadcast_for_levels_only(apic: Apic) -> None:
    apic.send(0x41, LEVEL | 0x51)
    assert apic.bits(TMR) == {0x51}
    for _ in range(2):
        apic.apic.acknowledge()
        apic.put(EOI, 0)

    assert apic.ended == [0x51]


def test_an_end_of_interrupt_with_nothing_in_service_does_nothing(apic: Apic) -> None:
    apic.put(EOI, 0)

    assert apic.ended == []


def test_a_request_that_has_gone_leaves_the_spurious_vector_with_nothing_in_service(
    apic: Apic,
) -> None:
    apic.put(SVR, 0x1EF)
    apic.send(0x41)
    apic.put(TPR, 0xF0)

    assert apic.apic.acknowledge() == 0xEF
    assert apic.bits(ISR) == set()


def test_a_disabled_apic_takes_nmis_only() -> None:
    apic = Apic()

    assert apic.send(0x41, LOWEST | 0x41, EXTINT, NMI) == [False, False, False, True]
    assert apic.apic.nmi


def test_disabling_masks_every_lvt_entry_and_keeps_what_is_requested(apic: Apic) -> None:
    apic.put(LVT_TIMER, 0x41)
    apic.send(0x51)

    apic.put(SVR, 0xFF)
    apic.put(LVT_ERROR, 0x61)

    assert all(apic.get(LVT_TIMER + 0x10 * i) & MASKED for i in range(6))
    assert apic.apic.request() == 0x51


def test_enabling_and_readdressing_let_the_ioapic_try_again(apic: Apic) -> None:
    before = apic.reconfigured

    for register in (SVR, LDR, DFR):
        apic.put(register, ENABLED)

    assert apic.reconfigured == before + 3


@pytest.mark.parametrize(
    ("dfr", "message", "is_taken"),
    [
        (0xFFFF_FFFF, 0x00 << 56, True),
        (0xFFFF_FFFF, 0x01 << 56, False),
        (0xFFFF_FFFF, 0xFF << 56, True),
        (0xFFFF_FFFF, 0x12 << 56 | LOGICAL, True),
        (0xFFFF_FFFF, 0x0D << 56 | LOGICAL, False),
        (0x0FFF_FFFF, 0x13 << 56 | LOGICAL, True),
        (0x0FFF_FFFF, 0x23 << 56 | LOGICAL, False),
        (0x0FFF_FFFF, 0x1D << 56 | LOGICAL, False),
        (0x0FFF_FFFF, 0xFF << 56 | LOGICAL, True),
    ],
)
def test_a_message_is_taken_by_whom_it_is_addressed_to(
    apic: Apic, dfr: int, message: int, is_taken: bool
) -> None:
    apic.put(LDR, 0x12 << 24)
    apic.put(DFR, dfr)

    assert apic.send(message | 0x41) == [is_taken]


@pytest.mark.parametrize(
    ("high", "low", "vectors"),
    [
        (0, 0x41, {0x41}),
        (0, LOWEST | 0x41, {0x41}),
        (0, SELF | 0x41, {0x41}),
        (0, ALL | LEVEL | 0x4000 | 0x41, {0x41}),
        (0, OTHERS | 0x41, set()),
        (1 << 24, 0x41, set()),
        (1 << 24, LOGICAL | 0x41, set()),
        (0xFF << 24, 0x41, {0x41}),
        (0, SMI | 0x41, set()),
        (0, INIT, set()),
        (0, STARTUP | 0x41, set()),
        (0, SELF | EXTINT | 0x41, set()),
    ],
)
def test_ipis_reach_this_cpu_or_nobody(apic: Apic, high: int, low: int, vectors: set[int]) -> None:
    apic.put(ICR_HIGH, high)
    apic.put(ICR, low)

    assert (apic.bits(IRR), apic.bits(TMR)) == (vectors, set())
    assert apic.get(ICR) == low
    assert not apic.apic.wants_inta()


def test_a_cpu_may_send_itself_an_nmi(apic: Apic) -> None:
    apic.put(ICR, NMI)

    assert apic.apic.nmi


def test_the_pic_goes_through_lint0_whatever_the_priorities(apic: Apic) -> None:
    apic.put(TPR, 0xFF)
    apic.put(LVT_LINT0, EXTINT)
    apic.apic.set_lint0(True)
    assert apic.apic.wants_inta()

    apic.put(LVT_LINT0, EXTINT | MASKED)

    assert not apic.apic.wants_inta()


def test_lint0_in_fixed_mode_is_an_interrupt_at_each_edge(apic: Apic) -> None:
    apic.put(LVT_LINT0, 0x41)
    apic.apic.set_lint0(True)
    apic.apic.acknowledge()
    apic.put(EOI, 0)

    apic.apic.set_lint0(True)
    assert apic.apic.request() is None
    apic.apic.set_lint0(False)
    apic.apic.set_lint0(True)

    assert apic.apic.request() == 0x41
    assert not apic.apic.wants_inta()


def test_lint0_in_nmi_mode_is_an_nmi(apic: Apic) -> None:
    apic.put(LVT_LINT0, NMI)

    apic.apic.set_lint0(True)

    assert apic.apic.nmi


def test_an_extint_message_is_answered_once(apic: Apic) -> None:
    apic.put(LVT_LINT0, MASKED)
    apic.send(EXTINT)
    assert apic.apic.wants_inta()

    apic.apic.acknowledge_extint()

    assert not apic.apic.wants_inta()


def test_the_timer_interrupts_with_its_vector(apic: Apic) -> None:
    apic.put(LVT_TIMER, 0xEC)
    apic.put(DIVIDE, 0b1011)
    apic.put(INITIAL, 1000)
    apic.now = 39_999
    apic.apic.timer.tick(apic.now)
    assert (apic.apic.request(), apic.get(CURRENT)) == (None, 1)

    apic.now = 40_000
    apic.apic.timer.tick(apic.now)

    assert (apic.apic.request(), apic.get(CURRENT)) == (0xEC, 0)


def test_the_timer_becomes_periodic_by_its_lvt_entry(apic: Apic) -> None:
    apic.put(LVT_TIMER, PERIODIC | 0xEC)
    apic.put(INITIAL, 1_000_000)

    apic.now = 80_000_000
    apic.apic.timer.tick(apic.now)

    assert apic.apic.timer.due == 160_000_000


@pytest.mark.parametrize(
    ("register", "value", "error"),
    [(ICR, 0x0F, 0x20), (0x40, 0, 0x80)],
)
def test_the_guests_mistakes_are_in_esr_once_it_is_written(
    apic: Apic, register: int, value: int, error: int
) -> None:
    apic.put(register, value)
    assert apic.get(ESR) == 0

    apic.put(ESR, 0)
    assert apic.get(ESR) == error
    apic.put(ESR, 0)

    assert apic.get(ESR) == 0


def test_a_message_with_a_vector_of_an_exception_is_an_error(apic: Apic) -> None:
    assert apic.send(0x0F) == [False]

    apic.put(ESR, 0)
    assert apic.get(ESR) == 0x40


def test_an_error_interrupts_once_until_esr_is_written(apic: Apic) -> None:
    apic.put(LVT_ERROR, 0xFE)
    apic.get(0x40)
    assert apic.apic.acknowledge() == 0xFE
    apic.put(EOI, 0)

    apic.get(0x40)
    assert apic.apic.request() is None
    apic.put(ESR, 0)
    apic.get(0x40)

    assert apic.apic.request() == 0xFE


def test_an_error_whose_own_vector_is_an_error_ends(apic: Apic) -> None:
    apic.put(LVT_ERROR, 0x01)

    apic.get(0x40)
    apic.put(ESR, 0)

    assert apic.get(ESR) == 0xC0
