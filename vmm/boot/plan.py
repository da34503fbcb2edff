"""What to put into guest memory and where the CPU starts: planned first, then loaded.

A plan is made without memory and writes nothing, so the launcher makes one too, to refuse bad
input before anything starts and to print it for ``--dry-run``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from protocol.errors import BadInput
from protocol.memory import PAGE_SIZE
from protocol.specs import BootSpec
from vmm.boot.acpi.tables import build_tables
from vmm.boot.bzimage import is_bzimage, read_bzimage
from vmm.boot.cpu import CpuState, Mode, page_tables
from vmm.boot.e820 import Entry, e820_map
from vmm.boot.hardware import Hardware
from vmm.boot.image import Image
from vmm.boot.kernel import Kernel, Kind
from vmm.boot.layout import COMMAND_LINE, COMMAND_LINE_END, PAGE_TABLES, RSDP, START_INFO
from vmm.boot.placing import check_apart, load, range_line, refuse
from vmm.boot.pvh import start_info
from vmm.boot.raw import plan_raw
from vmm.boot.segment import Segment, highest_room
from vmm.boot.unbootable import what_else
from vmm.boot.zero_page import zero_page
from vmm.memory_map import HIGH_RAM, LOW_RAM_END, MIB

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

_ELF_MAGIC = b"\x7fELF"
# Enough for every header and magic number that is looked at.
_HEAD = 4096

__all__ = ["BootPlan", "describe", "load", "plan"]


@dataclass(frozen=True, slots=True)
class BootPlan:
    """All that :func:`load` will do, and the state in which the boot CPU then starts."""

    kind: Kind
    title: str
    segments: tuple[Segment, ...]
    cpu: CpuState
    e820: tuple[Entry, ...]

    @property
    def entry(self) -> int:
        """Guest address of the first instruction."""
        return self.cpu.rip


def plan(
    boot: BootSpec,
    kernel: FileDescriptorLike,
    initrd: FileDescriptorLike | None,
    hardware: Hardware,
    *,
    unpack: bool = False,
) -> BootPlan:
    """How to boot ``kernel``, an open file, on ``hardware``; its kind is found by looking at it.

    With ``unpack`` what is in a bzImage is booted, if it can be unpacked here and fits.
    The files are only read, at explicit offsets, and have to stay open until :func:`load`.
    BadInput names the option that cannot be met.
    """
    e820 = e820_map(hardware.regions)
    tables = build_tables(hardware.cpus, hardware.devices, hardware.irqchip)
    if boot.binary:
        refuse(
            "--kernel, not --binary",
            {"--initrd": initrd is not None, "--cmdline": boot.cmdline != ""},
        )
        pieces, cpu = plan_raw(boot, Image(kernel, "--binary"), hardware.regions)
        kind, title = Kind.RAW, Kind.RAW.value
    else:
        refuse(
            "--binary, not --kernel",
            {"--entry": boot.entry is not None, "--load": boot.load is not None},
        )
        found = _read_kernel(Image(kernel, "--kernel"), hardware, unpack)
        archive = None if initrd is None else Image(initrd, "--initrd")
        pieces, cpu = _plan_kernel(found, boot.cmdline, archive, e820, hardware)
        kind, title = found.kind, found.title
    segments = (*pieces, cpu.gdt(), tables)
    check_apart(segments)
    ordered = sorted(segments, key=lambda segment: segment.gpa)
    return BootPlan(kind, title, tuple(ordered), cpu, e820)


def describe(plan: BootPlan) -> list[str]:
    """The plan in lines for people: what starts where, what lies where, what the guest is told."""
    lines = [f"kernel: {plan.title}", f"entry: {plan.entry:#x} in {plan.cpu.mode.value}"]
    lines += ["", "loaded into guest memory:"]
    lines += [range_line(segment.gpa, segment.end, segment.name) for segment in plan.segments]
    lines += ["", "memory map the guest is given:"]
    lines += [range_line(entry.gpa, entry.end, entry.kind.name.lower()) for entry in plan.e820]
    return lines


def _read_kernel(image: Image, hardware: Hardware, unpack: bool) -> Kernel:
    head = image.read(0, _HEAD)
    if head.startswith(_ELF_MAGIC):
        # The parser takes longer to import than all the rest of this package.
        from vmm.boot.elf import read_elf

        return read_elf(image, hardware.regions)
    if is_bzimage(head) and unpack:
        from vmm.boot import payload

        inner = payload.unpack(image)
        # Where it does not fit as it is, the kernel moves itself to where it does.
        with contextlib.suppress(BadInput):
            if inner is not None:
                return _read_kernel(inner, hardware, False)
    if is_bzimage(head):
        return read_bzimage(image, hardware.regions)
    raise image.bad(f"this is not a kernel: {what_else(head, 'neither bzImage nor ELF')}")


def _plan_kernel(
    kernel: Kernel, cmdline: str, archive: Image | None, e820: Sequence[Entry], hardware: Hardware
) -> tuple[list[Segment], CpuState]:
    command_line = _command_line(kernel, cmdline)
    initrd = None if archive is None else _initrd(kernel, archive, hardware)
    segments = [*kernel.segments, command_line]
    if initrd is not None:
        segments.append(initrd)
    if kernel.kind is Kind.PVH:
        segments.append(start_info(command_line, initrd, e820, RSDP))
        return segments, CpuState(Mode.FLAT32, rip=kernel.entry, rbx=START_INFO)
    segments.append(
        zero_page(kernel.setup_header, kernel.segments[0], command_line, initrd, e820, RSDP)
    )
    # All of it lies below 4 GiB; a kernel maps the rest by itself.
    segments.append(page_tables(PAGE_TABLES, HIGH_RAM))
    return segments, CpuState(Mode.FLAT64, rip=kernel.entry, rsi=START_INFO, page_table=PAGE_TABLES)


def _command_line(kernel: Kernel, text: str) -> Segment:
    # What the shell passed in another encoding goes to the guest as it came.
    data = text.encode("utf-8", "surrogateescape")
    most = min(kernel.cmdline_size, COMMAND_LINE_END - COMMAND_LINE - 1)
    if b"\0" in data:
        raise BadInput("--cmdline", "it contains a NUL, which would end it")
    if len(data) > most:
        raise BadInput("--cmdline", f"it is {len(data)} bytes long; this kernel takes {most}")
    return Segment("command line", COMMAND_LINE, data + b"\0")


def _initrd(kernel: Kernel, archive: Image, hardware: Hardware) -> Segment:
    limit = min(kernel.initrd_addr_max + 1, LOW_RAM_END)
    room = highest_room(hardware.regions[1:], archive.size, limit, PAGE_SIZE, kernel.segments)
    if room is None:
        raise archive.bad(
            f"its {archive.size / MIB:.0f}M do not fit in low RAM beside the kernel; "
            "more --mem may help"
        )
    return Segment("initrd", room, archive.part())
