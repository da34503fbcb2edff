"""What to put into an arm64 guest's memory and where its CPU starts: as vmm.boot.plan.

::

    0x0000_0000  kernel, if it fits below the virtio window
    0x00A0_0000  virtio window
    0x00C0_0000  kernel, if not
                 free
                 initrd
                 device tree, at the last address in low RAM, and within 512 MiB of the kernel,
                 that 2 MiB divide

A small initrd may lie behind the device tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from protocol.errors import BadInput
from protocol.memory import PAGE_SIZE, Region
from protocol.specs import BootSpec
from vmm.boot.arm64.device_tree import device_tree
from vmm.boot.arm64.image import is_image, read_image
from vmm.boot.arm64.raw import plan_raw
from vmm.boot.hardware import Hardware
from vmm.boot.image import Image
from vmm.boot.kernel import Kernel, Kind
from vmm.boot.placing import check_apart, range_line, refuse
from vmm.boot.segment import Segment, align_down, highest_room
from vmm.boot.unbootable import what_else
from vmm.hypervisor.arm64_state import Arm64State
from vmm.memory_map import KIB, LOW_RAM_END, MIB, VIRTIO_WINDOW

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

_ELF_MAGIC = b"\x7fELF"
# Enough for every header and magic number that is looked at.
_HEAD = 4096

# booting.rst, section 2: the kernel maps the tree in blocks of this size, as memory, so the tree is
# at the start of one in which there is nothing else but memory.
_BLOCK = 2 * MIB
_WINDOW_BLOCK = Segment("the virtio window's block", align_down(VIRTIO_WINDOW, _BLOCK), b"", _BLOCK)
# How far behind the kernel one older than 4.2 finds it.
_TREE_REACH = 512 * MIB
# What is kept for it. Arbitrary; with 15 devices and the longest command line it takes 6 KiB.
_TREE_ROOM = 64 * KIB


@dataclass(frozen=True, slots=True)
class Arm64Plan:
    """All that vmm.boot.placing.load will do, and the state in which the boot CPU then starts."""

    kind: Kind
    title: str
    segments: tuple[Segment, ...]
    cpu: Arm64State
    regions: tuple[Region, ...]

    @property
    def entry(self) -> int:
        """Guest address of the first instruction."""
        return self.cpu.pc


def plan(
    boot: BootSpec,
    kernel: FileDescriptorLike,
    initrd: FileDescriptorLike | None,
    hardware: Hardware,
) -> Arm64Plan:
    """How to boot ``kernel``, an open file, on ``hardware``; its kind is found by looking at it.

    The files are only read, at explicit offsets, and have to stay open until they are loaded.
    BadInput names the option that cannot be met.
    """
    if boot.binary:
        refuse(
            "--kernel, not --binary",
            {"--initrd": initrd is not None, "--cmdline": boot.cmdline != ""},
        )
        segments, cpu = plan_raw(boot, Image(kernel, "--binary"), hardware.regions)
        kind, title = Kind.RAW, Kind.RAW.value
    else:
        refuse(
            "--binary, not --kernel",
            {"--entry": boot.entry is not None, "--load": boot.load is not None},
        )
        found = _read_kernel(Image(kernel, "--kernel"), hardware.regions)
        archive = None if initrd is None else Image(initrd, "--initrd")
        segments, cpu = _plan_kernel(found, boot.cmdline, archive, hardware)
        kind, title = found.kind, found.title
    check_apart(segments)
    ordered = sorted(segments, key=lambda segment: segment.gpa)
    return Arm64Plan(kind, title, tuple(ordered), cpu, hardware.regions)


def describe(plan: Arm64Plan) -> list[str]:
    """The plan in lines for people: what starts where, what lies where, what the guest is told."""
    lines = [f"kernel: {plan.title}", f"entry: {plan.entry:#x} at EL1, MMU off"]
    lines += ["", "loaded into guest memory:"]
    lines += [range_line(segment.gpa, segment.end, segment.name) for segment in plan.segments]
    lines += ["", "memory the guest is given:"]
    lines += [range_line(region.gpa, region.end, "ram") for region in plan.regions]
    return lines


def _read_kernel(image: Image, regions: Sequence[Region]) -> Kernel:
    head = image.read(0, _HEAD)
    if is_image(head):
        return read_image(image, regions)
    if head.startswith(_ELF_MAGIC):
        # The vmlinux of arm64 is linked for virtual addresses; there is no protocol for it.
        raise image.bad("this is an ELF file; an arm64 kernel boots as an Image (arch/arm64/boot)")
    raise image.bad(f"this is not a kernel: {what_else(head, 'no arm64 Image')}")


def _plan_kernel(
    kernel: Kernel, cmdline: str, archive: Image | None, hardware: Hardware
) -> tuple[list[Segment], Arm64State]:
    arguments = _arguments(kernel, cmdline)
    place = _tree_place(kernel, hardware.regions)
    segments = [*kernel.segments, place]
    initrd = None
    if archive is not None:
        initrd = _initrd(archive, hardware.regions, segments)
        segments.append(initrd)
    data = device_tree(arguments, initrd, hardware)
    assert len(data) <= place.size, "a device tree is larger than anybody expected"
    segments[len(kernel.segments)] = replace(place, data=data)
    return segments, Arm64State(pc=kernel.entry, x0=place.gpa)


def _arguments(kernel: Kernel, text: str) -> bytes:
    # What the shell passed in another encoding goes to the guest as it came.
    data = text.encode("utf-8", "surrogateescape")
    if b"\0" in data:
        raise BadInput("--cmdline", "it contains a NUL, which would end it")
    if len(data) > kernel.cmdline_size:
        raise BadInput(
            "--cmdline", f"it is {len(data)} bytes long; this kernel takes {kernel.cmdline_size}"
        )
    return data


def _tree_place(kernel: Kernel, regions: Sequence[Region]) -> Segment:
    # Before the initrd, whose place the tree names.
    limit = min(kernel.entry + _TREE_REACH, LOW_RAM_END)
    taken = [*kernel.segments, _WINDOW_BLOCK]
    room = highest_room(regions, _TREE_ROOM, limit, _BLOCK, taken)
    # A kernel that leaves none before the virtio window does not reach behind it, nor the reverse.
    assert room is not None
    return Segment("device tree", room, b"", reserve=_TREE_ROOM)


def _initrd(archive: Image, regions: Sequence[Region], taken: Sequence[Segment]) -> Segment:
    # In low RAM it lies in the same 32 GiB as the kernel, as it has to.
    room = highest_room(regions, archive.size, LOW_RAM_END, PAGE_SIZE, taken)
    if room is None:
        raise archive.bad(
            f"its {archive.size / MIB:.0f}M do not fit in low RAM beside the kernel; "
            "more --mem may help"
        )
    return Segment("initrd", room, archive.part())
