"""Why a KVM_RUN was the guest's last, and what to do about it."""

from __future__ import annotations

from typing import Any

from vmm.hypervisor.death import MAX_INSTRUCTION
from vmm.hypervisor.kvm._kvm import ffi, lib

_DO = (
    "with --hypervisor software, on a host with hardware virtualization, or in the lab "
    "(`make lab CMD=...`)."
)
SOFTWARE_KVM = (
    "This host's KVM is software: it interprets kernel code, and this instruction it lacks. "
    f"Run this guest {_DO}"
)
PERHAPS_SOFTWARE_KVM = (
    "This host's KVM is software and lacks instructions that processors have. If the guest "
    f"should not have died here, run it {_DO}"
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
