"""A guest that cannot go on: the error says why, with registers and instruction bytes."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from vmm.hypervisor.kvm._kvm import ffi, lib

from protocol.errors import GuestDied
from tests.support.bare import CODE, DEVICE, PAGE_TABLES, bare_machine
from vmm.hypervisor import death as death_words
from vmm.hypervisor.detect import kvm_is_software as is_software
from vmm.hypervisor.kvm import dump
from vmm.hypervisor.state import Regs, Sregs

# An invalid opcode, with an interrupt table that holds no handler, not even for the failure.
TRIPLE_FAULT = """
    48 c7 c0 ef be ad 0b  # mov rax, 0xbadbeef
    0f 0b                 # ud2
    90 90                 # nop; nop
"""


@pytest.mark.kvm
def test_triple_fault_ends_with_registers_and_the_code_at_the_instruction_pointer() -> None:
    with bare_machine(TRIPLE_FAULT) as machine, pytest.raises(GuestDied) as death:
        machine.run()

    text = str(death.value)
    assert "CPU 0: triple fault (KVM_EXIT_SHUTDOWN)" in text
    assert (dump.PERHAPS_SOFTWARE_KVM in text) == is_software()
    assert death.value.exit_status == 1
    if death_words.NOT_KEPT in text:  # AMD: there is nothing more to see
        return
    assert f"rip {CODE + 7:016x}" in text
    assert "rax 000000000badbeef" in text
    assert "cs  0008" in text
    assert "cr0 80010031" in text
    assert "code at rip: 0f 0b 90 90 00" in text


@pytest.mark.kvm
def test_code_that_lies_in_no_memory_is_an_emulation_failure() -> None:
    with bare_machine("f4") as machine:
        machine.start_at(DEVICE)

        with pytest.raises(GuestDied) as death:
            machine.run()

    text = str(death.value)
    assert "KVM_EXIT_INTERNAL_ERROR, suberror 1" in text
    assert "code at rip: not in memory" in text
    assert dump.SOFTWARE_KVM not in text


@pytest.mark.kvm
def test_code_across_the_end_of_a_page_is_read_as_the_page_tables_have_it() -> None:
    with bare_machine("f4") as machine:
        # A table of 4 KiB pages for the first 2 MiB: page 2 of it is not at 0x2000 but at 0x4000.
        machine.load(0x7000, struct.pack("<3Q", 0x0003, 0x1003, 0x4003))
        machine.load(PAGE_TABLES + 0x2000, struct.pack("<Q", 0x7003))
        machine.load(0x1FFE, bytes.fromhex("0f 0b 11 22"))
        machine.load(0x4000, bytes.fromhex("33 44"))

        code = machine.vcpu._code_at(0x1FFE)

    assert code == bytes.fromhex("0f 0b 33 44").ljust(death_words.MAX_INSTRUCTION, b"\0")


def run_that_exited(reason: int) -> Any:
    run = ffi.new("struct kvm_run *")
    run.exit_reason = reason
    return run


def test_failed_entry_gives_the_processors_reason() -> None:
    run = run_that_exited(lib.KVM_EXIT_FAIL_ENTRY)
    run.fail_entry.hardware_entry_failure_reason = 0x80000021
    run.fail_entry.cpu = 3

    text = dump.cause(run)

    assert "reason 0x80000021 on host CPU 3" in text


def emulation_failure(flags: int, ndata: int) -> Any:
    run = run_that_exited(lib.KVM_EXIT_INTERNAL_ERROR)
    run.internal.suberror = lib.KVM_INTERNAL_ERROR_EMULATION
    run.internal.ndata = ndata
    run.internal.data[0] = flags
    ffi.buffer(run.internal.data)[8:24] = bytes([5]) + bytes.fromhex("f0480fc70f") + b"\xcc" * 10
    return run


def test_emulation_failure_gives_the_bytes_that_the_kernel_gave() -> None:
    run = emulation_failure(lib.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, 4)

    code = dump.reported_code(run)

    assert code == bytes.fromhex("f0480fc70f")
    assert "cannot emulate the instruction" in dump.cause(run)


@pytest.mark.parametrize(("flags", "ndata"), [(0, 4), (1, 0), (1, 2)])
def test_emulation_failure_without_bytes_gives_none(flags: int, ndata: int) -> None:
    assert dump.reported_code(emulation_failure(flags, ndata)) == b""


def test_an_exit_nobody_asked_for_is_named_by_its_number() -> None:
    assert "KVM exit reason 4" in dump.cause(run_that_exited(4))


def test_an_instruction_that_was_not_emulated_is_blamed_on_software_kvm_and_nothing_else() -> None:
    failure = emulation_failure(1, 4)

    assert dump.advice(failure, b"\x0f\xc7") == dump.SOFTWARE_KVM
    assert dump.advice(failure, b"") == dump.PERHAPS_SOFTWARE_KVM
    assert dump.advice(run_that_exited(8), b"\x0f\x0b") == dump.PERHAPS_SOFTWARE_KVM


@pytest.mark.parametrize("advice", ["run it elsewhere", ""])
def test_the_dump_ends_with_the_advice_if_there_is_any(advice: str) -> None:
    death = death_words.guest_died(1, "why", Regs(), Sregs(), b"\x0f\x0b", advice)

    assert str(death).endswith(advice or "0f 0b")
    assert "died on CPU 1: why" in str(death)
    assert "code at rip: 0f 0b" in str(death)
