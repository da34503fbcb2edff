"""The interrupt controller, as a kernel's driver uses it and as no driver would."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.interrupts import gicv2 as regs
from vmm.interrupts.gicv2 import SPURIOUS, Gic

PPI, SPI = 30, 40


class Driver:
    """The guest's half: words at offsets, and the few things that a driver does with them."""

    def __init__(self) -> None:
        self.lines: list[bool] = []
        self.gic = Gic(self.lines.append)
        self.set_irq = self.gic.set_irq

    def dist(self, offset: int, value: int | None = None, size: int = 4) -> int:
        if value is None:
            return self.gic.distributor.read(offset, size)
        self.gic.distributor.write(offset, size, value)
        return 0

    def cpu(self, offset: int, value: int | None = None, size: int = 4) -> int:
        if value is None:
            return self.gic.cpu_interface.read(offset, size)
        self.gic.cpu_interface.write(offset, size, value)
        return 0

    def set_bit(self, bank: int, intid: int) -> None:
        self.dist(bank + 4 * (intid // 32), 1 << intid % 32)

    def bit(self, bank: int, intid: int) -> int:
        return self.dist(bank + 4 * (intid // 32)) >> intid % 32 & 1

    def priority(self, intid: int, value: int) -> None:
        self.dist(regs.GICD_IPRIORITYR + intid, value, 1)

    def make_edge(self, intid: int) -> None:
        self.dist(regs.GICD_ICFGR + 4 * (intid // 16), 2 << 2 * (intid % 16))

    def acknowledge(self) -> int:
        return self.cpu(regs.GICC_IAR)

    def end(self, intid: int) -> None:
        self.cpu(regs.GICC_EOIR, intid)


@pytest.fixture
def driver() -> Driver:
    """One that has set the controller up as Linux does: all on, one priority for all."""
    driver = Driver()
    driver.dist(regs.GICD_CTLR, 1)
    driver.cpu(regs.GICC_PMR, 0xF0)
    driver.cpu(regs.GICC_CTLR, 1)
    for word in range(2):
        driver.dist(regs.GICD_ISENABLER + 4 * word, 0xFFFF_FFFF)
    for word in range(16):
        driver.dist(regs.GICD_IPRIORITYR + 4 * word, 0xA0A0_A0A0)
    return driver


def test_it_says_what_it_is() -> None:
    driver = Driver()

    assert driver.dist(regs.GICD_TYPER) == 1
    assert driver.dist(regs.GICD_PIDR2) >> 4 & 0xF == 2
    assert driver.cpu(regs.GICC_IIDR) >> 16 & 0xF == 2


def test_a_level_interrupts_until_it_is_low(driver: Driver) -> None:
    driver.set_irq(SPI, True)
    assert driver.gic.pending()

    assert driver.acknowledge() == SPI
    assert not driver.gic.pending()
    driver.end(SPI)
    assert driver.gic.pending()

    assert driver.acknowledge() == SPI
    driver.set_irq(SPI, False)
    driver.end(SPI)
    assert not driver.gic.pending()
    assert driver.lines == [True, False, True, False]


def test_a_level_that_falls_before_it_is_seen_is_gone(driver: Driver) -> None:
    driver.set_irq(SPI, True)
    driver.set_irq(SPI, False)

    assert not driver.gic.pending()
    assert driver.acknowledge() == SPURIOUS


def test_an_edge_is_kept_and_interrupts_once(driver: Driver) -> None:
    driver.make_edge(SPI)
    driver.set_irq(SPI, True)
    driver.set_irq(SPI, False)

    assert driver.acknowledge() == SPI
    driver.end(SPI)
    assert not driver.gic.pending()


def test_an_edge_while_one_is_handled_interrupts_again(driver: Driver) -> None:
    driver.make_edge(SPI)
    driver.set_irq(SPI, True)
    driver.acknowledge()

    driver.set_irq(SPI, False)
    driver.set_irq(SPI, True)
    assert (driver.bit(regs.GICD_ISPENDR, SPI), driver.bit(regs.GICD_ISACTIVER, SPI)) == (1, 1)
    driver.end(SPI)

    assert driver.acknowledge() == SPI


def test_a_line_that_stays_high_is_one_edge(driver: Driver) -> None:
    driver.make_edge(SPI)
    driver.set_irq(SPI, True)
    driver.acknowledge()
    driver.set_irq(SPI, True)

    driver.end(SPI)

    assert not driver.gic.pending()


@pytest.mark.parametrize("sgir", [0x0001_0003, 0x0200_0003])
def test_the_guest_interrupts_itself(driver: Driver, sgir: int) -> None:
    driver.dist(regs.GICD_SGIR, sgir)

    assert driver.acknowledge() == 3
    driver.end(3)
    assert not driver.gic.pending()


@pytest.mark.parametrize("sgir", [0x0002_0003, 0x0100_0003, 0x0300_0003])
def test_an_sgi_for_others_goes_to_nobody(driver: Driver, sgir: int) -> None:
    driver.dist(regs.GICD_SGIR, sgir)

    assert not driver.gic.pending()


def test_sgis_are_set_and_cleared_by_their_own_registers(driver: Driver) -> None:
    driver.dist(regs.GICD_SPENDSGIR + 5, 1, 1)
    assert (driver.dist(regs.GICD_CPENDSGIR + 4), driver.bit(regs.GICD_ISPENDR, 5)) == (0x100, 1)

    driver.set_bit(regs.GICD_ICPENDR, 5)
    assert driver.bit(regs.GICD_ISPENDR, 5) == 1
    driver.dist(regs.GICD_CPENDSGIR + 5, 1, 1)

    assert not driver.gic.pending()


def test_a_private_interrupt_has_a_level_whatever_it_is_configured_to(driver: Driver) -> None:
    driver.make_edge(PPI)

    assert driver.dist(regs.GICD_ICFGR + 4) == 0
    assert driver.dist(regs.GICD_ICFGR) == 0xAAAA_AAAA
    driver.set_irq(PPI, True)
    assert driver.acknowledge() == PPI


def test_the_highest_priority_comes_first_and_then_the_lowest_number(driver: Driver) -> None:
    driver.priority(50, 0x80)
    for intid in (60, 50, 33):
        driver.set_irq(intid, True)

    assert driver.cpu(regs.GICC_HPPIR) == 50
    handled = [driver.acknowledge()]
    driver.set_irq(handled[0], False)
    driver.end(50)
    handled.append(driver.acknowledge())

    assert handled == [50, 33]


def test_only_a_higher_priority_interrupts_a_handler(driver: Driver) -> None:
    driver.set_irq(SPI, True)
    driver.acknowledge()
    assert driver.cpu(regs.GICC_RPR) == 0xA0

    driver.set_irq(41, True)
    assert not driver.gic.pending()
    driver.priority(42, 0x98)
    driver.set_irq(42, True)
    assert driver.gic.pending()

    assert (driver.acknowledge(), driver.cpu(regs.GICC_RPR)) == (42, 0x98)
    driver.end(42)
    assert driver.cpu(regs.GICC_RPR) == 0xA0
    driver.end(SPI)
    assert driver.cpu(regs.GICC_RPR) == 0xFF


def test_the_binary_point_decides_what_is_higher(driver: Driver) -> None:
    # Bits 7 to 5 decide: 0x80 to 0x9F are alike.
    driver.cpu(regs.GICC_BPR, 4)
    driver.priority(SPI, 0x98)
    driver.set_irq(SPI, True)
    driver.acknowledge()

    driver.priority(42, 0x80)
    driver.set_irq(42, True)
    assert (driver.cpu(regs.GICC_HPPIR), driver.gic.pending()) == (42, False)
    driver.priority(42, 0x78)
    assert driver.gic.pending()


def test_the_binary_point_is_2_or_more(driver: Driver) -> None:
    driver.cpu(regs.GICC_BPR, 0)

    assert driver.cpu(regs.GICC_BPR) == 2


def test_a_priority_at_the_mask_is_not_heard(driver: Driver) -> None:
    driver.set_irq(SPI, True)

    driver.cpu(regs.GICC_PMR, 0xA0)
    assert not driver.gic.pending()
    assert driver.acknowledge() == SPURIOUS
    driver.cpu(regs.GICC_PMR, 0xA8)
    assert driver.gic.pending()


@pytest.mark.parametrize("switch", ["distributor", "cpu interface", "interrupt"])
def test_what_is_off_is_not_heard(driver: Driver, switch: str) -> None:
    driver.set_irq(SPI, True)

    if switch == "distributor":
        driver.dist(regs.GICD_CTLR, 0)
    elif switch == "cpu interface":
        driver.cpu(regs.GICC_CTLR, 0)
    else:
        driver.set_bit(regs.GICD_ICENABLER, SPI)

    assert not driver.gic.pending()
    assert driver.acknowledge() == SPURIOUS
    assert driver.bit(regs.GICD_ISPENDR, SPI) == 1


def test_the_guest_sets_and_clears_what_is_pending(driver: Driver) -> None:
    driver.set_bit(regs.GICD_ISPENDR, SPI)
    assert driver.acknowledge() == SPI
    driver.end(SPI)
    assert not driver.gic.pending()

    driver.set_bit(regs.GICD_ISPENDR, SPI)
    driver.set_bit(regs.GICD_ICPENDR, SPI)
    assert not driver.gic.pending()


def test_clearing_does_not_clear_a_level(driver: Driver) -> None:
    driver.set_irq(SPI, True)

    driver.set_bit(regs.GICD_ICPENDR, SPI)

    assert driver.gic.pending()


def test_the_guest_sets_and_clears_what_is_active(driver: Driver) -> None:
    driver.set_irq(SPI, True)

    driver.set_bit(regs.GICD_ISACTIVER, SPI)
    assert not driver.gic.pending()
    driver.set_bit(regs.GICD_ICACTIVER, SPI)
    assert driver.gic.pending()


def test_an_end_can_be_in_two_steps(driver: Driver) -> None:
    driver.cpu(regs.GICC_CTLR, regs.CTLR_ENABLE | regs.CTLR_EOIMODE)
    driver.set_irq(SPI, True)
    driver.acknowledge()

    driver.end(SPI)
    assert driver.cpu(regs.GICC_RPR) == 0xFF
    assert not driver.gic.pending()
    driver.cpu(regs.GICC_DIR, SPI)

    assert driver.gic.pending()


def test_an_end_of_nothing_changes_nothing(driver: Driver) -> None:
    driver.set_irq(SPI, True)
    driver.acknowledge()

    for intid in (SPURIOUS, 41, 200, 0xFFFF_FFFF):
        driver.end(intid)
        driver.cpu(regs.GICC_DIR, intid)

    assert driver.cpu(regs.GICC_RPR) == 0xA0
    assert driver.bit(regs.GICD_ISACTIVER, SPI) == 1


def test_priorities_are_bytes_of_five_bits(driver: Driver) -> None:
    driver.dist(regs.GICD_IPRIORITYR + 36, 0xFF12_34FF)
    driver.priority(37, 0x47)

    assert driver.dist(regs.GICD_IPRIORITYR + 36) == 0xF810_40F8
    assert driver.dist(regs.GICD_IPRIORITYR + 37, size=1) == 0x40


def test_registers_of_one_cpu_and_without_groups_are_zero(driver: Driver) -> None:
    for offset in (0x080, 0x084, 0x800, 0x820, 0xC80, 0xFFC):
        driver.dist(offset, 0xFFFF_FFFF)
        assert driver.dist(offset) == 0


def test_there_are_wires_for_ppis_and_spis_only(driver: Driver) -> None:
    for intid in (-1, 0, 15, 64, 1023):
        with pytest.raises(ValueError, match="no wire"):
            driver.set_irq(intid, True)


Access = st.tuples(
    st.booleans(), st.integers(0, 0x1FFF), st.integers(1, 8), st.integers(0, (1 << 64) - 1)
)


@given(st.lists(st.tuples(Access, st.integers(16, 63), st.booleans()), max_size=60))
def test_no_access_of_any_size_is_too_much(
    steps: list[tuple[tuple[bool, int, int, int], int, bool]],
) -> None:
    driver = Driver()
    for (is_distributor, offset, size, value), intid, level in steps:
        device = driver.gic.distributor if is_distributor else driver.gic.cpu_interface
        device.write(offset, size, value & (1 << 8 * size) - 1)
        driver.set_irq(intid, level)
        assert 0 <= device.read(offset, size) < 1 << 8 * size

    assert driver.gic.pending() == (driver.lines[-1] if driver.lines else False)
    assert all(one != other for one, other in zip(driver.lines, driver.lines[1:], strict=False))


def test_edges_from_many_threads_are_all_heard(driver: Driver) -> None:
    for intid in range(32, 64):
        driver.make_edge(intid)
    for word in range(2):
        driver.dist(regs.GICD_ICFGR + 8 + 4 * word, 0xAAAA_AAAA)
    heard: list[int] = []

    def ring(intids: range) -> None:
        for intid in intids:
            driver.set_irq(intid, True)
            driver.set_irq(intid, False)

    threads = [
        threading.Thread(target=ring, args=(range(start, 64, 4),)) for start in range(32, 36)
    ]
    for thread in threads:
        thread.start()
    while len(heard) < 32:
        intid = driver.acknowledge()
        if intid != SPURIOUS:
            heard.append(intid)
            driver.end(intid)
    for thread in threads:
        thread.join()

    assert sorted(heard) == list(range(32, 64))
    assert not driver.gic.pending()
