"""The device tree: what an arm64 guest is told of its machine (Devicetree Specification 0.4).

The nodes follow the kernel's Documentation/devicetree/bindings: chosen, arm/cpus, arm/psci,
interrupt-controller/arm,gic, timer/arm,arch_timer, serial/8250, virtio/mmio.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Sequence

from libfdt import FdtSw

from protocol.memory import Region
from vmm import arm64_map, memory_map
from vmm.boot.hardware import Hardware, VirtioMmio
from vmm.boot.segment import Segment

# The root's cells: an address takes two of 32 bits, and so does a size.
_CELLS = 2

# bindings/interrupt-controller/arm,gic.yaml: kind of interrupt, and trigger. A device's line is
# pulsed by its process; the console's is held while there is something to do; a PPI's flags name
# the CPUs that it is wired to, too.
_SPI, _PPI = 0, 1
_EDGE, _HIGH = 1, 4
_CPUS_SHIFT = 8

# The only phandle of the tree.
_GIC = 1

# What the divisor of the console counts from, as on a PC; it has no effect.
_UART_CLOCK = 1_843_200

# What the kernel's generator wants before it calls itself ready: 256 bits (drivers/char/random.c).
_RNG_SEED = 32
_KASLR_SEED = 8


def device_tree(cmdline: bytes, initrd: Segment | None, hardware: Hardware) -> bytes:
    """The tree as a blob. Two of one machine differ in their seeds.

    The timer node names the physical timer's interrupts only, so that a guest at EL1 uses that
    one: the software CPU does not have the virtual one.
    """
    tree = _Tree()
    with tree.node(""):
        tree.cells("#address-cells", _CELLS)
        tree.cells("#size-cells", _CELLS)
        tree.cells("interrupt-parent", _GIC)
        tree.strings("compatible", "vibe-vmm,virt")
        tree.strings("model", "Vibe-VMM")
        with tree.node("aliases"):
            tree.strings("serial0", _console_path())
        _chosen(tree, cmdline, initrd)
        _memory(tree, hardware.regions)
        _cpus(tree, hardware.cpus)
        _gic(tree)
        _timer(tree, hardware.cpus)
        _console(tree)
        for device in hardware.devices:
            _virtio_mmio(tree, device)
    return tree.blob()


class _Tree:
    # The library's sequential writer, with the value types that nodes are made of.
    def __init__(self) -> None:
        self._writer = FdtSw()
        self._writer.finish_reservemap()
        self.node = self._writer.add_node

    def cells(self, name: str, *values: int) -> None:
        self.raw(name, struct.pack(f">{len(values)}I", *values))

    def strings(self, name: str, *values: str) -> None:
        self.raw(name, b"".join(value.encode() + b"\0" for value in values))

    def numbers(self, name: str, *values: int) -> None:
        # Of 64 bits each: two cells.
        self.raw(name, struct.pack(f">{len(values)}Q", *values))

    def raw(self, name: str, value: bytes) -> None:
        self._writer.property(name, value)

    def flag(self, name: str) -> None:
        self.raw(name, b"")

    def blob(self) -> bytes:
        tree = self._writer.as_fdt()
        tree.pack()
        return bytes(tree.as_bytearray())


def _chosen(tree: _Tree, cmdline: bytes, initrd: Segment | None) -> None:
    with tree.node("chosen"):
        tree.raw("bootargs", cmdline + b"\0")
        tree.strings("stdout-path", _console_path())
        if initrd is not None:
            tree.numbers("linux,initrd-start", initrd.gpa)
            tree.numbers("linux,initrd-end", initrd.end)
        tree.raw("kaslr-seed", os.urandom(_KASLR_SEED))
        tree.raw("rng-seed", os.urandom(_RNG_SEED))


def _memory(tree: _Tree, regions: Sequence[Region]) -> None:
    with tree.node(f"memory@{regions[0].gpa:x}"):
        tree.strings("device_type", "memory")
        tree.numbers("reg", *_pairs((region.gpa, region.size) for region in regions))


def _cpus(tree: _Tree, count: int) -> None:
    with tree.node("cpus"):
        tree.cells("#address-cells", 1)
        tree.cells("#size-cells", 0)
        for index in range(count):
            with tree.node(f"cpu@{index:x}"):
                tree.strings("device_type", "cpu")
                tree.strings("compatible", "arm,armv8")
                tree.cells("reg", index)
                tree.strings("enable-method", "psci")
    with tree.node("psci"):
        tree.strings("compatible", "arm,psci-1.0", "arm,psci-0.2")
        tree.strings("method", "hvc")


def _gic(tree: _Tree) -> None:
    frames = (
        (arm64_map.GIC_DISTRIBUTOR, arm64_map.GIC_DISTRIBUTOR_SIZE),
        (arm64_map.GIC_CPU_INTERFACE, arm64_map.GIC_CPU_INTERFACE_SIZE),
    )
    with tree.node(f"interrupt-controller@{arm64_map.GIC_DISTRIBUTOR:x}"):
        tree.strings("compatible", "arm,cortex-a15-gic")
        tree.cells("#interrupt-cells", 3)
        tree.cells("#address-cells", 0)
        tree.flag("interrupt-controller")
        tree.numbers("reg", *_pairs(frames))
        tree.cells("phandle", _GIC)


def _timer(tree: _Tree, cpus: int) -> None:
    flags = ((1 << cpus) - 1) << _CPUS_SHIFT | _HIGH
    with tree.node("timer"):
        tree.strings("compatible", "arm,armv8-timer")
        interrupts = (arm64_map.SECURE_TIMER_INTID, arm64_map.TIMER_INTID)
        cells = ((_PPI, intid - arm64_map.FIRST_PPI, flags) for intid in interrupts)
        tree.cells("interrupts", *(cell for group in cells for cell in group))
        # It goes on while the CPU waits for an interrupt.
        tree.flag("always-on")


def _console_path() -> str:
    return f"/serial@{memory_map.MMIO_CONSOLE:x}"


def _console(tree: _Tree) -> None:
    with tree.node(_console_path().lstrip("/")):
        tree.strings("compatible", "ns16550a")
        tree.numbers("reg", memory_map.MMIO_CONSOLE, memory_map.MMIO_CONSOLE_SIZE)
        tree.cells("reg-shift", 0)
        tree.cells("reg-io-width", 1)
        tree.cells("clock-frequency", _UART_CLOCK)
        tree.cells("interrupts", _SPI, arm64_map.CONSOLE_GSI, _HIGH)


def _virtio_mmio(tree: _Tree, device: VirtioMmio) -> None:
    with tree.node(f"virtio_mmio@{device.address:x}"):
        tree.strings("compatible", "virtio,mmio")
        tree.numbers("reg", device.address, memory_map.VIRTIO_SLOT_SIZE)
        tree.cells("interrupts", _SPI, device.gsi, _EDGE)
        tree.flag("dma-coherent")


def _pairs(pairs: Iterable[tuple[int, int]]) -> Iterable[int]:
    return (number for pair in pairs for number in pair)
