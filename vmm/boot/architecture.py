"""Which architecture a guest is of, and the boot plan of either.

A kernel file says it. A raw binary does not: its first instructions are looked at, as far as they
are certain to be executed in this order, from the entry on. AArch64's are aligned words, of which
those below are by far the most frequent kinds; of words at random more than a quarter pass for one,
so it takes a row of them. In doubt a raw binary is x86-64.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from protocol.specs import Architecture, BootSpec
from vmm.boot.hardware import Hardware
from vmm.boot.image import Image
from vmm.boot.plan import BootPlan
from vmm.boot.plan import describe as describe_x86
from vmm.boot.plan import plan as plan_x86

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

    from vmm.boot.arm64 import Arm64Plan

X86_64: Architecture = "x86_64"
ARM64: Architecture = "arm64"

# Where a kernel says that it is arm64's: the Image's magic (vmm.boot.arm64.image), and ELF's
# e_machine (Arm's ELF for AArch64: EM_AARCH64, 183).
_HEAD = 64
_IMAGE_MAGIC = 56, b"ARM\x64"
_ELF_MAGIC, _ELF_MACHINE = b"\x7fELF", (18, b"\xb7\0")

_WORD = 4
# How many instructions make it certain. Of rows at random 5 in 100,000 passed.
_ENOUGH = 8
# So many do if they come to an end: a loop, or a jump to who knows where.
_LEAST = 2

# Mask and value of kinds of instructions (Arm ARM, C4.1, "A64 instruction set encoding").
_KINDS = (
    (0x1F00_0000, 0x1000_0000),  # ADR, ADRP
    (0x1F00_0000, 0x1100_0000),  # ADD, SUB, immediate
    (0x1F80_0000, 0x1200_0000),  # AND, ORR, EOR, immediate
    (0x1F80_0000, 0x1280_0000),  # MOVZ, MOVN, MOVK
    (0x1F80_0000, 0x1300_0000),  # SBFM, BFM, UBFM: shifts, fields, extensions
    (0x1F00_0000, 0x0A00_0000),  # AND, ORR, EOR, register
    (0x1F20_0000, 0x0B00_0000),  # ADD, SUB, register
    (0x7C00_0000, 0x1400_0000),  # B, BL
    (0xFF00_0010, 0x5400_0000),  # B.cond
    (0x7C00_0000, 0x3400_0000),  # CBZ, CBNZ, TBZ, TBNZ
    (0xFF9F_FC1F, 0xD61F_0000),  # BR, BLR, RET
    (0xFFC0_0000, 0xD500_0000),  # MSR, MRS, hints, barriers
    (0xFFE0_0000, 0xD400_0000),  # SVC, HVC, SMC
    (0x3F00_0000, 0x1800_0000),  # LDR, literal
    (0x3F00_0000, 0x3900_0000),  # LDR, STR, immediate
    (0x3F00_0000, 0x3800_0000),  # LDR, STR, register
    (0x7E00_0000, 0x2800_0000),  # LDP, STP
)
_BRANCH = 0xFC00_0000, 0x1400_0000
_LEAVE = 0xFFBF_FC1F, 0xD61F_0000  # BR, RET


@dataclass(frozen=True, slots=True)
class Found:
    """An architecture, and a reason that can follow it in a sentence."""

    name: Architecture
    why: str

    def __str__(self) -> str:
        return f"{self.name} ({self.why})"


def detect(kernel: FileDescriptorLike, entry: int | None, load: int | None, binary: bool) -> Found:
    """What the open file ``kernel``, a kernel or a raw ``binary``, was made for.

    A file that is nothing to boot is called x86-64, whose plan then says what it is. BadInput if
    it is not even a file with something in it.
    """
    image = Image(kernel, "--binary" if binary else "--kernel")
    if binary:
        start = 0 if entry is None or load is None else entry - load
        if start >= 0 and _is_aarch64(image, start):
            return Found(ARM64, "its first instructions are AArch64's")
        return Found(X86_64, "a raw binary, unless its first instructions are AArch64's")
    head = image.read(0, _HEAD)
    if _has(head, *_IMAGE_MAGIC) or (head.startswith(_ELF_MAGIC) and _has(head, *_ELF_MACHINE)):
        return Found(ARM64, "as the kernel says")
    return Found(X86_64, "as the kernel says")


def plan(
    boot: BootSpec,
    kernel: FileDescriptorLike,
    initrd: FileDescriptorLike | None,
    hardware: Hardware,
    *,
    unpack: bool = False,
) -> BootPlan | Arm64Plan:
    """How to boot ``kernel`` on a machine of ``boot.architecture`` (vmm.boot.plan.plan)."""
    if boot.architecture == ARM64:
        # Whose device trees need a library.
        from vmm.boot import arm64

        return arm64.plan(boot, kernel, initrd, hardware)
    return plan_x86(boot, kernel, initrd, hardware, unpack=unpack)


def describe(plan: BootPlan | Arm64Plan) -> list[str]:
    """The plan in lines for people."""
    if isinstance(plan, BootPlan):
        return describe_x86(plan)
    from vmm.boot import arm64

    return arm64.describe(plan)


def _has(head: bytes, offset: int, value: bytes) -> bool:
    return head[offset : offset + len(value)] == value


def _is_aarch64(image: Image, at: int) -> bool:
    seen: set[int] = set()
    while len(seen) < _ENOUGH:
        if at in seen:
            return len(seen) >= _LEAST
        data = image.read(at, _WORD) if at >= 0 else b""
        if len(data) < _WORD:
            return False
        (word,) = struct.unpack("<I", data)
        if not any(_is(word, kind) for kind in _KINDS):
            return False
        seen.add(at)
        if _is(word, _LEAVE):
            return len(seen) >= _LEAST
        at += _offset(word) if _is(word, _BRANCH) else _WORD
    return True


def _is(word: int, kind: tuple[int, int]) -> bool:
    mask, value = kind
    return word & mask == value


def _offset(branch: int) -> int:
    # imm26, signed, in words.
    words = branch & 0x3FF_FFFF
    return _WORD * (words - (words >> 25 << 26))
