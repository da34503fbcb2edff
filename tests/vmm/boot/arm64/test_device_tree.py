"""The device tree, read back by the library's other half."""

from __future__ import annotations

import struct

from libfdt import Fdt

from vmm.boot import Hardware, VirtioMmio
from vmm.boot.arm64.device_tree import device_tree
from vmm.boot.segment import Segment
from vmm.memory_map import GIB, MIB

HARDWARE = Hardware(512 * MIB, devices=(VirtioMmio(0, 5), VirtioMmio(2, 23)))


class Tree:
    """The tree by paths."""

    def __init__(self, blob: bytes) -> None:
        self._fdt = Fdt(blob)

    def value(self, path: str, name: str) -> bytes:
        return bytes(self._fdt.getprop(self._fdt.path_offset(path), name))

    def cells(self, path: str, name: str) -> tuple[int, ...]:
        data = self.value(path, name)
        return struct.unpack(f">{len(data) // 4}I", data)

    def numbers(self, path: str, name: str) -> tuple[int, ...]:
        data = self.value(path, name)
        return struct.unpack(f">{len(data) // 8}Q", data)

    def names(self, path: str = "/") -> list[str]:
        found, node = [], self._fdt.first_subnode(self._fdt.path_offset(path), [1])
        while node >= 0:
            found.append(self._fdt.get_name(node))
            node = self._fdt.next_subnode(node, [1])
        return found


def made(
    cmdline: bytes = b"", initrd: Segment | None = None, hardware: Hardware = HARDWARE
) -> Tree:
    return Tree(device_tree(cmdline, initrd, hardware))


def test_memory_has_the_hole_of_the_virtio_window() -> None:
    window, behind = 0xA0_0000, 0xA1_0000

    assert made().numbers("/memory@0", "reg") == (0, window, behind, 512 * MIB - behind)
    assert made(hardware=Hardware(4 * GIB)).numbers("/memory@0", "reg") == (
        *(0, window, behind, 0x9000_0000 - behind),
        *(0x1_0000_0000, 4 * GIB - 0x9000_0000),
    )


def test_chosen_has_the_command_line_as_it_came() -> None:
    assert made(b"console=ttyS0 \xff").value("/chosen", "bootargs") == b"console=ttyS0 \xff\0"
    assert made().value("/chosen", "bootargs") == b"\0"


def test_chosen_has_the_initrd_if_there_is_one() -> None:
    tree = made(initrd=Segment("initrd", 0x1F00_0000, bytes(1000)))

    assert tree.numbers("/chosen", "linux,initrd-start") == (0x1F00_0000,)
    assert tree.numbers("/chosen", "linux,initrd-end") == (0x1F00_03E8,)
    assert b"linux,initrd" not in device_tree(b"", None, HARDWARE)


def test_seeds_differ_from_tree_to_tree() -> None:
    one, other = made(), made()

    for name, size in (("rng-seed", 32), ("kaslr-seed", 8)):
        assert len(one.value("/chosen", name)) == size
        assert one.value("/chosen", name) != other.value("/chosen", name)


def test_the_console_is_a_16550_with_a_level_and_the_one_to_speak_on() -> None:
    tree = made()
    path = tree.value("/chosen", "stdout-path").decode().rstrip("\0")

    assert path == tree.value("/aliases", "serial0").decode().rstrip("\0") == "/serial@90000000"
    assert tree.value(path, "compatible") == b"ns16550a\0"
    assert tree.numbers(path, "reg") == (0x9000_0000, 0x1000)
    assert tree.cells(path, "interrupts") == (0, 4, 4)
    assert (tree.cells(path, "reg-shift"), tree.cells(path, "reg-io-width")) == ((0,), (1,))


def test_cpus_are_switched_on_by_hvc() -> None:
    tree = made(hardware=Hardware(512 * MIB, cpus=3))

    assert tree.names("/cpus") == ["cpu@0", "cpu@1", "cpu@2"]
    assert tree.cells("/cpus/cpu@2", "reg") == (2,)
    assert tree.value("/cpus/cpu@2", "enable-method") == b"psci\0"
    assert tree.value("/psci", "compatible") == b"arm,psci-1.0\0arm,psci-0.2\0"
    assert tree.value("/psci", "method") == b"hvc\0"
    assert tree.cells("/timer", "interrupts") == (1, 13, 0x704, 1, 14, 0x704)


def test_the_interrupt_controller_is_everybodys_parent() -> None:
    tree = made()
    gic = "/interrupt-controller@90010000"

    assert tree.cells("/", "interrupt-parent") == tree.cells(gic, "phandle")
    assert tree.value(gic, "compatible") == b"arm,cortex-a15-gic\0"
    assert tree.numbers(gic, "reg") == (0x9001_0000, 0x1000, 0x9002_0000, 0x2000)
    assert tree.cells(gic, "#interrupt-cells") == (3,)


def test_the_timer_has_the_physical_interrupts_only() -> None:
    assert made().cells("/timer", "interrupts") == (1, 13, 0x104, 1, 14, 0x104)


def test_every_virtio_device_has_its_slot_and_an_edge() -> None:
    tree = made()

    assert [name for name in tree.names() if name.startswith("virtio")] == [
        "virtio_mmio@a00000",
        "virtio_mmio@a02000",
    ]
    assert tree.numbers("/virtio_mmio@a02000", "reg") == (0xA0_2000, 0x1000)
    assert tree.cells("/virtio_mmio@a02000", "interrupts") == (0, 23, 1)
    assert tree.value("/virtio_mmio@a02000", "dma-coherent") == b""
