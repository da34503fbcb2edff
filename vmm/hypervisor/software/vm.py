"""A virtual machine in software: memory, its one vCPU, interrupt controllers, and doorbells.

Everything happens on the vCPU's thread. Other threads and processes leave a note (a level of a
line, a signalled eventfd) and stop the engine, which comes back at the start of its next block of
code, or wake it from HLT::

    another thread     set_irq ──► chips ─┐
                                          ├─► stop the engine, add 1 to wake ──► service()
    another process    eventfd ──► waker ─┘
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from protocol import doorbell
from protocol.errors import HostError
from vmm.bus import Bus
from vmm.hypervisor.software._engine import ffi, lib
from vmm.hypervisor.software.cpuid import TIMER_HZ
from vmm.hypervisor.software.engine import Engine
from vmm.hypervisor.software.vcpu import Bells, SoftwareVcpu
from vmm.interrupts.pc import PcInterrupts

# Of the guest's physical addresses all that is no RAM answers as a bus does, up to here. A
# translation of the whole of the architecture's 52 bits takes the engine long to set up.
_ADDRESSES = 1 << 40


class SoftwareVm:
    """One VM (hypervisor.base.Vm); made by Software.create_vm."""

    # The IOAPIC and the local APIC (vmm.memory_map), and what lies between them.
    _CHIPS = range(0xFEC0_0000, 0xFEE0_1000)

    def __init__(self, *, irqchip: bool) -> None:
        self.vcpus: list[SoftwareVcpu] = []
        self._engine = self._new_engine()
        self._memory: dict[int, tuple[int, memoryview, Any]] = {}
        self._is_mapped = False
        # By address. One that is taken out leaves an empty place.
        self.port_bells: dict[int, Bells] = {}
        self.mmio_bells: dict[int, Bells] = {}
        self._watched: dict[int, tuple[int, Callable[[], None]]] = {}
        self._lock = threading.Lock()
        self._wake = doorbell.create()
        self._sleeper = select.poll()
        self._sleeper.register(self._wake, select.POLLIN)
        self._timer: int | None = None
        self._serving = 0  # the thread in service()
        self._waker = lib.waker_new(self._engine.state, self._wake)
        if not self._waker:
            os.close(self._wake)
            self._engine.close()
            raise HostError(f"starting a thread: {os.strerror(ffi.errno)}")
        self.chip_bus = Bus()
        self.chips = self._new_chips() if irqchip else None
        self.chip_ports = self.chip_bus.ports()
        self.chip_addresses = self._CHIPS if irqchip else range(0)

    # What a machine of another architecture has of its own.

    def _new_engine(self) -> Any:
        return Engine()

    def _new_chips(self) -> Any:
        return PcInterrupts(self.chip_bus, timer_hz=TIMER_HZ, wake=self.wake)

    def _new_vcpu(self) -> Any:
        return SoftwareVcpu(self, self._engine)

    # ── memory ────────────────────────────────────────────────────────────────────────

    def map_ram(self, slot: int, gpa: int, memory: memoryview, read_only: bool = False) -> None:
        """Show ``memory`` to the guest (hypervisor.base.Vm.map_ram): before the vCPU is made, for
        what is not RAM then is MMIO for good."""
        if slot in self._memory:
            raise ValueError(f"slot {slot} is in use")
        if read_only or self._is_mapped or len(self._memory) == lib.ENGINE_MAX_REGIONS:
            raise HostError("the software CPU has no read-only memory, and no memory added later")
        view = ffi.from_buffer(memory, require_writable=True)
        self._engine.map_ram(gpa, memory.nbytes, view)
        state = self._engine.state
        region = state.regions[state.region_count]
        region.gpa, region.size = gpa, memory.nbytes
        region.host = ffi.cast("uint8_t *", view)
        code = ffi.new("uint8_t[]", -(-memory.nbytes // (8 * 4096)))
        region.code = code
        state.region_count += 1
        self._memory[slot] = (gpa, memory, (view, code))

    def unmap(self, slot: int) -> None:
        """Not possible here."""
        raise HostError("the software CPU cannot take memory away")

    def read(self, gpa: int, size: int) -> bytes:
        """The bytes the guest has at ``gpa``, fewer than ``size`` where memory ends."""
        for base, memory, _ in self._memory.values():
            if 0 <= gpa - base < memory.nbytes:
                return bytes(memory[gpa - base : gpa - base + size])
        return b""

    def written_hook(self) -> tuple[int, int]:
        """To be called for what others have written (hypervisor.base.MediatedVm.written_hook)."""
        function = int(ffi.cast("uintptr_t", ffi.addressof(lib, "engine_written")))
        return function, int(ffi.cast("uintptr_t", self._engine.state))

    def _map_the_rest(self) -> None:
        self._is_mapped = True
        end = 0
        regions = sorted((gpa, memory.nbytes) for gpa, memory, _ in self._memory.values())
        for gpa, size in [*regions, (_ADDRESSES, 0)]:
            if gpa > end:
                self._engine.map_mmio(end, gpa - end)
            end = gpa + size

    def create_vcpu(self, index: int) -> SoftwareVcpu:
        """The one vCPU; its number is 0."""
        if index != 0 or self.vcpus:
            raise HostError("the software CPU is one CPU")
        self._map_the_rest()
        self.vcpus.append(self._new_vcpu())
        return self.vcpus[0]

    # ── doorbells and lines ───────────────────────────────────────────────────────────

    def add_ioeventfd(
        self, fd: int, address: int, size: int, value: int | None = None, *, pio: bool = False
    ) -> None:
        """Signal ``fd`` instead of an exit (hypervisor.base.Vm.add_ioeventfd)."""
        bells = self.port_bells if pio else self.mmio_bells
        bells.setdefault(address, {})[size, value] = partial(doorbell.ring, fd)

    def on_write(self, address: int, size: int, value: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` instead of an exit (hypervisor.base.MediatedVm.on_write)."""
        self.mmio_bells.setdefault(address, {})[size, value] = callback

    def remove_ioeventfd(
        self, fd: int, address: int, size: int, value: int | None = None, *, pio: bool = False
    ) -> None:
        """Undo add_ioeventfd, called with the same arguments."""
        del (self.port_bells if pio else self.mmio_bells)[address][size, value]

    def add_irqfd(self, fd: int, gsi: int, resample_fd: int | None = None) -> None:
        """Raise ``gsi`` whenever ``fd`` is signalled (hypervisor.base.Vm.add_irqfd)."""
        if resample_fd is not None:
            raise HostError("the software CPU has no level-triggered eventfds")

        def edge() -> None:
            doorbell.drain(fd)
            self.set_irq(gsi, True)
            self.set_irq(gsi, False)

        self.watch(fd, edge)

    def remove_irqfd(self, fd: int, gsi: int) -> None:
        """Undo add_irqfd."""
        self.forget(fd)

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` between two blocks of the guest's code, whenever ``fd`` was signalled
        or became readable since the last time."""
        taken = {number for number, _ in self._watched.values()}
        number = next((n for n in range(1, lib.WAKER_MAX) if n not in taken), lib.WAKER_MAX)
        self._watched[fd] = (number, callback)
        error = lib.waker_watch(self._waker, fd, number)
        if error:
            del self._watched[fd]
            raise HostError(f"watching a descriptor: {os.strerror(error)}")

    def forget(self, fd: int) -> None:
        """Undo watch."""
        lib.waker_forget(self._waker, fd)
        del self._watched[fd]

    def set_irq(self, gsi: int, level: bool) -> None:
        """Set the level of interrupt line ``gsi``."""
        if self.chips is not None:
            self.chips.set_irq(gsi, level)

    # ── for the vCPU ──────────────────────────────────────────────────────────────────

    def wake(self) -> None:
        """Make the vCPU look: out of its run, or out of its sleep. From any thread."""
        if self._serving == threading.get_ident():
            return  # it is looking
        lib.engine_stop(self._engine.state)
        with self._lock:
            if self._waker:
                doorbell.ring(self._wake)

    def service(self) -> None:
        """On the vCPU's thread, between two runs: do what others have asked for."""
        self._serving = threading.get_ident()
        try:
            bits = lib.waker_take(self._waker)
            if bits >> 1:
                for number, callback in list(self._watched.values()):
                    if bits >> number & 1:
                        callback()
            if bits & 1 << lib.WAKER_TIMER:
                self._timer = None  # it is over: one that was early is set again
            if self.chips is not None:
                self.chips.tick()
                self.set_timer()
            lib.engine_settle(self._engine.state)
        finally:
            self._serving = 0

    def after_chip_write(self) -> None:
        """The guest has written to a chip: a timer may have changed, an interrupt may be due."""
        self.set_timer()
        if self.chips is not None and self.chips.pending():
            lib.engine_stop(self._engine.state)

    def set_timer(self) -> None:
        """Have the vCPU woken when the next timer of the chips is due."""
        assert self.chips is not None
        deadline = self.chips.deadline()
        if deadline != self._timer:
            self._timer = deadline
            lib.waker_set_timer(self._waker, deadline or 0)

    def sleep(self) -> None:
        """Wait until somebody wakes the vCPU."""
        self._sleeper.poll()
        doorbell.drain(self._wake)

    def close(self) -> None:
        """Release everything; the vCPU may not be running."""
        for vcpu in self.vcpus:
            vcpu.close()
        with self._lock:  # others may still want to wake it
            waker, self._waker = self._waker, None
        if waker:
            lib.waker_free(waker)
            os.close(self._wake)
            self._engine.close()
            for _, _, (view, _) in self._memory.values():
                with contextlib.suppress(ValueError):
                    ffi.release(view)
            self._memory.clear()

    def __enter__(self) -> SoftwareVm:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()
