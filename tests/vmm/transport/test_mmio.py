"""virtio-mmio from the driver's side: what section 4.2 says, and what a hostile driver tries."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from protocol.messages import QueueSetup
from protocol.virtio import DeviceId, Feature, Mmio, Status, bit
from tests.support.fake_vm import FakeVm
from vmm.transport.mmio import MmioTransport
from vmm.transport.page import RegisterPage

FEATURES_OK = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK
RUNNING = FEATURES_OK | Status.DRIVER_OK
BLK_SIZE = 6  # a feature of the device's own


@dataclass
class FakeDevice:
    """A device process that does as it is told, or as ``answer`` says."""

    name: str = "blk0"
    device_id: int = DeviceId.BLOCK
    features: int = bit(BLK_SIZE)
    queue_sizes: tuple[int, ...] = (64, 16)
    calls: list[tuple[object, ...]] = field(default_factory=list)
    answer: Callable[[], str | None] = lambda: None

    def start(self, features: int, queues: tuple[QueueSetup, ...]) -> str | None:
        self.calls.append(("start", features, queues))
        return self.answer()

    def stop(self) -> None:
        self.calls.append(("stop",))
        self.answer()

    def forget(self) -> None:
        self.calls.append(("forget",))

    def stop_queue(self, index: int) -> None:
        self.calls.append(("stop_queue", index))
        self.answer()

    def write_config(self, offset: int, data: bytes) -> bytes:
        self.calls.append(("write_config", offset, data))
        self.answer()
        return b"\xcc" * 8


@dataclass
class FakeLine:
    pulses: int = 0

    def pulse(self) -> None:
        self.pulses += 1


class Driver:
    """The guest's side of one transport, register by register."""

    def __init__(self, device: FakeDevice) -> None:
        self.line = FakeLine()
        self.vm = FakeVm()
        self.page = RegisterPage(self.vm, 0xA00000, 8)
        self.transport = MmioTransport(self.page, device, self.line, b"\x11" * 8)

    def read(self, register: int) -> int:
        return self.transport.read(register, 4)

    def write(self, register: int, value: int) -> None:
        self.transport.write(register, 4, value)

    def status(self, status: int) -> int:
        self.write(Mmio.STATUS, status)
        return self.read(Mmio.STATUS)

    def accept(self, features: int) -> int:
        self.status(Status.ACKNOWLEDGE)
        self.status(Status.ACKNOWLEDGE | Status.DRIVER)
        for sel in (0, 1):
            self.write(Mmio.DRIVER_FEATURES_SEL, sel)
            self.write(Mmio.DRIVER_FEATURES, features >> 32 * sel & 0xFFFF_FFFF)
        return self.status(FEATURES_OK)

    def set_up_queue(self, index: int, size: int = 16) -> int:
        self.write(Mmio.QUEUE_SEL, index)
        self.write(Mmio.QUEUE_SIZE, size)
        for register, value in (
            (Mmio.QUEUE_DESC_LOW, 0x1000),
            (Mmio.QUEUE_DESC_HIGH, 0x1),
            (Mmio.QUEUE_DRIVER_LOW, 0x2000),
            (Mmio.QUEUE_DEVICE_LOW, 0x3000),
        ):
            self.write(register, value)
        self.write(Mmio.QUEUE_READY, 1)
        return self.read(Mmio.QUEUE_READY)

    def bring_up(self) -> int:
        self.accept(bit(Feature.VERSION_1))
        self.set_up_queue(0)
        return self.status(RUNNING)


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


@pytest.fixture
def driver(device: FakeDevice) -> Driver:
    return Driver(device)


def test_the_fixed_registers_read_as_the_specification_says(driver: Driver) -> None:
    found = [driver.read(at) for at in (Mmio.MAGIC_VALUE, Mmio.VERSION, Mmio.DEVICE_ID)]

    assert found == [0x74726976, 2, 2]
    assert driver.read(Mmio.SHM_LEN_LOW) == driver.read(Mmio.SHM_BASE_HIGH) == 0xFFFF_FFFF


def test_offered_features_are_read_through_a_window(driver: Driver) -> None:
    words = []
    for sel in (0, 1, 2):
        driver.write(Mmio.DEVICE_FEATURES_SEL, sel)
        words.append(driver.read(Mmio.DEVICE_FEATURES))

    assert words == [bit(BLK_SIZE) | bit(28) | bit(29), 1, 0]


def test_the_straight_way_starts_the_device_with_its_queues(
    driver: Driver, device: FakeDevice
) -> None:
    assert driver.bring_up() == RUNNING

    queue = QueueSetup(0, 16, 0x1_0000_1000, 0x2000, 0x3000)
    assert device.calls == [("start", bit(Feature.VERSION_1), (queue,))]


def test_interrupt_status_says_used_buffer_from_driver_ok_until_reset(driver: Driver) -> None:
    before = driver.read(Mmio.INTERRUPT_STATUS)
    driver.bring_up()
    running = driver.read(Mmio.INTERRUPT_STATUS)
    driver.write(Mmio.INTERRUPT_ACK, 1)
    acknowledged = driver.read(Mmio.INTERRUPT_STATUS)
    driver.status(0)

    assert (before, running, acknowledged) == (0, 1, 1)
    assert driver.read(Mmio.INTERRUPT_STATUS) == 0


def test_reset_returns_when_the_device_is_quiet_and_forgets_everything(
    driver: Driver, device: FakeDevice
) -> None:
    driver.bring_up()

    assert driver.status(0) == 0

    assert device.calls[-1] == ("stop",)
    assert driver.read(Mmio.QUEUE_READY) == 0
    assert driver.bring_up() == RUNNING


def test_what_a_device_says_while_it_is_reset_interrupts_nobody_and_is_there_afterwards(
    driver: Driver, device: FakeDevice
) -> None:
    driver.bring_up()

    def quiet() -> None:
        driver.transport.config_changed(b"\x22" * 8)
        driver.transport.needs_reset("too late")

    device.answer = quiet
    assert driver.status(0) == 0

    assert driver.line.pulses == 0
    assert driver.read(Mmio.CONFIG) == 0x22222222
    assert driver.read(Mmio.INTERRUPT_STATUS) == 0


@pytest.mark.parametrize("features", [0, bit(Feature.VERSION_1) | bit(7), bit(BLK_SIZE)])
def test_features_not_offered_or_without_version_1_are_not_ok(
    driver: Driver, features: int
) -> None:
    assert not driver.accept(features) & Status.FEATURES_OK


def test_features_written_after_features_ok_do_nothing(driver: Driver, device: FakeDevice) -> None:
    driver.accept(bit(Feature.VERSION_1))
    driver.write(Mmio.DRIVER_FEATURES_SEL, 0)
    driver.write(Mmio.DRIVER_FEATURES, bit(BLK_SIZE))
    driver.status(RUNNING)

    assert device.calls == [("start", bit(Feature.VERSION_1), ())]


def test_status_bits_are_cleared_by_reset_only(driver: Driver) -> None:
    driver.bring_up()

    assert driver.status(Status.ACKNOWLEDGE) == RUNNING


@pytest.mark.parametrize("status", [Status.DRIVER, FEATURES_OK, RUNNING, Status.DRIVER_OK])
def test_no_step_is_left_out(driver: Driver, device: FakeDevice, status: int) -> None:
    # The features are not accepted either, so nothing beyond DRIVER can come of it.
    assert not driver.status(status) & (Status.FEATURES_OK | Status.DRIVER_OK)
    assert device.calls == []


def test_failed_can_be_said_at_any_time(driver: Driver) -> None:
    assert driver.status(Status.FAILED) == Status.FAILED


@pytest.mark.parametrize("size", [0, 3, 128, 0xFFFF_FFFF])
def test_a_queue_of_an_illegal_size_never_gets_ready(driver: Driver, size: int) -> None:
    driver.accept(bit(Feature.VERSION_1))

    assert driver.set_up_queue(0, size) == 0


def test_a_queue_is_not_ready_before_features_ok(driver: Driver) -> None:
    assert driver.set_up_queue(0) == 0


def test_queue_registers_rewritten_after_driver_ok_do_nothing(
    driver: Driver, device: FakeDevice
) -> None:
    driver.bring_up()
    driver.set_up_queue(0, 32)
    driver.set_up_queue(1, 16)

    assert driver.read(Mmio.QUEUE_READY) == 0  # of queue 1, which was not ready at DRIVER_OK
    assert len(device.calls) == 1


@pytest.mark.parametrize("index", [2, 0xFFFF, 0xFFFF_FFFF])
def test_a_queue_that_does_not_exist_reads_as_none(driver: Driver, index: int) -> None:
    driver.accept(bit(Feature.VERSION_1))

    assert driver.set_up_queue(index) == 0
    assert driver.read(Mmio.QUEUE_SIZE_MAX) == 0


def test_queue_ready_0_waits_for_the_device(driver: Driver, device: FakeDevice) -> None:
    driver.bring_up()
    driver.write(Mmio.QUEUE_SEL, 0)

    driver.write(Mmio.QUEUE_READY, 0)

    assert device.calls[-1] == ("stop_queue", 0)
    assert driver.read(Mmio.QUEUE_READY) == 0


@pytest.mark.parametrize(
    ("offset", "size"), [(Mmio.STATUS, 1), (Mmio.STATUS, 8), (Mmio.STATUS + 2, 4), (0xFF, 4)]
)
def test_short_wide_and_crooked_register_writes_do_nothing(
    driver: Driver, offset: int, size: int
) -> None:
    driver.transport.write(offset, size, 1)

    assert driver.transport.status == 0
    assert driver.transport.refused == 1


def test_the_drivers_config_write_reaches_the_device_and_interrupts_nobody(
    driver: Driver, device: FakeDevice
) -> None:
    driver.bring_up()

    driver.transport.write(Mmio.CONFIG + 2, 2, 0xBEEF)

    assert device.calls[-1] == ("write_config", 2, b"\xef\xbe")
    assert driver.transport.read(Mmio.CONFIG, 8) == 0xCCCC_CCCC_CCCC_CCCC
    assert driver.line.pulses == 0


def test_a_config_change_shows_interrupts_and_is_acknowledged_apart(driver: Driver) -> None:
    driver.bring_up()

    driver.transport.config_changed(b"\x22" * 8)

    assert driver.read(Mmio.CONFIG) == 0x2222_2222
    assert driver.line.pulses == 1
    assert driver.read(Mmio.INTERRUPT_STATUS) == 3
    driver.write(Mmio.INTERRUPT_ACK, 3)
    assert driver.read(Mmio.INTERRUPT_STATUS) == 1


def test_a_config_change_before_driver_ok_interrupts_nobody(driver: Driver) -> None:
    driver.transport.config_changed(b"\x22" * 8)

    assert driver.read(Mmio.CONFIG) == 0x2222_2222
    assert driver.line.pulses == 0


def test_a_device_that_will_not_start_needs_a_reset(driver: Driver, device: FakeDevice) -> None:
    device.answer = lambda: "a ring outside of RAM"

    assert driver.bring_up() == RUNNING | Status.DEVICE_NEEDS_RESET
    assert driver.line.pulses == 1


def test_needs_reset_cannot_be_cleared_by_the_driver_but_by_reset(driver: Driver) -> None:
    driver.bring_up()
    driver.transport.needs_reset("a broken ring")

    assert driver.status(RUNNING) & Status.DEVICE_NEEDS_RESET
    assert driver.status(0) == 0


def test_every_register_survives_every_value(driver: Driver) -> None:
    for offset in range(0, 0x200, 4):
        for value in (0, 1, 2, 0x7F, 0xFFFF_FFFF):
            driver.write(offset, value)

    driver.status(0)
    assert driver.bring_up() == RUNNING


def test_a_reset_of_the_machine_is_one_by_the_driver(driver: Driver, device: FakeDevice) -> None:
    driver.bring_up()
    driver.transport.needs_reset("it is broken")
    device.calls.clear()

    driver.transport.reset()

    assert device.calls == [("stop",)]
    assert (driver.read(Mmio.STATUS), driver.read(Mmio.INTERRUPT_STATUS)) == (0, 0)
    assert driver.read(Mmio.QUEUE_READY) == 0


def test_a_device_that_no_driver_started_is_not_stopped_at_a_reset(
    driver: Driver, device: FakeDevice
) -> None:
    driver.accept(bit(Feature.VERSION_1))

    driver.transport.reset()

    assert device.calls == [("forget",)]
    assert driver.read(Mmio.STATUS) == 0


def test_after_a_reset_of_the_machine_a_device_interrupts_nobody(driver: Driver) -> None:
    driver.bring_up()
    driver.transport.reset()
    before = driver.line.pulses

    driver.transport.config_changed(b"\x77" * 8)
    driver.transport.needs_reset("it is broken")

    assert driver.line.pulses == before
