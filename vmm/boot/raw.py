"""Raw binaries: bytes that are copied to an address and entered in 64-bit mode.

All of memory is mapped to itself, the stack is 32 KiB below 64 KiB, interrupts are off. There
is no protocol: a raw binary knows the machine, or finds the ACPI tables from 0xE0000 on.
"""

from __future__ import annotations

from collections.abc import Sequence

from protocol.errors import BadInput
from protocol.memory import PAGE_SIZE, Region
from protocol.specs import BootSpec
from vmm.boot.cpu import CpuState, Mode, page_tables, page_tables_size
from vmm.boot.image import Image
from vmm.boot.layout import PAGE_TABLES, STACK, STACK_END
from vmm.boot.segment import Segment, align_down, is_ram
from vmm.memory_map import HIGH_RAM, VIRTIO_WINDOW, VIRTIO_WINDOW_SIZE


def plan_raw(
    boot: BootSpec, image: Image, regions: Sequence[Region]
) -> tuple[list[Segment], CpuState]:
    """The binary, page tables and a stack, and the CPU at ``boot.entry``; BadInput as below."""
    binary, entry = place_binary(boot, image, regions)
    tables = _page_tables(regions)
    return [binary, tables, stack()], CpuState(
        Mode.FLAT64, rip=entry, rsp=STACK_END, page_table=tables.gpa
    )


def place_binary(boot: BootSpec, image: Image, regions: Sequence[Region]) -> tuple[Segment, int]:
    """Where the binary goes, and where it is entered, on a CPU of any kind.

    BadInput names --entry or --load if the binary would lie outside of memory.
    """
    if boot.entry is None:
        raise BadInput("--entry", "a raw binary does not say where it starts; give an address")
    load = boot.entry if boot.load is None else boot.load
    option = "--entry" if boot.load is None else "--load"
    binary = Segment("binary", load, image.part())
    if not is_ram(regions, load, binary.size):
        raise BadInput(option, _why_not(binary, regions))
    if not binary.gpa <= boot.entry < binary.end:
        raise BadInput(
            "--entry",
            f"{boot.entry:#x} is not in the binary, which lies at {load:#x}-{binary.end:#x}",
        )
    return binary, boot.entry


def stack() -> Segment:
    """The 32 KiB below 64 KiB that a raw binary starts with."""
    return Segment("stack", STACK, b"", reserve=STACK_END - STACK)


def _page_tables(regions: Sequence[Region]) -> Segment:
    # For 4 GiB they fit below 1 MiB. Those of high RAM take a page a GiB; they go to its top.
    end = max(HIGH_RAM, *(region.end for region in regions))
    if end == HIGH_RAM:
        return page_tables(PAGE_TABLES, end)
    return page_tables(align_down(end - page_tables_size(end), PAGE_SIZE), end)


def _why_not(binary: Segment, regions: Sequence[Region]) -> str:
    place = f"the binary's {binary.size} bytes at {binary.gpa:#x}"
    window_end = VIRTIO_WINDOW + VIRTIO_WINDOW_SIZE
    if binary.gpa < window_end and binary.end > VIRTIO_WINDOW:
        return f"{place} reach into the virtio window, {VIRTIO_WINDOW:#x}-{window_end:#x}"
    ranges = ", ".join(f"{region.gpa:#x}-{region.end:#x}" for region in regions)
    return f"{place} are outside of memory, which is {ranges}"
