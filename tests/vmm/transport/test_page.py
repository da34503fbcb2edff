"""The register page: memory the guest may read at any moment, so never half changed."""

import pytest

from protocol.virtio import Mmio
from tests.support.fake_vm import FakeVm
from vmm.transport.page import CONFIG_SIZE, RegisterPage


@pytest.fixture
def vm() -> FakeVm:
    return FakeVm()


def test_the_page_is_shown_read_only(vm: FakeVm) -> None:
    RegisterPage(vm, 0xA00000, 8)

    assert vm.events == [("map", 8, True)]


def test_one_word_is_stored_in_place_and_raises_the_generation(vm: FakeVm) -> None:
    page = RegisterPage(vm, 0xA00000, 8)
    vm.events.clear()

    assert page.set_config(b"\x01\x02")

    assert page.config(4) == b"\x01\x02\0\0"
    assert page.load(Mmio.CONFIG_GENERATION) == 1
    assert vm.events == []


def test_a_wider_change_takes_the_page_away_meanwhile(vm: FakeVm) -> None:
    page = RegisterPage(vm, 0xA00000, 8)
    vm.events.clear()

    assert page.set_config(b"\x01" * 8)

    assert vm.events == [("unmap", 8), ("map", 8, True)]
    assert page.load(Mmio.CONFIG_GENERATION) == 1


def test_what_did_not_change_changes_nothing(vm: FakeVm) -> None:
    page = RegisterPage(vm, 0xA00000, 8)
    page.set_config(b"\x01" * 8)
    vm.events.clear()

    assert not page.set_config(b"\x01" * 8)

    assert page.load(Mmio.CONFIG_GENERATION) == 1
    assert vm.events == []


def test_a_configuration_larger_than_its_place_is_cut(vm: FakeVm) -> None:
    page = RegisterPage(vm, 0xA00000, 8)

    page.set_config(b"\x07" * 5000)

    assert page.config(CONFIG_SIZE) == b"\x07" * CONFIG_SIZE


def test_without_a_slot_nothing_is_mapped_and_reads_are_served(vm: FakeVm) -> None:
    page = RegisterPage(vm, 0xA00000, None)
    page.store(Mmio.STATUS, 0x0F)

    assert vm.events == []
    assert page.read(Mmio.STATUS, 4) == 0x0F
    assert page.read(Mmio.STATUS, 1) == 0x0F


def test_a_page_that_was_closed_takes_what_a_device_still_tells(vm: FakeVm) -> None:
    page = RegisterPage(vm, 0xA00000, 8)
    page.close()
    vm.events.clear()

    assert page.set_config(b"\x01" * 8)

    assert vm.events == []
