"""The guest physical memory map: every address the machine has, in this one file.

::

    0x0000_0000  low RAM
    0x00A0_0000  virtio-mmio window, 15 slots of 4 KiB; reserved in e820; 64 KiB hole in low RAM
    0x00A1_0000  low RAM goes on, up to
    0x9000_0000  MMIO console, 4 KiB, always there
    0xE000_0000  PCI ECAM and BARs, when there is a PCI bus
    0xFEC0_0000  IOAPIC
    0xFEE0_0000  local APICs
    0x1_0000_0000  high RAM: what exceeds the low part
    0x4000_0000_0000  shadow rings, which no guest sees; 4 MiB for each virtio slot
    0x5000_0000_0000  bounce memory, for the eyes of one device: shadow rings, 8 MiB for each queue

The offset of a region in the memfd is congruent to its guest address modulo 2 MiB, so
that huge pages can back it: low RAM lies at its own address, high RAM where the low
part ends.
"""

from __future__ import annotations

import os

from protocol.errors import BadInput
from protocol.memory import PAGE_SIZE, Region

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

VIRTIO_WINDOW = 0x00A0_0000
VIRTIO_SLOT_SIZE = 0x1000
VIRTIO_WINDOW_SIZE = 0x1_0000
MMIO_CONSOLE = 0x9000_0000
MMIO_CONSOLE_SIZE = 0x1000
LOW_RAM_END = MMIO_CONSOLE
PCI_WINDOW = 0xE000_0000
IOAPIC = 0xFEC0_0000
LOCAL_APIC = 0xFEE0_0000
HIGH_RAM = 0x1_0000_0000
# Where vmm.mediation puts rings for devices: 4 MiB hold four queues of the largest size.
SHADOW_RINGS = 0x4000_0000_0000
SHADOW_SIZE = 4 * MIB
# Memory of a device that is handed no guest memory: it has an address space to itself. What a queue
# has for copies takes the largest request of a stock Linux, of 126 segments of 64 KiB, which is the
# largest page of arm64, with its header and status. Memory files are populated as they are used.
BOUNCE = 0x5000_0000_0000
ARENA_SIZE = 8 * MIB
# What a chain may have to fit, however it is divided (vmm.mediation.largest_chain).
LARGEST_CHAIN = ARENA_SIZE - 126

MIN_MEMORY = 16 * MIB
DEFAULT_MEMORY = 512 * MIB

# What the PIC, the PIT, the RTC and the 16550 leave of 24 GSIs (0, 1, 2, 4, 8, 9, 12 and 13 are
# taken: timer, keyboard, cascade, serial, RTC, SCI, mouse, FPU).
VIRTIO_GSIS = (5, 6, 7, 10, 11, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23)
MAX_VIRTIO_DEVICES = len(VIRTIO_GSIS)

# Arbitrary; 64 bits are 20 digits, and Python does not make numbers of more than 4300.
_MOST_DIGITS = 100

_SUFFIXES = {"": 1, "K": KIB, "M": MIB, "G": GIB}


def parse_size(text: str, option: str = "--mem") -> int:
    """Bytes from ``512M``: a whole number with K, M, G (1024-based; either case) or nothing."""
    number, suffix = text, ""
    if number and number[-1].isalpha():
        number, suffix = number[:-1], number[-1].upper()
    if suffix not in _SUFFIXES:
        raise BadInput(option, f"{text!r} ends in {suffix!r}; a size ends in K, M, G or a digit")
    if number.startswith("-"):
        raise BadInput(option, f"{text!r} is negative")
    if not (number.isascii() and number.isdigit()):
        raise BadInput(option, f"{text!r} is not a size such as 512M or 2G")
    if len(number) > _MOST_DIGITS:
        raise BadInput(option, f"a size of {len(number)} digits is more than any machine's")
    return int(number) * _SUFFIXES[suffix]


def check_memory_size(size: int, option: str = "--mem") -> None:
    """BadInput unless ``size`` bytes are a machine's: whole pages, from 16M to what the host has.

    Guest memory is populated as it is used, so as much as all of the host's may be promised.
    """
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size == 0:
        raise BadInput(option, "a machine needs memory; 0 is none")
    if size < MIN_MEMORY:
        raise BadInput(option, f"{size} bytes are less than the least, 16M")
    if size % PAGE_SIZE:
        raise BadInput(option, f"{size} bytes are not a multiple of 4K")
    if size > host:
        raise BadInput(option, f"{size // MIB}M are more than the {host // MIB}M of this host")


def slot_address(slot: int) -> int:
    """Guest address of the register page of virtio-mmio slot ``slot``, from 0."""
    return VIRTIO_WINDOW + slot * VIRTIO_SLOT_SIZE


def regions(size: int) -> tuple[Region, ...]:
    """The regions of RAM of a machine with ``--mem size``, in order of address.

    The virtio window is a hole in them: its 64 KiB are lost, not moved.
    """
    low_end = min(size, LOW_RAM_END)
    found = [Region(0, VIRTIO_WINDOW, 0)]
    behind = VIRTIO_WINDOW + VIRTIO_WINDOW_SIZE
    found.append(Region(behind, low_end - behind, behind))
    if size > LOW_RAM_END:
        found.append(Region(HIGH_RAM, size - LOW_RAM_END, LOW_RAM_END))
    return tuple(found)


def shadow_region(size: int, slot: int) -> Region:
    """The shadow rings of the device in ``slot`` of a machine with ``--mem size``."""
    offset = -(-size // (2 * MIB)) * 2 * MIB + slot * SHADOW_SIZE
    return Region(SHADOW_RINGS + slot * SHADOW_SIZE, SHADOW_SIZE, offset)


def bounce_region(queues: int) -> Region:
    """The memory of a device with so many queues that works on copies; a file of its own."""
    return Region(BOUNCE, SHADOW_SIZE + queues * ARENA_SIZE, 0)


def arena_address(queue: int) -> int:
    """Where in there the copies of ``queue`` lie."""
    return BOUNCE + SHADOW_SIZE + queue * ARENA_SIZE


def file_size(size: int, *, shadows: bool) -> int:
    """Bytes of the memfd of a machine with ``--mem size``, with or without shadow rings."""
    if not shadows:
        return size
    last = shadow_region(size, MAX_VIRTIO_DEVICES - 1)
    return last.offset + last.size
