"""A bare machine for tests of the hypervisor: RAM, code given as bytes, and a bus that records.

Guest addresses::

    0x0000_1000  code (CODE), entered in 64-bit mode
    0x0000_3000  interrupt handler (HANDLER), where a test has one
    0x0000_5000  interrupt descriptor table
    0x0000_6000  global descriptor table
    0x0001_0000  page tables: the first 4 GiB, each address at itself
    0x0008_0000  stack, downwards
    0x0010_0000  end of RAM; what is above is MMIO
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

import pytest

from protocol.memory import GuestMemory, Region, create_memfd
from vmm.hypervisor.base import Hypervisor, Stop, Vcpu, Vm
from vmm.hypervisor.kvm.system import Kvm
from vmm.hypervisor.software import Software
from vmm.hypervisor.state import Table

CODE, HANDLER, IDT, GDT = 0x1000, 0x3000, 0x5000, 0x6000
PAGE_TABLES, STACK, RAM_SIZE = 0x10000, 0x80000, 1 << 20
DEVICE = 0x9000_0000  # no memory there

STOP_PORT = 0xF4
"""A guest that writes to this port has finished."""

DEADLINE = 30.0
"""Seconds after which a guest that should have stopped has failed; arbitrary, and generous."""

# Nothing, 64-bit code, data: delivering an interrupt loads the gate's selector from here.
_DESCRIPTORS = struct.pack("<3Q", 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)

# Page table entry: present and writable; and in a page directory, a page of 2 MiB.
_PRESENT_WRITABLE, _LARGE = 3, 1 << 7

Access = tuple[str, int, int, int]
"""What was done (``in``, ``out``, ``read``, ``write``), where, how many bytes, the value."""


def usable_kvm() -> str | None:
    """Why /dev/kvm does not work here, or None."""
    try:
        Kvm().close()
    except Exception as error:
        return str(error)
    return None


def require_kvm() -> None:
    """Skip the test, with the reason, where /dev/kvm does not work."""
    reason = usable_kvm()
    if reason:
        pytest.skip(reason)


BACKENDS = [pytest.param("kvm", marks=pytest.mark.kvm), "software"]
"""Each backend's name, as a parameter of tests."""

# What makes no difference to a test is not tried both ways.
on_software = pytest.mark.parametrize("backend", ["software"], indirect=True)
"""For what the launcher does whichever CPU there is."""

at_jail = pytest.mark.parametrize("isolation", ["jail"], indirect=True)
"""For what is the same whether or not a device sees guest memory."""


def require_backend(name: str) -> None:
    """Skip the test, with the reason, where the backend does not work."""
    if name == "kvm":
        require_kvm()
    else:
        pytest.importorskip("unicorn", reason="the Unicorn engine is not installed")


BACKEND = ContextVar("BACKEND", default="kvm")
"""What bare machines are made of; tests/vmm/hypervisor/conftest.py runs tests on each."""


def open_backend() -> Hypervisor:
    """The backend that BACKEND names; skips where KVM does not work."""
    if BACKEND.get() == "software":
        return Software()
    require_kvm()
    return Kvm()


@dataclass
class FakeBus:
    """Records every access; reads get the next of ``answers``, then ones."""

    accesses: list[Access] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    on_port: dict[int, Callable[[], object]] = field(default_factory=dict)

    def _read(self, what: str, where: int, size: int) -> int:
        value = self.answers.pop(0) if self.answers else -1
        self.accesses.append((what, where, size, value))
        return value

    def pio_read(self, port: int, size: int) -> int:
        value = self._read("in", port, size)
        self.on_port.get(port, lambda: None)()
        return value

    def pio_write(self, port: int, size: int, value: int) -> None:
        self.accesses.append(("out", port, size, value))
        self.on_port.get(port, lambda: None)()

    def mmio_read(self, address: int, size: int) -> int:
        return self._read("read", address, size)

    def mmio_write(self, address: int, size: int, value: int) -> None:
        self.accesses.append(("write", address, size, value))


class BareMachine:
    """One VM with RAM and ``cpus`` vCPUs; the first is about to run ``code``."""

    def __init__(self, vm: Vm, code: bytes, cpus: int) -> None:
        self.vm = vm
        fd = create_memfd("bare", RAM_SIZE)
        self.memory = GuestMemory(fd, [Region(0, RAM_SIZE, 0)])
        os.close(fd)
        self.ram = self.memory.whole
        vm.map_ram(0, 0, self.ram)
        self.bus = FakeBus()
        self.runners: list[Runner] = []
        self.vcpus = [vm.create_vcpu(index) for index in range(cpus)]
        self.vcpu = self.vcpus[0]
        self.bus.on_port[STOP_PORT] = self.vcpu.kick
        self.load(CODE, code)
        self.load(GDT, _DESCRIPTORS)
        self._map_4_gib()
        self.start_at(CODE)

    def load(self, gpa: int, code: bytes) -> None:
        self.ram[gpa : gpa + len(code)] = code

    def start_at(self, rip: int, **registers: int) -> None:
        """64-bit mode at ``rip``, on the first vCPU, with these registers."""
        sregs = self.vcpu.get_sregs()
        sregs.enter_long_mode(PAGE_TABLES)
        sregs.gdt, sregs.idt = Table(GDT, len(_DESCRIPTORS) - 1), Table(IDT, 0)
        self.vcpu.set_sregs(sregs)
        regs = self.vcpu.get_regs()
        regs.rip, regs.rsp = rip, STACK
        for name, value in registers.items():
            setattr(regs, name, value)
        self.vcpu.set_regs(regs)

    def handle_interrupt(self, vector: int, code: bytes) -> None:
        """Put ``code`` at HANDLER, and into the IDT as the gate of ``vector``."""
        self.load(HANDLER, code)
        # 64-bit interrupt gate (SDM volume 3A, 6.14.1): offset 15:0, code selector, type 0xE,
        # present, offset 31:16; the rest is 0.
        gate = struct.pack("<HHBBHQ", HANDLER & 0xFFFF, 0x08, 0, 0x8E, HANDLER >> 16, 0)
        self.load(IDT + 16 * vector, gate)
        sregs = self.vcpu.get_sregs()
        sregs.idt = Table(IDT, 16 * 256 - 1)
        self.vcpu.set_sregs(sregs)

    def run(self) -> Stop:
        """Run the first vCPU here; a failure if it has not stopped at the deadline."""
        expired = threading.Event()

        def give_up() -> None:
            expired.set()
            self.vcpu.kick()

        timer = threading.Timer(DEADLINE, give_up)
        timer.start()
        try:
            stop = self.vcpu.run(self.bus)
        finally:
            timer.cancel()
            timer.join()
        assert not expired.is_set(), f"still running at the deadline; did {self.bus.accesses}"
        return stop

    def start(self, vcpu: Vcpu) -> Runner:
        """Run ``vcpu`` on a thread of its own."""
        runner = Runner(vcpu, self.bus)
        self.runners.append(runner)
        runner.start()
        return runner

    def stop(self) -> None:
        """Stop whatever still runs, as after a test that failed."""
        for runner in self.runners:
            while runner.is_alive():
                runner.vcpu.kick()
                runner.join(0.1)

    def _map_4_gib(self) -> None:
        # One page with a PML4 entry, one with four PDPT entries, four full page directories.
        directories = [PAGE_TABLES + 0x2000 + 0x1000 * i for i in range(4)]
        self.load(PAGE_TABLES, struct.pack("<Q", PAGE_TABLES + 0x1000 | _PRESENT_WRITABLE))
        pointers = [directory | _PRESENT_WRITABLE for directory in directories]
        self.load(PAGE_TABLES + 0x1000, struct.pack("<4Q", *pointers))
        pages = [page << 21 | _PRESENT_WRITABLE | _LARGE for page in range(4 * 512)]
        self.load(directories[0], struct.pack(f"<{len(pages)}Q", *pages))


class Runner(threading.Thread):
    """A thread in ``vcpu.run``; ``stop`` is what it returned, ``error`` what it raised."""

    def __init__(self, vcpu: Vcpu, bus: FakeBus) -> None:
        super().__init__(name=f"vcpu{vcpu.index}")
        self.vcpu, self.bus = vcpu, bus
        self.stop: Stop | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.stop = self.vcpu.run(self.bus)
        except BaseException as error:
            self.error = error

    def result(self) -> Stop | None:
        """Wait until it has returned, to the deadline."""
        self.join(DEADLINE)
        assert not self.is_alive(), f"{self.name} still runs at the deadline"
        if self.error:
            raise self.error
        return self.stop


@contextlib.contextmanager
def bare_machine(code: str, *, irqchip: bool = False, cpus: int = 1) -> Iterator[BareMachine]:
    """A machine about to run ``code``: lines of hex, each with its assembly behind a ``#``.

    Skips where KVM does not work; fails the test that leaks a descriptor.
    """
    before = len(os.listdir("/proc/self/fd"))
    hypervisor = open_backend()
    try:
        vm = hypervisor.create_vm(cpus, irqchip=irqchip)
        try:
            machine = BareMachine(vm, assembled(code), cpus)
            try:
                yield machine
            finally:
                machine.stop()
        finally:
            vm.close()
            machine.memory.close()
    finally:
        hypervisor.close()
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor leaked"


def assembled(listing: str) -> bytes:
    """The bytes of a listing: hex digits, up to a ``#`` on each line."""
    return bytes.fromhex("".join(line.split("#")[0] for line in listing.splitlines()))
