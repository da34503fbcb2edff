"""What both timers of the PC have in common: nanoseconds, and a bound on how often they fire."""

from __future__ import annotations

NS = 1_000_000_000

# The shortest time between two interrupts of a periodic timer, in nanoseconds. A guest may ask for
# millions a second, each of which would stop the CPU. Arbitrary: 20 kHz, far above any kernel's
# tick. A one-shot timer needs no bound: each of its interrupts costs the guest a write.
MIN_PERIOD = 50_000


def stretch(period: int, numerator: int, denominator: int) -> int:
    """The least multiple of ``period`` that lasts MIN_PERIOD; a pulse lasts numerator/denominator
    nanoseconds. So the phase of a timer that is too fast is kept, and some of its pulses are not.
    """
    return period * max(1, -(-MIN_PERIOD * denominator // (period * numerator)))
