"""Secondary processors: asleep until the first sends INIT and SIPI, then at the page it named."""

from __future__ import annotations

import threading

import pytest

from tests.support.bare import DEADLINE, assembled, bare_machine

pytestmark = pytest.mark.kvm

UP_PORT = 0xF5
TRAMPOLINE = 0x8000
WAKE_ALL = """
    bf 00 00 e0 fe                 # mov edi, 0xfee00000
    c7 87 f0 00 00 00 ff 01 00 00  # mov dword [rdi + 0xf0], 0x1ff      local APIC on
    c7 87 00 03 00 00 00 45 0c 00  # mov dword [rdi + 0x300], 0xc4500   INIT to all others
    c7 87 00 03 00 00 08 46 0c 00  # mov dword [rdi + 0x300], 0xc4608   SIPI: begin at 0x8000
    f4                             # hlt
    eb fd                          # jmp back to hlt
"""
# Real mode.
REPORT_APIC_ID = """
    66 b8 01 00 00 00  # mov eax, 1
    0f a2              # cpuid
    66 c1 eb 18        # shr ebx, 24
    88 d8              # mov al, bl
    e6 f5              # out 0xf5, al
    f4                 # hlt
    eb fd              # jmp back to hlt
"""


@pytest.mark.parametrize("cpus", [2, 4, 8])
def test_every_processor_comes_up_with_its_own_apic_id(cpus: int) -> None:
    with bare_machine(WAKE_ALL, irqchip=True, cpus=cpus) as machine:
        machine.load(TRAMPOLINE, assembled(REPORT_APIC_ID))
        came_up = threading.Semaphore(0)
        machine.bus.on_port[UP_PORT] = came_up.release
        runners = [machine.start(vcpu) for vcpu in machine.vcpus]

        reports = [came_up.acquire(timeout=DEADLINE) for _ in range(cpus - 1)]
        for vcpu in machine.vcpus:
            vcpu.kick()
        for runner in runners:
            runner.result()

        assert all(reports)
        assert sorted(machine.bus.accesses) == [("out", UP_PORT, 1, n) for n in range(1, cpus)]
