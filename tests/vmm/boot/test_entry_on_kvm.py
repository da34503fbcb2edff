"""Each way of entry, on a processor: the code finds what its protocol promises.

Every guest writes one 32-bit number to a port and is stopped by that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from protocol.memory import GuestMemory
from protocol.specs import BootSpec
from tests.support.bare import DEADLINE, STOP_PORT, FakeBus, require_kvm
from tests.support.boot_files import BzImage, Elf, xen_note
from vmm.boot import BootPlan, Hardware, load, plan
from vmm.hypervisor.base import Stop
from vmm.hypervisor.kvm.system import Kvm
from vmm.memory_map import GIB, HIGH_RAM, MIB

pytestmark = [pytest.mark.kvm, pytest.mark.timeout(DEADLINE)]

FileOf = Callable[[bytes], int]
MemoryOf = Callable[[int], GuestMemory]

ADDRESS = 0x100_0000
OUT = bytes([0xE7, STOP_PORT])  # out STOP_PORT, eax


def first_number(boot: BootPlan, memory: GuestMemory) -> int:
    """What the guest of ``boot`` writes first."""
    require_kvm()
    load(boot, memory)
    bus = FakeBus()
    with Kvm() as kvm, kvm.create_vm() as vm:
        for slot, region in enumerate(memory.regions):
            vm.map_ram(slot, region.gpa, memory.whole[region.offset : region.offset + region.size])
        vcpu = vm.create_vcpu(0)
        sregs = vcpu.get_sregs()
        boot.cpu.set_up(sregs)
        vcpu.set_sregs(sregs)
        vcpu.set_regs(boot.cpu.regs())
        bus.on_port[STOP_PORT] = vcpu.kick
        stop = vcpu.run(bus)
    assert stop is Stop.KICKED
    ((what, port, size, value),) = bus.accesses
    assert (what, port, size) == ("out", STOP_PORT, 4)
    return value


def test_a_raw_binary_runs_in_64_bit_mode_on_its_stack(
    file_of: FileOf, memory_of: MemoryOf
) -> None:
    code = bytes.fromhex("b8 78563412")  # mov eax, 0x12345678
    code += bytes.fromhex("50 5b")  # push rax; pop rbx
    code += bytes.fromhex("48 89 e0 48 31 d8")  # mov rax, rsp; xor rax, rbx
    boot = plan(BootSpec(True, "", 0x1_0000, None), file_of(code + OUT), None, Hardware(16 * MIB))

    assert first_number(boot, memory_of(16 * MIB)) == 0x1234_5678 ^ 0x1_0000


def test_a_raw_binary_runs_in_high_ram(file_of: FileOf, memory_of: MemoryOf) -> None:
    code = bytes.fromhex("48 8d 05 f9ffffff 48 c1 e8 20")  # lea rax, [rip - 7]; shr rax, 32
    boot = plan(BootSpec(True, "", HIGH_RAM, None), file_of(code + OUT), None, Hardware(3 * GIB))

    assert first_number(boot, memory_of(3 * GIB)) == HIGH_RAM >> 32


def test_an_elf_kernel_finds_the_zero_page_in_rsi(file_of: FileOf, memory_of: MemoryOf) -> None:
    code = bytes.fromhex("8b 86 02020000")  # mov eax, [rsi + 0x202]
    elf = Elf(entry=ADDRESS, load=[(ADDRESS, code + OUT, 64)])
    boot = plan(BootSpec(False, "", None, None), file_of(elf.build()), None, Hardware(32 * MIB))

    assert first_number(boot, memory_of(32 * MIB)) == int.from_bytes(b"HdrS", "little")


def test_a_pvh_kernel_finds_the_start_info_in_ebx_and_runs_32_bit_code(
    file_of: FileOf, memory_of: MemoryOf
) -> None:
    # In 64-bit mode 0x40 would be a prefix; here it is inc eax.
    code = bytes.fromhex("8b 03 40")  # mov eax, [ebx]; inc eax
    elf = Elf(entry=0, load=[(ADDRESS, code + OUT, 64)], notes=xen_note(18, ADDRESS))
    boot = plan(BootSpec(False, "", None, None), file_of(elf.build()), None, Hardware(32 * MIB))

    assert first_number(boot, memory_of(32 * MIB)) == 0x336E_C578 + 1


def test_a_bzimage_finds_the_command_line_by_its_header(
    file_of: FileOf, memory_of: MemoryOf
) -> None:
    code = bytes.fromhex("8b 86 28020000 8b 00")  # mov eax, [rsi + 0x228]; mov eax, [rax]
    image = replace(BzImage(), code=bytes(0x200) + code + OUT)
    boot = plan(
        BootSpec(False, "quiet", None, None), file_of(image.build()), None, Hardware(32 * MIB)
    )

    assert first_number(boot, memory_of(32 * MIB)) == int.from_bytes(b"quie", "little")
