"""Raw binaries on arm64: bytes that are copied to an address and entered at EL1, MMU off.

The stack is 32 KiB below 64 KiB, as on x86; x0 is 0. There is no protocol: a raw binary knows the
machine.
"""

from __future__ import annotations

from collections.abc import Sequence

from protocol.errors import BadInput
from protocol.memory import Region
from protocol.specs import BootSpec
from vmm.boot.image import Image
from vmm.boot.raw import place_binary, stack
from vmm.boot.segment import Segment
from vmm.hypervisor.arm64_state import Arm64State

_INSTRUCTION = 4


def plan_raw(
    boot: BootSpec, image: Image, regions: Sequence[Region]
) -> tuple[list[Segment], Arm64State]:
    """The binary and a stack, and the CPU at ``boot.entry``.

    BadInput names --entry or --load if the binary would lie outside of memory, or its entry is
    no place for an instruction.
    """
    binary, entry = place_binary(boot, image, regions)
    if entry % _INSTRUCTION:
        raise BadInput("--entry", f"{entry:#x} is not a multiple of 4, as instructions are")
    below = stack()
    return [binary, below], Arm64State(pc=entry, sp=below.end)
