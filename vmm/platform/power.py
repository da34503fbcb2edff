"""What a platform device asks of the machine when the guest wants it to end or start again."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum


class Reason(Enum):
    """Why the guest cannot simply go on."""

    POWER_OFF = "the guest powered off"
    RESET = "the guest asked for a reset"
    PANIC = "the guest panicked"


# Supplied by the machine; called by a vCPU's thread in the middle of its exit, so it only takes
# note (or kicks) and returns.
Request = Callable[[Reason], None]
