"""A machine for the guests of tests/kernels: KVM, RAM, bus and board, in this process.

No launcher and no device process: what a test wants on the bus it adds itself.
"""

from __future__ import annotations

import os
import struct
import subprocess
import threading
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import TracebackType

from protocol.memory import GuestMemory, create_memfd
from protocol.specs import BootSpec
from vmm.boot.hardware import Hardware
from vmm.boot.plan import load, plan
from vmm.bus import Bus
from vmm.hypervisor.base import Stop
from vmm.hypervisor.kvm.system import Kvm
from vmm.memory_map import MIB
from vmm.platform.board import Board
from vmm.platform.power import Reason

KERNELS = Path(__file__).parent.parent / "kernels"

ENTRY = 0x10_0000
TEST_PORT = 0xF4
"""Where the demo guest tells a test about itself, in 32-bit numbers."""

DEMO, STREAM, WATCH_CONFIG, ECHO, EXECUTE = range(5)
"""Modes of the demo guest (tests/kernels/README.md)."""

# The demo guest's parameter block: magic, then mode, wait, count and boots.
_PARAMETERS = 8

DEADLINE = 60.0
"""Seconds after which a guest that should have ended has failed; arbitrary, and generous."""


@cache
def build() -> None:
    """Build every guest from source, once a run of the tests."""
    subprocess.run([KERNELS / "build.sh"], check=True, stdout=subprocess.DEVNULL, timeout=60)


def demo(
    mode: int = DEMO,
    *,
    sleep: bool = False,
    outlast: bool = False,
    count: int = 0,
    boots: int = 1,
) -> bytes:
    """The demo guest, told what to do; ``sleep`` to wait by interrupt, ``outlast``
    to do so, and switch off the lines of storming sources of entropy, ``count`` 0 for as many
    as the mode thinks right, ``boots`` how many times, each after a reset."""
    build()
    image = bytearray((KERNELS / "x86_64_demo.raw").read_bytes())
    assert image[_PARAMETERS : _PARAMETERS + 4] == b"PARM"
    struct.pack_into(
        "<IIII", image, _PARAMETERS + 4, mode, 2 if outlast else int(sleep), count, boots
    )
    return bytes(image)


@dataclass
class TestPort:
    """A device on the bus that keeps the numbers a guest wrote, each with ``run_returns``."""

    __test__ = False

    machine: GuestMachine
    numbers: list[int] = field(default_factory=list)
    run_returns: list[int] = field(default_factory=list)

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        assert (offset, size) == (0, 4)
        self.numbers.append(value)
        self.run_returns.append(self.machine.vcpu.run_returns)


class GuestMachine:
    """One vCPU about to run the raw binary ``image`` at ``entry``.

    ``printed`` is what the guest prints, ``reason`` why it ended. Close it, or use ``with``.
    """

    def __init__(self, image: Path, entry: int = ENTRY, memory_size: int = 16 * MIB) -> None:
        self.printed = bytearray()
        self.reason: Reason | None = None
        hardware = Hardware(memory_size)
        self._memfd = create_memfd("guest", memory_size)
        self.memory = GuestMemory(self._memfd, hardware.regions)
        self._kvm = Kvm()
        self.vm = self._kvm.create_vm()
        for slot, region in enumerate(self.memory.regions):
            ram = self.memory.whole[region.offset : region.offset + region.size]
            self.vm.map_ram(slot, region.gpa, ram)
        self.bus = Bus()
        self.board = Board(self.bus, self.vm.set_irq, self.printed.extend, self._end)
        self.vcpu = self.vm.create_vcpu(0)
        self.port = TestPort(self)
        self.bus.add_pio(TEST_PORT, 4, self.port)
        self._load(image, entry, hardware)

    def _load(self, image: Path, entry: int, hardware: Hardware) -> None:
        with image.open("rb") as file:
            first = plan(BootSpec(True, "", entry, None), file, None, hardware)
            load(first, self.memory)
        first.cpu.enter(self.vcpu)

    def _end(self, reason: Reason) -> None:
        self.reason = reason
        self.vcpu.kick()

    def run(self) -> Reason | None:
        """Run the guest here until it ends; a failure if it has not at the deadline."""
        timer = threading.Timer(DEADLINE, self.vcpu.kick)
        timer.start()
        try:
            stop = self.vcpu.run(self.bus)
        finally:
            timer.cancel()
            timer.join()
        assert stop is Stop.KICKED
        assert self.reason is not None, f"still running at the deadline; printed {self.printed!r}"
        return self.reason

    def close(self) -> None:
        """Release the machine and its memory."""
        self.vm.close()
        self._kvm.close()
        self.memory.close()
        os.close(self._memfd)

    def __enter__(self) -> GuestMachine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
