"""The two 8259A: initialisation, priorities, ends of interrupts, cascade, spurious vectors."""

from __future__ import annotations

import pytest

from vmm.interrupts.pic import Pic8259, PicPair

COMMAND, DATA = 0, 1
EOI, READ_IRR, READ_ISR = 0x20, 0x0A, 0x0B
MASTER_BASE, SLAVE_BASE = 0x20, 0x28


class Pair:
    """Two chips, and how their output moved."""

    def __init__(self) -> None:
        self.intr: list[bool] = []
        self.pics = PicPair(self.intr.append)

    def raise_irq(self, *irqs: int) -> None:
        for irq in irqs:
            self.pics.set_line(irq, True)
            self.pics.set_line(irq, False)

    def is_requested(self) -> bool:
        return bool(self.intr) and self.intr[-1]

    def isr(self, chip: Pic8259) -> int:
        chip.write(COMMAND, 1, READ_ISR)
        return chip.read(COMMAND, 1)

    def initialise(self, icw4: int = 0x01) -> None:
        """As Linux does it (arch/x86/kernel/i8259.c, init_8259A), then all unmasked."""
        for chip, base, icw3 in (
            (self.pics.master, MASTER_BASE, 0x04),
            (self.pics.slave, SLAVE_BASE, 0x02),
        ):
            chip.write(COMMAND, 1, 0x11)
            for value in (base, icw3, icw4, 0x00):
                chip.write(DATA, 1, value)


@pytest.fixture
def pair() -> Pair:
    pair = Pair()
    pair.initialise()
    return pair


def test_an_edge_raises_the_output_until_it_is_acknowledged(pair: Pair) -> None:
    pair.raise_irq(4)

    assert pair.pics.vector() == MASTER_BASE + 4
    assert pair.pics.acknowledge() == MASTER_BASE + 4
    assert pair.intr == [True, False]
    assert pair.isr(pair.pics.master) == 1 << 4


def test_the_lowest_line_is_served_first(pair: Pair) -> None:
    pair.raise_irq(7, 1, 4)

    assert pair.pics.acknowledge() == MASTER_BASE + 1


def test_a_higher_priority_interrupts_a_lower_one_in_service(pair: Pair) -> None:
    pair.raise_irq(4)
    pair.pics.acknowledge()

    pair.raise_irq(5)
    assert not pair.is_requested()
    pair.raise_irq(1)

    assert pair.pics.acknowledge() == MASTER_BASE + 1


def test_an_unspecific_end_of_interrupt_ends_the_highest_in_service(pair: Pair) -> None:
    pair.raise_irq(4)
    pair.pics.acknowledge()
    pair.raise_irq(1)
    pair.pics.acknowledge()

    pair.pics.master.write(COMMAND, 1, EOI)

    assert pair.isr(pair.pics.master) == 1 << 4


def test_a_specific_end_of_interrupt_ends_the_one_that_it_names(pair: Pair) -> None:
    pair.raise_irq(4)
    pair.pics.acknowledge()
    pair.raise_irq(1)
    pair.pics.acknowledge()

    pair.pics.master.write(COMMAND, 1, 0x60 | 4)

    assert pair.isr(pair.pics.master) == 1 << 1


def test_an_end_of_interrupt_with_nothing_in_service_does_nothing(pair: Pair) -> None:
    pair.pics.master.write(COMMAND, 1, EOI)

    assert pair.isr(pair.pics.master) == 0


def test_a_line_of_the_slave_comes_through_the_cascade(pair: Pair) -> None:
    pair.raise_irq(10)

    assert pair.pics.acknowledge() == SLAVE_BASE + 2
    assert pair.isr(pair.pics.master) == 1 << 2
    assert pair.isr(pair.pics.slave) == 1 << 2


def test_the_slave_ranks_between_irq_1_and_irq_3(pair: Pair) -> None:
    pair.raise_irq(3, 15, 1)

    found = []
    for _ in range(3):
        found.append(pair.pics.acknowledge())
        pair.pics.slave.write(COMMAND, 1, EOI)
        pair.pics.master.write(COMMAND, 1, EOI)

    assert found == [MASTER_BASE + 1, SLAVE_BASE + 7, MASTER_BASE + 3]


def test_two_lines_of_the_slave_come_one_after_the_other(pair: Pair) -> None:
    pair.raise_irq(9, 11)

    first = pair.pics.acknowledge()
    pair.pics.slave.write(COMMAND, 1, EOI)
    pair.pics.master.write(COMMAND, 1, EOI)

    assert (first, pair.pics.acknowledge()) == (SLAVE_BASE + 1, SLAVE_BASE + 3)


def test_the_fully_nested_master_lets_a_higher_line_of_the_slave_through() -> None:
    pair = Pair()
    pair.initialise(icw4=0x11)
    pair.raise_irq(12)
    pair.pics.acknowledge()

    pair.raise_irq(8)

    assert pair.pics.acknowledge() == SLAVE_BASE


def test_a_masked_line_waits_for_its_mask(pair: Pair) -> None:
    pair.pics.master.write(DATA, 1, 1 << 4)

    pair.raise_irq(4)
    assert not pair.is_requested()
    pair.pics.master.write(DATA, 1, 0)

    assert pair.is_requested()


def test_the_mask_reads_back(pair: Pair) -> None:
    """How Linux finds out that the chips are there (probe_8259A)."""
    pair.pics.slave.write(DATA, 1, 0xFF)
    pair.pics.master.write(DATA, 1, 0xFB)

    assert pair.pics.master.read(DATA, 1) == 0xFB


def test_a_level_is_requested_again_after_its_end_of_interrupt(pair: Pair) -> None:
    pair.pics.elcr.write(1, 1, 1 << 3)
    pair.pics.set_line(11, True)
    assert pair.pics.acknowledge() == SLAVE_BASE + 3

    pair.pics.slave.write(COMMAND, 1, EOI)
    pair.pics.master.write(COMMAND, 1, EOI)

    assert pair.pics.acknowledge() == SLAVE_BASE + 3


def test_an_edge_that_stays_high_is_one_interrupt(pair: Pair) -> None:
    pair.pics.set_line(4, True)
    pair.pics.acknowledge()

    pair.pics.master.write(COMMAND, 1, EOI)
    pair.pics.set_line(4, True)

    assert not pair.is_requested()


def test_a_level_that_vanishes_leaves_the_spurious_irq_7(pair: Pair) -> None:
    pair.pics.elcr.write(0, 1, 1 << 5)
    pair.pics.set_line(5, True)
    pair.pics.set_line(5, False)

    assert pair.pics.acknowledge() == MASTER_BASE + 7
    assert pair.isr(pair.pics.master) == 0


def test_a_request_of_the_slave_that_vanishes_leaves_the_spurious_irq_15(pair: Pair) -> None:
    pair.pics.elcr.write(1, 1, 1 << 3)
    pair.pics.set_line(11, True)
    pair.pics.set_line(11, False)

    assert pair.pics.acknowledge() == SLAVE_BASE + 7
    assert pair.isr(pair.pics.slave) == 0
    assert pair.isr(pair.pics.master) == 1 << 2


def test_elcr_has_no_bits_for_the_lines_that_are_always_edges(pair: Pair) -> None:
    pair.pics.elcr.write(0, 2, 0xFFFF)

    assert pair.pics.elcr.read(0, 2) == 0xDEF8


def test_in_auto_eoi_mode_nothing_stays_in_service() -> None:
    pair = Pair()
    pair.initialise(icw4=0x03)
    pair.raise_irq(4, 5)

    assert [pair.pics.acknowledge() for _ in range(2)] == [MASTER_BASE + 4, MASTER_BASE + 5]
    assert pair.isr(pair.pics.master) == 0


def test_rotation_in_auto_eoi_mode_puts_each_line_behind_the_others() -> None:
    pair = Pair()
    pair.initialise(icw4=0x03)
    pair.pics.master.write(COMMAND, 1, 0x80)
    pair.raise_irq(4)
    pair.pics.acknowledge()

    pair.raise_irq(4, 7)

    assert pair.pics.acknowledge() == MASTER_BASE + 7


def test_rotation_on_end_of_interrupt_puts_the_line_behind_the_others(pair: Pair) -> None:
    pair.raise_irq(4)
    pair.pics.acknowledge()
    pair.pics.master.write(COMMAND, 1, 0xA0)

    pair.raise_irq(4, 5)

    assert pair.pics.acknowledge() == MASTER_BASE + 5


def test_the_lowest_priority_may_be_given_to_a_line(pair: Pair) -> None:
    pair.pics.master.write(COMMAND, 1, 0xC0 | 3)

    pair.raise_irq(3, 4)

    assert pair.pics.acknowledge() == MASTER_BASE + 4


def test_special_mask_mode_lets_lower_lines_through_a_masked_one_in_service(pair: Pair) -> None:
    pair.raise_irq(3)
    pair.pics.acknowledge()
    pair.pics.master.write(DATA, 1, 1 << 3)
    pair.raise_irq(6)
    assert not pair.is_requested()

    pair.pics.master.write(COMMAND, 1, 0x68)

    assert pair.is_requested()


def test_initialisation_forgets_edges_masks_and_what_is_in_service(pair: Pair) -> None:
    pair.raise_irq(3)
    pair.pics.acknowledge()
    pair.pics.master.write(DATA, 1, 0x80)
    pair.raise_irq(4)

    pair.initialise()

    assert not pair.is_requested()
    assert pair.isr(pair.pics.master) == 0
    assert pair.pics.master.read(DATA, 1) == 0


def test_a_single_chip_without_icw4_is_ready_after_icw2(pair: Pair) -> None:
    pair.pics.master.write(COMMAND, 1, 0x12)
    pair.pics.master.write(DATA, 1, 0x40)
    pair.pics.master.write(DATA, 1, 0xFE)

    pair.raise_irq(1, 0)

    assert pair.pics.master.read(DATA, 1) == 0xFE
    assert pair.pics.acknowledge() == 0x40


def test_the_request_register_shows_what_waits(pair: Pair) -> None:
    pair.pics.master.write(DATA, 1, 0xFF)
    pair.raise_irq(1, 6)

    pair.pics.master.write(COMMAND, 1, READ_IRR)

    assert pair.pics.master.read(COMMAND, 1) == 1 << 1 | 1 << 6


def test_irq_2_is_no_line(pair: Pair) -> None:
    pair.raise_irq(2)

    assert pair.intr == []
