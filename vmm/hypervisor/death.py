"""The last words about a guest that cannot go on: why, its registers, and the code it was at."""

from __future__ import annotations

from protocol.errors import GuestDied
from vmm.hypervisor.state import Regs, Sregs

# The longest x86 instruction (Intel SDM, volume 2A, 2.3.11).
MAX_INSTRUCTION = 15

# Where a processor begins (Intel SDM, volume 3A, table 9-1): rip, and the base of cs.
_RESET = (0xFFF0, 0xFFFF_0000)
NOT_KEPT = (
    "  (AMD processors do not keep their state through a shutdown: KVM has reset this one, and "
    "this is its state since)"
)


def guest_died(
    index: int, why: str, regs: Regs, sregs: Sregs, code: bytes, advice: str = ""
) -> GuestDied:
    """The error that tells it all: ``why``, the dump and, if there is any, ``advice``."""
    lines = [f"the guest died on CPU {index}: {why}"]
    if (regs.rip, sregs.cs.base) == _RESET:
        lines.append(NOT_KEPT)
    lines += registers(regs, sregs)
    lines.append(f"  code at rip: {code.hex(' ') if code else 'not in memory'}")
    if advice:
        lines.append(advice)
    return GuestDied("\n".join(lines))


def registers(regs: Regs, sregs: Sregs) -> list[str]:
    """General, segment, table and control registers; a line for three or four."""
    rows = (
        ("rip", "rflags", "rsp"),
        ("rax", "rbx", "rcx", "rdx"),
        ("rsi", "rdi", "rbp"),
        ("r8", "r9", "r10", "r11"),
        ("r12", "r13", "r14", "r15"),
    )
    lines = ["  " + "  ".join(f"{n:<3} {getattr(regs, n):016x}" for n in row) for row in rows]
    for name in ("cs", "ss", "ds", "es", "fs", "gs", "tr", "ldt"):
        segment = getattr(sregs, name)
        lines.append(
            f"  {name:<3} {segment.selector:04x}  base {segment.base:016x}  "
            f"limit {segment.limit:08x}  type {segment.type:x}  dpl {segment.dpl}  "
            f"present {segment.present}  db {segment.db}  l {segment.l}"
        )
    for name in ("gdt", "idt"):
        table = getattr(sregs, name)
        lines.append(f"  {name}       base {table.base:016x}  limit {table.limit:08x}")
    controls = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")
    lines.append("  " + "  ".join(f"{name} {getattr(sregs, name):x}" for name in controls))
    return lines
