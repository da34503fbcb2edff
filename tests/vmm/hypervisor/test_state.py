"""Registers: descriptors taken apart, and what is set is what is read."""

from __future__ import annotations

import dataclasses

import pytest

from tests.support.bare import CODE, PAGE_TABLES, STACK, bare_machine
from vmm.hypervisor.base import Stop
from vmm.hypervisor.state import CODE32, CODE64, DATA, Regs, Segment, Table


@pytest.mark.parametrize(
    ("selector", "descriptor", "segment"),
    [
        # The flat segments of Linux's boot protocol, as GDT entries.
        (0x08, 0x00AF_9B00_0000_FFFF, CODE64),
        (0x08, 0x00CF_9B00_0000_FFFF, CODE32),
        (0x10, 0x00CF_9300_0000_FFFF, DATA),
    ],
)
def test_flat_descriptors_load_as_flat_segments(
    selector: int, descriptor: int, segment: Segment
) -> None:
    assert Segment.from_descriptor(selector, descriptor) == segment


def test_every_field_of_a_descriptor_is_found() -> None:
    # Base 0x12345678, limit 0xABCDE in bytes, type 0xB, system, privilege 3, present, available.
    descriptor = 0x12_1A_EB_34_5678_BCDE

    segment = Segment.from_descriptor(0x18, descriptor, base_high=0xFFFF_8000)

    assert segment == Segment(
        base=0xFFFF_8000_1234_5678, limit=0xABCDE, selector=0x18, type=0xB, present=1, dpl=3, avl=1
    )


def test_absent_descriptor_is_unusable() -> None:
    assert Segment.from_descriptor(0, 0) == Segment(unusable=1)


@pytest.mark.kvm
def test_general_registers_keep_what_is_set() -> None:
    with bare_machine("f4") as machine:
        names = [field.name for field in dataclasses.fields(Regs)]
        regs = Regs(**{name: 0x1111_0000_0000_0000 + i for i, name in enumerate(names)})
        regs.rflags = 0x2

        machine.vcpu.set_regs(regs)

        assert machine.vcpu.get_regs() == regs


@pytest.mark.kvm
def test_special_registers_keep_what_is_set() -> None:
    with bare_machine("f4") as machine:
        sregs = machine.vcpu.get_sregs()
        sregs.enter_long_mode(PAGE_TABLES)
        sregs.gdt, sregs.idt = Table(0x500, 0x1F), Table(0x520, 0xFFF)
        sregs.fs = dataclasses.replace(DATA, base=0x1234_5678)

        machine.vcpu.set_sregs(sregs)

        assert machine.vcpu.get_sregs() == sregs


@pytest.mark.kvm
def test_protected_mode_runs_32_bit_code_on_physical_addresses() -> None:
    code = """
        b8 01 00 00 00  # mov eax, 1
        48              # dec eax    (in 64-bit mode, a prefix)
        50              # push eax
        f4              # hlt
    """
    with bare_machine(code) as machine:
        sregs = machine.vcpu.get_sregs()
        sregs.enter_protected_mode()
        machine.vcpu.set_sregs(sregs)
        machine.vcpu.set_regs(Regs(rip=CODE, rsp=STACK))

        stop = machine.run()

        regs = machine.vcpu.get_regs()
        assert (stop, regs.rax, regs.rsp) == (Stop.HALTED, 0, STACK - 4)
