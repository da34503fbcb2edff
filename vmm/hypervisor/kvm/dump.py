"""What is said about a guest that cannot go on: why, its registers, and the code it was at."""

from __future__ import annotations

from typing import Any

from protocol.errors import GuestDied
from vmm.hypervisor.kvm._kvm import ffi, lib
from vmm.hypervisor.state import Regs, Sregs

# The longest x86 instruction (Intel SDM, volume 2A, 2.3.11).
MAX_INSTRUCTION = 15

_DO = "on a host with hardware virtualization, or in the lab (`make lab CMD=...`)."
SOFTWARE_KVM = (
    "This host's KVM is software: it interprets kernel code, and this instruction it lacks. "
    f"Run this guest {_DO}"
)
PERHAPS_SOFTWARE_KVM = (
    "This host's KVM is software and lacks instructions that processors have. If the guest "
    f"should not have died here, run it {_DO}"
)

# Where a processor begins (Intel SDM, volume 3A, table 9-1): rip, and the base of cs.
_RESET = (0xFFF0, 0xFFFF_0000)
NOT_KEPT = (
    "  (AMD processors do not keep their state through a shutdown: KVM has reset this one, and "
    "this is its state since)"
)

_INTERNAL_ERRORS: dict[int, str] = {
    lib.KVM_INTERNAL_ERROR_EMULATION: "KVM cannot emulate the instruction",
    lib.KVM_INTERNAL_ERROR_SIMUL_EX: "an exception while another was delivered",
    lib.KVM_INTERNAL_ERROR_DELIVERY_EV: "an exit while an event was delivered",
    lib.KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON: "an exit that KVM does not know",
}


def cause(run: Any) -> str:
    """One line: why the KVM_RUN that filled ``run`` (struct kvm_run) was the guest's last."""
    match run.exit_reason:
        case lib.KVM_EXIT_SHUTDOWN:
            return "triple fault (KVM_EXIT_SHUTDOWN)"
        case lib.KVM_EXIT_FAIL_ENTRY:
            reason = run.fail_entry.hardware_entry_failure_reason
            return (
                f"the processor refused to enter it, reason {reason:#x} on host CPU "
                f"{run.fail_entry.cpu} (KVM_EXIT_FAIL_ENTRY)"
            )
        case lib.KVM_EXIT_INTERNAL_ERROR:
            suberror = run.internal.suberror
            meaning = _INTERNAL_ERRORS.get(suberror, "not in the KVM documentation")
            return f"{meaning} (KVM_EXIT_INTERNAL_ERROR, suberror {suberror})"
        case lib.KVM_EXIT_SYSTEM_EVENT:
            return f"it reported a crash (KVM_EXIT_SYSTEM_EVENT, type {run.system_event.type})"
    return f"an exit that this program does not handle (KVM exit reason {run.exit_reason})"


def advice(run: Any, code: bytes) -> str:
    """What to do on a host with software KVM, which is the cause of this death, or may be."""
    failed_to_emulate = (
        run.exit_reason == lib.KVM_EXIT_INTERNAL_ERROR
        and run.internal.suberror == lib.KVM_INTERNAL_ERROR_EMULATION
    )
    # Without code the guest ran to where there is no memory, which no processor can do.
    return SOFTWARE_KVM if failed_to_emulate and code else PERHAPS_SOFTWARE_KVM


def reported_code(run: Any) -> bytes:
    """The instruction bytes that KVM itself gives with an emulation failure, or none."""
    failed = (
        run.exit_reason == lib.KVM_EXIT_INTERNAL_ERROR
        and run.internal.suberror == lib.KVM_INTERNAL_ERROR_EMULATION
        and run.internal.ndata >= 3
        and run.internal.data[0] & lib.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES
    )
    if not failed:
        return b""
    # struct emulation_failure lies over struct internal: data[0] is its flags, data[1] begins
    # with insn_size, then 15 insn_bytes.
    size, *code = bytes(ffi.buffer(run.internal.data + 1, 1 + MAX_INSTRUCTION))
    return bytes(code[: min(size, MAX_INSTRUCTION)])


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
