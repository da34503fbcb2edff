"""Memory slots: what the guest reaches without an exit, and what it no longer does."""

from __future__ import annotations

import mmap

import pytest

from protocol.errors import HostError
from tests.support.bare import CODE, DEVICE, bare_machine
from vmm.hypervisor.base import Stop

pytestmark = pytest.mark.kvm

READ_WRITE_READ = """
    48 8b 07  # mov rax, [rdi]
    48 89 1f  # mov [rdi], rbx
    48 8b 0f  # mov rcx, [rdi]
    f4        # hlt
"""
BEFORE, AFTER = 0x1122334455667788, 0x99AABBCCDDEEFF00


def page_with(value: int) -> mmap.mmap:
    page = mmap.mmap(-1, 4096)
    page[:8] = value.to_bytes(8, "little")
    return page


def test_ram_is_read_and_written_without_an_exit() -> None:
    with bare_machine(READ_WRITE_READ) as machine:
        page = page_with(BEFORE)
        machine.vm.map_ram(1, DEVICE, memoryview(page))
        machine.start_at(CODE, rdi=DEVICE, rbx=AFTER)

        stop = machine.run()

        regs = machine.vcpu.get_regs()
        assert (stop, machine.bus.accesses) == (Stop.HALTED, [])
        assert (regs.rax, regs.rcx) == (BEFORE, AFTER)
        assert page[:8] == AFTER.to_bytes(8, "little")


def test_read_only_slot_is_read_without_an_exit_and_written_with_one() -> None:
    with bare_machine(READ_WRITE_READ) as machine:
        page = page_with(BEFORE)
        machine.vm.map_ram(1, DEVICE, memoryview(page), read_only=True)
        machine.start_at(CODE, rdi=DEVICE, rbx=AFTER)

        machine.run()

        regs = machine.vcpu.get_regs()
        assert machine.bus.accesses == [("write", DEVICE, 8, AFTER)]
        assert (regs.rax, regs.rcx) == (BEFORE, BEFORE)
        assert page[:8] == BEFORE.to_bytes(8, "little")


def test_read_only_slot_shows_the_guest_what_the_host_changes() -> None:
    with bare_machine(READ_WRITE_READ) as machine:
        page = page_with(BEFORE)
        machine.vm.map_ram(1, DEVICE, memoryview(page), read_only=True)
        machine.start_at(CODE, rdi=DEVICE)
        machine.run()
        page[:8] = AFTER.to_bytes(8, "little")
        machine.start_at(CODE, rdi=DEVICE)

        machine.run()

        assert machine.vcpu.get_regs().rax == AFTER


def test_removed_slot_becomes_mmio() -> None:
    with bare_machine(READ_WRITE_READ) as machine:
        page = page_with(BEFORE)
        machine.vm.map_ram(1, DEVICE, memoryview(page))
        machine.start_at(CODE, rdi=DEVICE)
        machine.run()
        machine.vm.unmap(1)
        machine.start_at(CODE, rdi=DEVICE, rbx=AFTER)
        machine.bus.answers = [1, 2]

        machine.run()

        assert machine.bus.accesses == [
            ("read", DEVICE, 8, 1),
            ("write", DEVICE, 8, AFTER),
            ("read", DEVICE, 8, 2),
        ]


def test_mapped_memory_cannot_be_unmapped_under_the_guest_until_its_slot_is_removed() -> None:
    with bare_machine("f4") as machine:
        page = page_with(BEFORE)
        machine.vm.map_ram(1, DEVICE, memoryview(page))
        with pytest.raises(BufferError):
            page.close()

        machine.vm.unmap(1)

        page.close()
        assert page.closed


def test_slot_in_use_is_refused() -> None:
    with bare_machine("f4") as machine, pytest.raises(ValueError, match="slot 0 is in use"):
        machine.vm.map_ram(0, DEVICE, memoryview(page_with(0)))


def test_overlap_is_refused_with_the_name_of_the_call() -> None:
    with (
        bare_machine("f4") as machine,
        pytest.raises(HostError, match="KVM_SET_USER_MEMORY_REGION: File exists"),
    ):
        machine.vm.map_ram(1, 0x1000, memoryview(page_with(0)))


def test_read_gives_what_the_guest_has_up_to_the_end_of_its_slot() -> None:
    with bare_machine("f4") as machine:
        machine.vm.map_ram(1, DEVICE, memoryview(page_with(BEFORE)))

        assert machine.vm.read(DEVICE, 8) == BEFORE.to_bytes(8, "little")
        assert machine.vm.read(DEVICE + 4094, 8) == bytes(2)
        assert machine.vm.read(DEVICE + 4096, 8) == b""
