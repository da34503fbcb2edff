"""The first state of the boot CPU, and what it needs in memory: a GDT and page tables.

Selectors are those of the Linux boot protocol (Documentation/arch/x86/boot.rst, "64-bit Boot
Protocol"): code at 0x10, data at 0x18. The PVH ABI leaves them open and asks for a task state
segment (Xen, docs/misc/pvh.pandoc).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from vmm.boot.layout import GDT
from vmm.boot.segment import Segment, align_up
from vmm.hypervisor.state import Regs, Sregs, Table
from vmm.hypervisor.state import Segment as Register
from vmm.memory_map import GIB, MIB

if TYPE_CHECKING:
    from vmm.hypervisor.base import Vcpu

CODE, DATA, TASK = 0x10, 0x18, 0x20

# Segment descriptors (Intel SDM, volume 3, 3.4.5): flat, 4 GiB, present, accessed.
_CODE64 = 0x00AF_9B00_0000_FFFF
_CODE32 = 0x00CF_9B00_0000_FFFF
_DATA = 0x00CF_9300_0000_FFFF
# A busy TSS at 0 with the smallest legal limit; in 64-bit mode its descriptor takes two entries.
_TASK = 0x0000_8B00_0000_0067

# Paging-structure entries (SDM, volume 3, 4.5).
_PRESENT_WRITABLE = 0x3
_LARGE_PAGE = 1 << 7
_ENTRIES = 512
_TABLE_SIZE = 4096
PAGE_2M = 2 * MIB

# CR4.OSFXSR and OSXMMEXCPT: a C compiler uses SSE for x86-64 unless told not to.
_CR4_SSE = 1 << 9 | 1 << 10


class Mode(Enum):
    """How the guest is entered."""

    FLAT64 = "64-bit mode, identity-mapped"
    FLAT32 = "32-bit protected mode, no paging"


@dataclass(frozen=True, slots=True)
class CpuState:
    """What CPU 0 starts with; the registers not named are zero, interrupts are off.

    ``page_table`` is the guest address of the PML4, for FLAT64. The other CPUs stay as reset
    leaves them: they wait for INIT and SIPI.
    """

    mode: Mode
    rip: int
    rsp: int = 0
    rsi: int = 0
    rbx: int = 0
    page_table: int = 0

    def enter(self, vcpu: Vcpu) -> None:
        """Make it the state of ``vcpu``, which a reset left."""
        sregs = vcpu.get_sregs()
        self.set_up(sregs)
        vcpu.set_sregs(sregs)
        vcpu.set_regs(self.regs())

    def regs(self) -> Regs:
        """The general registers."""
        return Regs(rip=self.rip, rsp=self.rsp, rsi=self.rsi, rbx=self.rbx)

    def set_up(self, sregs: Sregs) -> None:
        """Change ``sregs`` of a reset CPU into those of this state."""
        entries = self._descriptors()
        if self.mode is Mode.FLAT64:
            sregs.enter_long_mode(self.page_table)
            sregs.cr4 |= _CR4_SSE
        else:
            sregs.enter_protected_mode()
        code, data, task = (
            Register.from_descriptor(selector, entries[selector // 8])
            for selector in (CODE, DATA, TASK)
        )
        sregs.set_segments(code, data, task)
        sregs.gdt = Table(GDT, len(entries) * 8 - 1)
        sregs.idt = Table(0, 0)

    def gdt(self) -> Segment:
        """The table that the selectors name."""
        entries = self._descriptors()
        return Segment("GDT", GDT, struct.pack(f"<{len(entries)}Q", *entries))

    def _descriptors(self) -> tuple[int, ...]:
        code = _CODE64 if self.mode is Mode.FLAT64 else _CODE32
        return (0, 0, code, _DATA, _TASK, 0)


def page_tables_size(end: int) -> int:
    """Bytes that the page tables take that map the addresses below ``end``."""
    directories = align_up(end, GIB) // GIB
    pointers = align_up(directories, _ENTRIES) // _ENTRIES
    return (1 + pointers + directories) * _TABLE_SIZE


def page_tables(base: int, end: int) -> Segment:
    """Page tables at guest address ``base`` that map every address below ``end``, rounded up to
    1 GiB, to itself: writable, executable, in pages of 2 MiB (those of 1 GiB need a CPUID bit).

    One PML4, then the page directory pointer tables, then the page directories.
    """
    directories = align_up(end, GIB) // GIB
    pointers = align_up(directories, _ENTRIES) // _ENTRIES
    first_pointer = base + _TABLE_SIZE
    first_directory = first_pointer + pointers * _TABLE_SIZE

    pml4 = [first_pointer + i * _TABLE_SIZE | _PRESENT_WRITABLE for i in range(pointers)]
    pdpt = [first_directory + i * _TABLE_SIZE | _PRESENT_WRITABLE for i in range(directories)]
    pages = directories * _ENTRIES
    leaves = [i * PAGE_2M | _PRESENT_WRITABLE | _LARGE_PAGE for i in range(pages)]

    data = b"".join(_table(entries) for entries in (pml4, pdpt, leaves))
    return Segment("page tables", base, data)


def _table(entries: list[int]) -> bytes:
    data = struct.pack(f"<{len(entries)}Q", *entries)
    return data.ljust(align_up(len(data), _TABLE_SIZE), b"\0")
