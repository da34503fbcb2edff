"""Exits to user space per second: the Python vCPU loop against a bare C loop of KVM_RUN.

Both loops take turns on the same vCPU of the same guest, which does nothing but write to a port,
or to an address without memory. ``python -m tests.perf.exits`` prints what ``measure`` found.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import tempfile
import time
from pathlib import Path

from vmm.hypervisor.kvm._kvm import lib

from tests.support.bare import CODE, DEVICE, bare_machine
from vmm.bus import Bus
from vmm.hypervisor.base import Stop
from vmm.hypervisor.detect import kvm_is_software as is_software
from vmm.hypervisor.kvm.vcpu import KvmVcpu

PORT = 0x50
PORT_GUEST = """
    ee     # out dx, al
    eb fd  # jmp back
"""
MMIO_GUEST = """
    89 07  # mov [rdi], eax
    eb fc  # jmp back
"""

# A turn is short, some 4 ms on software KVM, so that on a busy host many turns are left in peace;
# the best turn of each loop counts, for whatever disturbs a turn only adds to it.
EXITS, TURNS = 400, 300


class CountDown:
    """A device that stops the vCPU at the last of its writes: the cheapest one that can."""

    def __init__(self, vcpu: KvmVcpu) -> None:
        self.vcpu = vcpu
        self.left = 0

    def read(self, offset: int, size: int) -> int:
        raise AssertionError("this guest only writes")

    def write(self, offset: int, size: int, value: int) -> None:
        self.left -= 1
        if not self.left:
            self.vcpu.kick()


def measure(exits: int = EXITS, turns: int = TURNS) -> dict[str, float | bool]:
    """For ``port`` and ``mmio``: exits per second of both loops, the ratio of Python's to C's,
    and what one dispatch (decoding the exit, the bus, a device, back to KVM_RUN) adds, in ns."""
    found: dict[str, float | bool] = {"software_kvm": is_software()}
    with tempfile.TemporaryDirectory() as folder:
        take_exits = _bare_loop(Path(folder))
        for kind, code, reason in (
            ("port", PORT_GUEST, lib.KVM_EXIT_IO),
            ("mmio", MMIO_GUEST, lib.KVM_EXIT_MMIO),
        ):
            with bare_machine(code) as machine:
                vcpu = machine.vcpu
                machine.start_at(CODE, rdx=PORT, rdi=DEVICE)
                bus, device = Bus(), CountDown(vcpu)
                bus.add_pio(PORT, 1, device)
                bus.add_mmio(DEVICE, 4096, device)
                pairs = []
                for _ in range(turns):
                    c = take_exits(vcpu.fd, vcpu.run_size, reason, exits)
                    if c < 0:
                        raise RuntimeError(f"the C loop failed: {c}")
                    pairs.append((c / exits, _python_turn(vcpu, bus, device, exits)))
            c_ns = min(c for c, _ in pairs)
            python_ns = min(python for _, python in pairs)
            found |= {
                f"{kind}_c_per_second": round(1e9 / c_ns),
                f"{kind}_python_per_second": round(1e9 / python_ns),
                f"{kind}_ratio": round(c_ns / python_ns, 3),
                f"{kind}_dispatch_ns": round(python_ns - c_ns),
            }
    return found


def _python_turn(vcpu: KvmVcpu, bus: Bus, device: CountDown, exits: int) -> float:
    # Nanoseconds an exit.
    device.left = exits
    start = time.perf_counter_ns()
    stop = vcpu.run(bus)
    took = time.perf_counter_ns() - start
    assert stop is Stop.KICKED
    return took / exits


def _bare_loop(folder: Path) -> ctypes._FuncPointer:
    library = folder / "exits.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    take_exits = ctypes.CDLL(str(library)).take_exits
    take_exits.argtypes = [ctypes.c_int, ctypes.c_size_t, ctypes.c_uint32, ctypes.c_int64]
    take_exits.restype = ctypes.c_int64
    return take_exits


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
