"""Every way in which a guest comes out to user space, and how it gets its answer."""

from __future__ import annotations

import pytest

from tests.support.bare import CODE, DEVICE, bare_machine
from vmm.hypervisor.base import Stop

pytestmark = pytest.mark.usefixtures("backend")

PORTS = """
    ba f8 03 00 00  # mov edx, 0x3f8
    b8 11 22 33 44  # mov eax, 0x44332211
    ee              # out dx, al
    66 ef           # out dx, ax
    ef              # out dx, eax
    ec              # in al, dx
    89 c3           # mov ebx, eax
    66 ed           # in ax, dx
    89 c1           # mov ecx, eax
    ed              # in eax, dx
    f4              # hlt
"""

MMIO = """
    88 07     # mov [rdi], al
    66 89 07  # mov [rdi], ax
    89 07     # mov [rdi], eax
    48 89 07  # mov [rdi], rax
    8a 07     # mov al, [rdi]
    66 8b 1f  # mov bx, [rdi]
    8b 0f     # mov ecx, [rdi]
    48 8b 17  # mov rdx, [rdi]
    f4        # hlt
"""


def test_ports_are_written_and_read_in_each_size() -> None:
    with bare_machine(PORTS) as machine:
        machine.bus.answers = [0x5A, 0xBEEF, 0xDEADBEEF]

        stop = machine.run()

        assert stop is Stop.HALTED
        assert machine.bus.accesses == [
            ("out", 0x3F8, 1, 0x11),
            ("out", 0x3F8, 2, 0x2211),
            ("out", 0x3F8, 4, 0x44332211),
            ("in", 0x3F8, 1, 0x5A),
            ("in", 0x3F8, 2, 0xBEEF),
            ("in", 0x3F8, 4, 0xDEADBEEF),
        ]
        regs = machine.vcpu.get_regs()
        assert (regs.rbx, regs.rcx, regs.rax) == (0x4433225A, 0x4433BEEF, 0xDEADBEEF)


def test_mmio_is_written_and_read_in_each_size() -> None:
    with bare_machine(MMIO) as machine:
        machine.start_at(CODE, rax=0x8877665544332211, rbx=0, rdi=DEVICE)
        machine.bus.answers = [0x5A, 0xBEEF, 0xDEADBEEF, 0x0123456789ABCDEF]

        stop = machine.run()

        assert stop is Stop.HALTED
        assert machine.bus.accesses == [
            ("write", DEVICE, 1, 0x11),
            ("write", DEVICE, 2, 0x2211),
            ("write", DEVICE, 4, 0x44332211),
            ("write", DEVICE, 8, 0x8877665544332211),
            ("read", DEVICE, 1, 0x5A),
            ("read", DEVICE, 2, 0xBEEF),
            ("read", DEVICE, 4, 0xDEADBEEF),
            ("read", DEVICE, 8, 0x0123456789ABCDEF),
        ]
        regs = machine.vcpu.get_regs()
        assert regs.rax == 0x887766554433225A
        assert (regs.rbx, regs.rcx, regs.rdx) == (0xBEEF, 0xDEADBEEF, 0x0123456789ABCDEF)


def test_an_access_across_a_page_comes_in_two_parts_that_make_it_up() -> None:
    code = """
        48 89 07  # mov [rdi], rax
        48 8b 1f  # mov rbx, [rdi]
        f4        # hlt
    """
    with bare_machine(code) as machine:
        first, second = DEVICE + 0xFFD, DEVICE + 0x1000
        machine.start_at(CODE, rax=0x8877665544332211, rdi=first)
        machine.bus.answers = [0x332211, 0x8877665544]

        machine.run()

        assert machine.bus.accesses == [
            ("write", first, 3, 0x332211),
            ("write", second, 5, 0x8877665544),
            ("read", first, 3, 0x332211),
            ("read", second, 5, 0x8877665544),
        ]
        assert machine.vcpu.get_regs().rbx == 0x8877665544332211


def test_an_answer_wider_than_the_access_is_cut_to_its_size() -> None:
    code = """
        ec        # in al, dx
        8b 0f     # mov ecx, [rdi]
        f4        # hlt
    """
    with bare_machine(code) as machine:
        machine.start_at(CODE, rax=0, rdi=DEVICE)
        machine.bus.answers = [-1, -1]

        machine.run()

        regs = machine.vcpu.get_regs()
        assert (regs.rax, regs.rcx) == (0xFF, 0xFFFF_FFFF)


def test_string_output_delivers_every_item_in_order() -> None:
    code = """
        f3 6e  # rep outsb
        f4     # hlt
    """
    text = bytes(range(1, 201))
    with bare_machine(code) as machine:
        machine.load(0x4000, text)
        machine.start_at(CODE, rdx=0x3F8, rsi=0x4000, rcx=len(text))

        machine.run()

        assert machine.bus.accesses == [("out", 0x3F8, 1, byte) for byte in text]


@pytest.mark.parametrize(
    ("code", "size"),
    [
        ("f3 6c f4  # rep insb; hlt", 1),
        ("66 f3 6d f4  # rep insw; hlt", 2),
        ("f3 6d f4  # rep insd; hlt", 4),
    ],
)
def test_string_input_stores_every_item_in_order(code: str, size: int) -> None:
    # More than one page of items, so that one instruction takes several exits.
    count = 4096 // size + 3
    answers = [index * 0x01010101 & (1 << 8 * size) - 1 for index in range(count)]
    with bare_machine(code) as machine:
        machine.start_at(CODE, rdx=0x1F0, rdi=0x40000, rcx=count)
        machine.bus.answers = list(answers)

        machine.run()

        stored = machine.memory.read(0x40000, count * size)
        assert stored == b"".join(value.to_bytes(size, "little") for value in answers)
        assert len(machine.bus.accesses) == count


def test_each_return_to_user_space_is_counted() -> None:
    with bare_machine(PORTS) as machine:
        machine.run()

        assert machine.vcpu.run_returns == 6 + 1  # the accesses, and HLT


def test_an_error_in_the_handler_ends_run_with_it() -> None:
    with bare_machine(PORTS) as machine:
        machine.bus.on_port[0x3F8] = lambda: [].pop()

        with pytest.raises(IndexError):
            machine.run()

        assert len(machine.bus.accesses) == 1
