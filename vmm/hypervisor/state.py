"""The registers of a vCPU, and the modes a guest is entered in.

Names and bits are those of the Intel SDM, volume 3: control registers 2.5, EFER 2.2.1, segment
descriptors 3.4.5. Fields are in the order in which a register dump is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field

CR0_PE = 1 << 0
CR0_ET = 1 << 4
CR0_NE = 1 << 5
CR0_WP = 1 << 16
CR0_PG = 1 << 31
CR4_PAE = 1 << 5
EFER_LME = 1 << 8
EFER_LMA = 1 << 10

RFLAGS_RESERVED = 1 << 1  # always set


@dataclass(slots=True)
class Regs:
    """General registers, instruction pointer and flags; each 64 bits."""

    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0
    rdi: int = 0
    rsp: int = 0
    rbp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rip: int = 0
    rflags: int = RFLAGS_RESERVED


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment register with its hidden part; ``limit`` is in bytes, whatever ``g`` says."""

    base: int = 0
    limit: int = 0
    selector: int = 0
    type: int = 0
    present: int = 0
    dpl: int = 0
    db: int = 0
    s: int = 0
    l: int = 0  # noqa: E741 - the architecture's name for "64-bit code"
    g: int = 0
    avl: int = 0
    unusable: int = 0

    @classmethod
    def from_descriptor(cls, selector: int, descriptor: int, base_high: int = 0) -> Segment:
        """What loading ``selector`` would load, given its 8-byte GDT entry as a number.

        ``base_high`` is the upper half of a 64-bit TSS or LDT descriptor's base.
        """
        limit = descriptor & 0xFFFF | descriptor >> 32 & 0xF0000
        granular = descriptor >> 55 & 1
        present = descriptor >> 47 & 1
        return cls(
            base=descriptor >> 16 & 0xFF_FFFF | descriptor >> 32 & 0xFF00_0000 | base_high << 32,
            limit=limit << 12 | 0xFFF if granular else limit,
            selector=selector,
            type=descriptor >> 40 & 0xF,
            present=present,
            dpl=descriptor >> 45 & 3,
            db=descriptor >> 54 & 1,
            s=descriptor >> 44 & 1,
            l=descriptor >> 53 & 1,
            g=granular,
            avl=descriptor >> 52 & 1,
            unusable=1 - present,
        )


@dataclass(frozen=True, slots=True)
class Table:
    """GDTR or IDTR: linear base, and limit in bytes."""

    base: int = 0
    limit: int = 0


# Flat segments of 4 GiB. Types: 0xB code, executable, readable, accessed; 0x3 data, writable,
# accessed; as a task state segment, 0xB is a busy one, which every entry to a guest needs.
CODE64 = Segment(0, 0xFFFF_FFFF, 0x08, 0xB, present=1, s=1, l=1, g=1)
CODE32 = Segment(0, 0xFFFF_FFFF, 0x08, 0xB, present=1, db=1, s=1, g=1)
DATA = Segment(0, 0xFFFF_FFFF, 0x10, 0x3, present=1, db=1, s=1, g=1)
TASK = Segment(0, 0x67, 0x18, 0xB, present=1)


@dataclass(slots=True)
class Sregs:
    """Segment, table and control registers, EFER and the local APIC's base.

    Change what :meth:`Vcpu.get_sregs` gave rather than begin from nothing: ``apic_base`` of a
    reset processor is not zero.
    """

    cs: Segment = field(default_factory=Segment)
    ds: Segment = field(default_factory=Segment)
    es: Segment = field(default_factory=Segment)
    fs: Segment = field(default_factory=Segment)
    gs: Segment = field(default_factory=Segment)
    ss: Segment = field(default_factory=Segment)
    tr: Segment = field(default_factory=Segment)
    ldt: Segment = field(default_factory=Segment)
    gdt: Table = field(default_factory=Table)
    idt: Table = field(default_factory=Table)
    cr0: int = 0
    cr2: int = 0
    cr3: int = 0
    cr4: int = 0
    cr8: int = 0
    efer: int = 0
    apic_base: int = 0

    def set_segments(self, code: Segment, data: Segment, task: Segment = TASK) -> None:
        """``code`` in CS, ``data`` in the five others, ``task`` in TR, nothing in LDTR."""
        self.cs = code
        self.ds = self.es = self.fs = self.gs = self.ss = data
        self.tr, self.ldt = task, Segment(unusable=1)

    def enter_long_mode(self, page_table: int, code: Segment = CODE64) -> None:
        """64-bit mode, with the 4-level page table at guest address ``page_table``."""
        self.set_segments(code, DATA)
        self.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_PG
        self.cr3, self.cr4 = page_table, CR4_PAE
        self.efer = EFER_LME | EFER_LMA

    def enter_protected_mode(self, code: Segment = CODE32) -> None:
        """32-bit protected mode without paging: addresses are guest physical addresses."""
        self.set_segments(code, DATA)
        self.cr0 = CR0_PE | CR0_ET
        self.cr3 = self.cr4 = self.efer = 0
