"""The local APIC's timer (Intel SDM, volume 3A, "Local APIC", section "APIC Timer").

It counts down from the initial count, once or again and again. Nothing ticks: the timer is the
time at which the count would have been the initial one, and the rest is computed::

    origin ──┬── initial ──┬── initial ──┬──  periodic: an interrupt at each mark
             │             due                one-shot: at the first, and then the count stays 0
           start()

The TSC-deadline mode is not offered: CPUID must not show it.
"""

from __future__ import annotations

from collections.abc import Callable

from vmm.interrupts.clock import NS, stretch

# Divide configuration register: bits 3, 1 and 0 are a number, which these are for.
DIVIDE_WRITABLE = 0b1011
_DIVISORS = (2, 4, 8, 16, 32, 64, 128, 1)


class ApicTimer:
    """A timer of ``hz`` before division. ``now()`` is a clock in nanoseconds.

    ``fire()`` is called from whatever is called here first once it is due; ``due`` is when
    :meth:`tick` should be called next, None if the timer is stopped or masked.
    """

    def __init__(self, hz: int, now: Callable[[], int], fire: Callable[[], None]) -> None:
        self._hz, self._now, self._fire = hz, now, fire
        self.initial = 0
        self.divide = 0
        self.due: int | None = None
        # Nanoseconds for a tick, as a fraction.
        self._numerator, self._denominator = NS * _DIVISORS[0], hz
        self._origin: int | None = None
        self._is_periodic = False
        self._is_masked = True

    def tick(self, now: int) -> None:
        """Fire if due: once, however many periods have gone by; their phase is kept."""
        if self.due is None or self.due > now:
            return
        if self._is_periodic:
            self.due = self._next(now)
        else:
            self._origin = self.due = None
        self._fire()

    def start(self, initial: int) -> None:
        """The guest writes the initial count; 0 stops the timer."""
        now = self._now()
        self.tick(now)
        self.initial = initial
        self._origin = now if initial else None
        self.due = self._next(now)

    def current(self) -> int:
        """The current count: 0 if the timer is stopped."""
        return self._current(self._now())

    def set_mode(self, is_periodic: bool, is_masked: bool) -> None:
        """What the LVT entry says. A running timer goes on from its current count."""
        now = self._now()
        self.tick(now)
        if is_periodic != self._is_periodic:
            count = self._current(now)
            self._is_periodic = is_periodic
            self._resume(count, now)
        self._is_masked = is_masked
        self.due = self._next(now)

    def set_divide(self, value: int) -> None:
        """The guest writes the divide configuration. A running timer goes on from its count."""
        now = self._now()
        self.tick(now)
        count = self._current(now)
        self.divide = value & DIVIDE_WRITABLE
        self._numerator = NS * _DIVISORS[value >> 1 & 4 | value & 3]
        self._resume(count, now)
        self.due = self._next(now)

    def _ticks(self, now: int) -> int:
        # Since the origin; only while there is one.
        return (now - (self._origin or 0)) * self._denominator // self._numerator

    def _current(self, now: int) -> int:
        if self._origin is None:
            return 0
        ticks = self._ticks(now)
        if self._is_periodic:
            return self.initial - ticks % self.initial
        return max(self.initial - ticks, 0)

    def _resume(self, count: int, now: int) -> None:
        # Move the origin so that the count is ``count`` now; a count of 0 has come to its end.
        since = (count - self.initial) * self._numerator // self._denominator
        self._origin = now + since if count else None

    def _next(self, now: int) -> int | None:
        # When to fire, after ``now``.
        if self._origin is None or self._is_masked:
            return None
        ticks = self._ticks(now)
        if self._is_periodic:
            step = stretch(self.initial, self._numerator, self._denominator)
            end = (ticks // step + 1) * step
        elif ticks < self.initial:
            end = self.initial
        else:
            # It ran out while it was masked.
            return None
        # Rounded up: a nanosecond before, the count is not yet there.
        return self._origin - -end * self._numerator // self._denominator
