"""The registers of an engine's processor, to and from the ones that all backends have in common."""

from __future__ import annotations

from typing import Any

from vmm.hypervisor.software.engine import Engine
from vmm.hypervisor.software.unicorn import Register
from vmm.hypervisor.state import Regs, Segment, Sregs, Table

_EFER = 0xC000_0080

# In the order of struct engine_x86.
_GENERAL = (
    "rax",
    "rcx",
    "rdx",
    "rbx",
    "rsp",
    "rbp",
    "rsi",
    "rdi",
    *(f"r{n}" for n in range(8, 16)),
)
_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")

# Where a descriptor's second word has the parts of a segment: shift and mask.
_PARTS = {
    "type": (8, 0xF),
    "s": (12, 1),
    "dpl": (13, 3),
    "present": (15, 1),
    "avl": (20, 1),
    "l": (21, 1),
    "db": (22, 1),
    "g": (23, 1),
}

# hflags: what the engine keeps of all registers for the translation of code (QEMU, target/i386).
_HF_CS32, _HF_SS32, _HF_ADDSEG, _HF_PE = 1 << 4, 1 << 5, 1 << 6, 1 << 7
_HF_LMA, _HF_CS64, _HF_OSFXSR = 1 << 14, 1 << 15, 1 << 22
_HF_MP_SHIFT = 9  # MP, EM and TS of CR0, from bit 1 there
_CR0_PE, _CR0_MP_EM_TS, _CR4_OSFXSR, _EFER_LMA = 1, 7 << 1, 1 << 9, 1 << 10


def get_regs(engine: Engine) -> Regs:
    """General registers, instruction pointer and flags."""
    engine.context()
    cpu = engine.state.cpu
    named = {name: int(cpu.regs[index]) for index, name in enumerate(_GENERAL)}
    return Regs(**named, rip=int(cpu.rip), rflags=engine.read(Register.RFLAGS))


def set_regs(engine: Engine, regs: Regs) -> None:
    """Set all of them."""
    engine.context()
    cpu = engine.state.cpu
    for index, name in enumerate(_GENERAL):
        cpu.regs[index] = getattr(regs, name)
    cpu.rip = regs.rip
    engine.restore()
    engine.write(Register.RFLAGS, regs.rflags)


def get_sregs(engine: Engine) -> Sregs:
    """Segment, table and control registers, and EFER."""
    engine.context()
    cpu = engine.state.cpu
    sregs = Sregs(
        tr=_segment(cpu.tr),
        ldt=_segment(cpu.ldt),
        gdt=Table(int(cpu.gdt.base), int(cpu.gdt.limit)),
        idt=Table(int(cpu.idt.base), int(cpu.idt.limit)),
        cr0=int(cpu.cr[0]),
        cr2=int(cpu.cr[2]),
        cr3=int(cpu.cr[3]),
        cr4=int(cpu.cr[4]),
        cr8=int(cpu.cr[8]),
        efer=engine.read_msr(_EFER),
    )
    for index, name in enumerate(_SEGMENTS):
        setattr(sregs, name, _segment(cpu.segments[index]))
    return sregs


def set_sregs(engine: Engine, sregs: Sregs) -> None:
    """Set all of them. Not kept: CR8 and the APIC's base, which the engine has nothing behind."""
    # By the engine's own way first, which looks after its translations.
    engine.write(Register.CR4, sregs.cr4)
    engine.write(Register.CR3, sregs.cr3)
    engine.write_msr(_EFER, sregs.efer)
    engine.write(Register.CR0, sregs.cr0)
    rflags = engine.read(Register.RFLAGS)
    engine.context()
    cpu = engine.state.cpu
    for index, name in enumerate(_SEGMENTS):
        _load(cpu.segments[index], getattr(sregs, name))
    _load(cpu.tr, sregs.tr)
    _load(cpu.ldt, sregs.ldt)
    for table, wanted in ((cpu.gdt, sregs.gdt), (cpu.idt, sregs.idt)):
        table.base, table.limit = wanted.base, wanted.limit
    cpu.hflags = _hflags(sregs)
    engine.restore()
    engine.write(Register.RFLAGS, rflags)


def _segment(raw: Any) -> Segment:
    parts = {name: int(raw.flags) >> shift & mask for name, (shift, mask) in _PARTS.items()}
    return Segment(
        base=int(raw.base),
        limit=int(raw.limit),
        selector=int(raw.selector),
        unusable=1 - parts["present"],
        **parts,
    )


def _load(raw: Any, segment: Segment) -> None:
    raw.selector, raw.base, raw.limit = segment.selector, segment.base, segment.limit
    raw.flags = sum(getattr(segment, name) << shift for name, (shift, _) in _PARTS.items())


def _hflags(sregs: Sregs) -> int:
    flags = sregs.ss.dpl if sregs.cr0 & _CR0_PE else 0
    flags |= (sregs.cr0 & _CR0_MP_EM_TS) << _HF_MP_SHIFT - 1
    flags |= _HF_PE if sregs.cr0 & _CR0_PE else 0
    flags |= _HF_OSFXSR if sregs.cr4 & _CR4_OSFXSR else 0
    is_long = bool(sregs.efer & _EFER_LMA)
    flags |= _HF_LMA if is_long else 0
    if is_long and sregs.cs.l:
        return flags | _HF_CS64 | _HF_CS32 | _HF_SS32
    flags |= _HF_CS32 if sregs.cs.db else 0
    flags |= _HF_SS32 if sregs.ss.db else 0
    is_flat = not (sregs.ds.base or sregs.es.base or sregs.ss.base)
    return flags | (0 if sregs.cs.db and is_flat else _HF_ADDSEG)
