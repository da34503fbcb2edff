"""A vCPU: the loop that runs the guest, and its registers."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from protocol.errors import GuestDied, HostError
from vmm.hypervisor import death
from vmm.hypervisor.base import ExitHandler, Stop
from vmm.hypervisor.kvm import cpuid, dump, msrs
from vmm.hypervisor.kvm._kvm import ffi, lib
from vmm.hypervisor.kvm.ioctl import call
from vmm.hypervisor.state import Regs, Segment, Sregs, Table

# Plain numbers, because looking a name up in the library costs more than comparing.
_PORT_READ: int = lib.PORT_READ
_PORT_WRITE: int = lib.PORT_WRITE
_MMIO_READ: int = lib.MMIO_READ
_MMIO_WRITE: int = lib.MMIO_WRITE
_IGNORED = frozenset((lib.KVM_EXIT_INTR, lib.KVM_EXIT_IRQ_WINDOW_OPEN, lib.KVM_EXIT_SET_TPR))

# An answer is taken modulo 2^64, and then the low bytes of it.
_ALL_ONES = (1 << 64) - 1

_REGS = tuple(field.name for field in fields(Regs))
_SEGMENT = tuple(field.name for field in fields(Segment))
_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
_TABLES = ("gdt", "idt")
_CONTROLS = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")

# Local APIC: registers of the local vector table, and their delivery modes (Intel SDM, volume
# 3A, table 11-1 and figure 11-8).
_LVT_LINT0, _LVT_LINT1 = 0x350, 0x360
_DELIVER_NMI, _DELIVER_EXTINT = 4 << 8, 7 << 8


class KvmVcpu:
    """One vCPU (hypervisor.base.Vcpu); made by KvmVm.create_vcpu.

    ``fd`` is its descriptor, which it owns; ``run_size`` the size of the mapping that KVM shares
    through it.
    """

    def __init__(
        self, fd: int, index: int, run_size: int, read: Callable[[int, int], bytes], software: bool
    ) -> None:
        self.fd = fd
        self.index = index
        self.run_size = run_size
        self._read_memory = read
        self._software = software
        self._vcpu: Any = ffi.new("struct vcpu *", {"fd": fd, "run_size": run_size})
        error = lib.vcpu_map(self._vcpu)
        if error:
            os.close(fd)
            raise HostError(f"mapping a vCPU: {os.strerror(error)}")
        self._run: Any = self._vcpu.run
        # kick() and close() may meet; neither is on the guest's path.
        self._lock = threading.Lock()
        self._thread = 0  # the kernel's id of the thread in run(), or 0

    def run(self, handler: ExitHandler) -> Stop:
        """Run the guest on this thread until it stops (hypervisor.base.Vcpu.run)."""
        vcpu, next_exit = self._vcpu, lib.vcpu_next_exit
        pio_read, pio_write = handler.pio_read, handler.pio_write
        mmio_read, mmio_write = handler.mmio_read, handler.mmio_write
        self._enter()
        try:
            while True:
                # 1. Run the guest until it needs us.  2. Why did it exit?
                reason = next_exit(vcpu)
                # 3. Handle that.
                if reason == _MMIO_WRITE:
                    mmio_write(vcpu.address, vcpu.size, vcpu.value)
                elif reason == _MMIO_READ:
                    vcpu.value = mmio_read(vcpu.address, vcpu.size) & _ALL_ONES
                elif reason == _PORT_WRITE:
                    pio_write(vcpu.address, vcpu.size, vcpu.value)
                elif reason == _PORT_READ:
                    vcpu.value = pio_read(vcpu.address, vcpu.size) & _ALL_ONES
                elif (stop := self._other_exit(reason, handler)) is not None:
                    return stop
                # 4. Resume it: KVM has moved the instruction pointer on.
        finally:
            self._thread = 0

    def _enter(self) -> None:
        error = lib.kick_prepare()
        if error:
            raise HostError(f"preparing the kick signal: {os.strerror(error)}")
        self._thread = threading.get_native_id()

    def _other_exit(self, reason: int, handler: ExitHandler) -> Stop | None:
        # What is rarer than a single access; None to go on.
        if reason < 0:
            return Stop.KICKED if self._interrupted(-reason) else None
        if reason == lib.PORT_STRING:
            self._answer_string(handler)
            return None
        if reason in _IGNORED:
            return None
        if reason == lib.KVM_EXIT_HLT:
            return Stop.HALTED
        if reason == lib.KVM_EXIT_SYSTEM_EVENT:
            event = self._run.system_event.type
            if event == lib.KVM_SYSTEM_EVENT_SHUTDOWN:
                return Stop.POWERED_OFF
            if event == lib.KVM_SYSTEM_EVENT_RESET:
                return Stop.RESET
        raise self._died(dump.cause(self._run), dump.reported_code(self._run))

    def _interrupted(self, error: int) -> bool:
        # True for a kick. Another signal, or INIT at a waiting processor (EAGAIN), is no stop.
        if error == errno.EINTR:
            # Cleared only where it was seen: a kick may come between these two lines.
            if self._run.immediate_exit:
                self._run.immediate_exit = 0
                return True
            return False
        if error == errno.EAGAIN:
            return False
        raise self._died(f"KVM_RUN: {os.strerror(error)}", b"")

    def _answer_string(self, handler: ExitHandler) -> None:
        # One instruction, many items for the same port, which lie one behind the other.
        io = self._run.io
        items = ffi.buffer(ffi.cast("char *", self._run) + io.data_offset, io.count * io.size)
        for start in range(0, io.count * io.size, io.size):
            item = slice(start, start + io.size)
            if io.direction == lib.KVM_EXIT_IO_OUT:
                handler.pio_write(io.port, io.size, int.from_bytes(items[item], "little"))
            else:
                answer = handler.pio_read(io.port, io.size) & _ALL_ONES
                items[item] = answer.to_bytes(8, "little")[: io.size]

    @property
    def run_returns(self) -> int:
        """How many times KVM_RUN has returned; any thread may look."""
        returns: int = self._vcpu.run_returns
        return returns

    def kick(self) -> None:
        """Make run() return Stop.KICKED, now or when it is next called; any thread."""
        with self._lock:
            if self.fd < 0:
                return
            # In this order: a run() that is not seen here yet will see the flag, and the kernel
            # looks at the flag whenever the signal breaks into KVM_RUN.
            self._run.immediate_exit = 1
            if self._thread:
                lib.kick_thread(os.getpid(), self._thread)

    def get_regs(self) -> Regs:
        """The general registers."""
        raw = ffi.new("struct kvm_regs *")
        call(self.fd, "KVM_GET_REGS", raw)
        return Regs(*(getattr(raw, name) for name in _REGS))

    def set_regs(self, regs: Regs) -> None:
        """Set all general registers."""
        raw = ffi.new("struct kvm_regs *", {name: getattr(regs, name) for name in _REGS})
        call(self.fd, "KVM_SET_REGS", raw)

    def get_sregs(self) -> Sregs:
        """Segment, table and control registers."""
        raw = ffi.new("struct kvm_sregs *")
        call(self.fd, "KVM_GET_SREGS", raw)
        sregs = Sregs(**{name: getattr(raw, name) for name in _CONTROLS})
        for name in _SEGMENTS:
            segment = getattr(raw, name)
            setattr(sregs, name, Segment(**{part: getattr(segment, part) for part in _SEGMENT}))
        for name in _TABLES:
            table = getattr(raw, name)
            setattr(sregs, name, Table(table.base, table.limit))
        return sregs

    def set_sregs(self, sregs: Sregs) -> None:
        """Set all segment, table and control registers."""
        raw = ffi.new("struct kvm_sregs *")
        # What is not ours (pending interrupts) stays as it is.
        call(self.fd, "KVM_GET_SREGS", raw)
        for name in _SEGMENTS:
            segment, target = getattr(sregs, name), getattr(raw, name)
            for part in _SEGMENT:
                setattr(target, part, getattr(segment, part))
        for name in _TABLES:
            table, target = getattr(sregs, name), getattr(raw, name)
            target.base, target.limit = table.base, table.limit
        for name in _CONTROLS:
            setattr(raw, name, getattr(sregs, name))
        call(self.fd, "KVM_SET_SREGS", raw)

    def get_msrs(self, indices: Sequence[int]) -> dict[int, int]:
        """Model-specific registers by number; HostError for one that KVM does not have."""
        return msrs.read(self.fd, indices)

    def set_msrs(self, values: Mapping[int, int]) -> None:
        """Set model-specific registers; HostError for one that KVM does not have."""
        msrs.write(self.fd, values)

    def set_cpuid(self, leaves: Sequence[cpuid.Leaf]) -> None:
        """What the CPUID instruction answers; before the first run()."""
        cpuid.write(self.fd, leaves)

    def wire_interrupt_pins(self) -> None:
        """As firmware leaves the boot processor: LINT0 takes the 8259's interrupts, LINT1 NMI."""
        state = ffi.new("struct kvm_lapic_state *")
        call(self.fd, "KVM_GET_LAPIC", state)
        for offset, mode in ((_LVT_LINT0, _DELIVER_EXTINT), (_LVT_LINT1, _DELIVER_NMI)):
            ffi.buffer(state.regs)[offset : offset + 4] = mode.to_bytes(4, "little")
        call(self.fd, "KVM_SET_LAPIC", state)

    def _died(self, why: str, code: bytes) -> GuestDied:
        regs, sregs = self.get_regs(), self.get_sregs()
        code = code or self._code_at(sregs.cs.base + regs.rip)
        advice = dump.advice(self._run, code) if self._software else ""
        return death.guest_died(self.index, why, regs, sregs, code, advice)

    def _code_at(self, linear: int) -> bytes:
        # Page by page, because neighbours in linear addresses are none in guest memory.
        code = b""
        while len(code) < death.MAX_INSTRUCTION:
            at = ffi.new("struct kvm_translation *")
            at.linear_address = (linear + len(code)) & _ALL_ONES
            call(self.fd, "KVM_TRANSLATE", at)
            here = min(death.MAX_INSTRUCTION - len(code), 4096 - at.linear_address % 4096)
            found = self._read_memory(at.physical_address, here) if at.valid else b""
            code += found
            if len(found) < here:
                break
        return code

    def close(self) -> None:
        """Unmap and close; kicks from now on do nothing. RuntimeError while run() has not returned,
        for it would find its page gone."""
        with self._lock:
            if self._thread:
                raise RuntimeError(f"vCPU {self.index} is running")
            if self.fd >= 0:
                lib.vcpu_unmap(self._vcpu)
                os.close(self.fd)
            self.fd = -1
