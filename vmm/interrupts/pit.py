"""The 8254 timer and port 0x61 (82C54 data sheet, order number 231244; the port: 82371 PIIX).

Nothing ticks: a counter is the time at which its count was loaded, and what it reads and
drives is computed from the clock when somebody asks. Channel 0 raises IRQ 0 whenever its
output rises; channel 2 sounds a speaker that is not there, and kernels measure time with it.

What a guest could not tell from a slow bus is left out: the one clock pulse that loading takes,
and that a new count in modes 2 and 3 waits for the end of the period (it starts a new one, as
in KVM). A control word alone raises no interrupt.
"""

from __future__ import annotations

from collections.abc import Callable

from vmm.interrupts.clock import NS, stretch
from vmm.regmap import Register, RegisterMap

# The PC's 14.31818 MHz crystal, divided by 12.
HZ = 1_193_182

CONTROL_BCD = 0x01
CONTROL_COUNTER_LATCH, ACCESS_LOW, ACCESS_HIGH, ACCESS_WORD = 0, 1, 2, 3
READ_BACK = 3
READ_BACK_NOT_COUNT, READ_BACK_NOT_STATUS = 0x20, 0x10
STATUS_OUTPUT, STATUS_NULL_COUNT = 0x80, 0x40

# The modes, by what they do.
TERMINAL_COUNT, ONE_SHOT, RATE, SQUARE, STROBE, HARDWARE_STROBE = range(6)
PERIODIC = (RATE, SQUARE)
TRIGGERED = (ONE_SHOT, HARDWARE_STROBE)

B_GATE2, B_SPEAKER, B_WRITABLE = 0x01, 0x02, 0x0F
B_REFRESH, B_OUT2 = 0x10, 0x20
# A PC refreshes a row of memory every 15 us and toggles the bit.
REFRESH_NS = 15_000


class Counter:
    """One of the three counters. Times are nanoseconds; ``now`` never goes back."""

    def __init__(self, gate: bool) -> None:
        self.gate = gate
        self.mode = SQUARE
        self._access = ACCESS_WORD
        self._bcd = False
        # The count loaded, 0 if there is none since the control word.
        self._initial = 0
        # Counting since then, on top of clock pulses from before the gate paused it.
        self._start: int | None = None
        self._held = 0
        # The low byte of a word of which the high byte is awaited; whether the next read is one.
        self._low: int | None = None
        self._reads_high = False
        self._latched: int | None = None
        self._status: int | None = None

    def control(self, word: int) -> None:
        """A control word for this counter, other than the latch command."""
        mode = word >> 1 & 7
        # The data sheet does not look at the mode's bit 2 where bit 1 is set.
        self.mode = mode & 3 if mode & 2 else mode
        self._access = word >> 4 & 3
        self._bcd = bool(word & CONTROL_BCD)
        self._initial = self._held = 0
        self._start = self._low = self._latched = self._status = None
        self._reads_high = False

    def latch(self, now: int) -> None:
        """Keep the count until it has been read."""
        if self._latched is None:
            self._latched = self._count(now)

    def latch_status(self, now: int) -> None:
        """Keep output and control word until they have been read."""
        if self._status is None:
            self._status = (
                (STATUS_OUTPUT if self.output(now) else 0)
                | (0 if self._initial else STATUS_NULL_COUNT)
                | self._access << 4
                | self.mode << 1
                | self._bcd
            )

    def write(self, value: int, now: int) -> None:
        """A byte of the count; what makes it whole loads it."""
        if self._access == ACCESS_LOW:
            self._load(value, now)
        elif self._access == ACCESS_HIGH:
            self._load(value << 8, now)
        elif self._low is None:
            self._low = value
            if self.mode == TERMINAL_COUNT:
                self._initial, self._start = 0, None
        else:
            low, self._low = self._low, None
            self._load(value << 8 | low, now)

    def read(self, now: int) -> int:
        """A byte of the latched status, of the latched count, or of the count as it runs."""
        if self._status is not None:
            status, self._status = self._status, None
            return status
        count = self._count(now) if self._latched is None else self._latched
        is_high = self._access == ACCESS_HIGH or self._reads_high
        self._reads_high = self._access == ACCESS_WORD and not is_high
        if not self._reads_high:
            self._latched = None
        return count >> 8 if is_high else count & 0xFF

    def set_gate(self, level: bool, now: int) -> None:
        """Drive the gate: it pauses or, in modes 1, 2, 3 and 5, starts anew when it rises."""
        if level == self.gate:
            return
        self.gate = level
        if self.mode in TRIGGERED:
            if level and self._initial:
                self._start = now
        elif level:
            self._start = now if self._initial else None
        else:
            self._held = 0 if self.mode in PERIODIC else self._elapsed(now)
            self._start = None

    def output(self, now: int) -> bool:
        """The level of OUT."""
        if self.mode == TERMINAL_COUNT:
            return self._initial != 0 and self._elapsed(now) >= self._initial
        elapsed = self._elapsed(now)
        if self.mode in (STROBE, HARDWARE_STROBE):
            return self._start is None or elapsed != self._initial
        if self._start is None:
            return True
        if self.mode == ONE_SHOT:
            return elapsed >= self._initial
        if self.mode == RATE:
            return elapsed % self._initial != self._initial - 1
        return elapsed % self._initial < (self._initial + 1) // 2

    def next_rise(self, now: int) -> int | None:
        """When OUT rises next, after ``now``; None if it will not. For a gate that stays.

        In a period shorter than MIN_PERIOD not every rise counts.
        """
        if self._start is None:
            return None
        if self.mode in PERIODIC:
            step = stretch(self._initial, NS, HZ)
            pulses = (self._elapsed(now) // step + 1) * step
        else:
            # A strobe is one pulse long, and rises at its end.
            pulses = self._initial + (self.mode in (STROBE, HARDWARE_STROBE))
        # Rounded up: a nanosecond before, the pulse has not come.
        due = self._start - (self._held - pulses) * NS // HZ
        return due if due > now else None

    def _load(self, value: int, now: int) -> None:
        # A count of 0 is the largest, one more than the counter holds.
        self._initial = (_from_bcd(value) or 10_000) if self._bcd else (value or 0x1_0000)
        if self.mode not in TRIGGERED:
            self._held = 0
            self._start = now if self.gate else None

    def _elapsed(self, now: int) -> int:
        # Clock pulses since the count was loaded or triggered.
        if self._start is None:
            return self._held
        return self._held + (now - self._start) * HZ // NS

    def _count(self, now: int) -> int:
        elapsed = self._elapsed(now)
        if self._initial and self.mode == RATE:
            count = self._initial - elapsed % self._initial
        elif self._initial and self.mode == SQUARE:
            # Counts down by two, twice in a period.
            count = self._initial - 2 * elapsed % self._initial
        else:
            count = self._initial - elapsed
        return _to_bcd(count % 10_000) if self._bcd else count & 0xFFFF


class Pit:
    """The chip and port 0x61: ``counters`` and ``control_b`` are for the bus.

    ``now()`` is a clock in nanoseconds; ``raise_irq()`` is called where channel 0's output rises,
    when :meth:`tick` finds that it has. ``due`` is when that should be called next, or None.
    """

    def __init__(self, now: Callable[[], int], raise_irq: Callable[[], None]) -> None:
        self._now, self._raise_irq = now, raise_irq
        self._counters = (Counter(True), Counter(True), Counter(False))
        self.counters = RegisterMap(
            [self._register(index) for index in range(3)]
            + [Register(3, 1, "CONTROL", lambda: 0xFF, self._control)]
        )
        self.control_b = RegisterMap(
            [Register(0, 1, "SYSTEM CONTROL B", self._read_b, self._write_b)]
        )
        self._b = 0
        self.due: int | None = None

    def tick(self, now: int) -> None:
        """Raise the interrupt if it is due: once, however many periods have gone by."""
        if self.due is not None and self.due <= now:
            self.due = self._counters[0].next_rise(now)
            self._raise_irq()

    def _register(self, index: int) -> Register:
        counter = self._counters[index]

        def write(value: int, _mask: int) -> None:
            now = self._now()
            self.tick(now)
            counter.write(value, now)
            self.due = self._counters[0].next_rise(now)

        return Register(index, 1, f"COUNTER {index}", lambda: counter.read(self._now()), write)

    def _control(self, word: int, _mask: int) -> None:
        now = self._now()
        self.tick(now)
        select = word >> 6
        if select == READ_BACK:
            for index, counter in enumerate(self._counters):
                if word & 2 << index and not word & READ_BACK_NOT_COUNT:
                    counter.latch(now)
                if word & 2 << index and not word & READ_BACK_NOT_STATUS:
                    counter.latch_status(now)
        elif word >> 4 & 3 == CONTROL_COUNTER_LATCH:
            self._counters[select].latch(now)
        else:
            self._counters[select].control(word)
            self.due = self._counters[0].next_rise(now)

    def _read_b(self) -> int:
        now = self._now()
        refresh = B_REFRESH if now // REFRESH_NS & 1 else 0
        return self._b | refresh | (B_OUT2 if self._counters[2].output(now) else 0)

    def _write_b(self, value: int, _mask: int) -> None:
        self._b = value & B_WRITABLE
        self._counters[2].set_gate(bool(value & B_GATE2), self._now())


def _from_bcd(value: int) -> int:
    # A nibble above 9 counts as it is; the sum stays below 16 665.
    return sum((value >> 4 * i & 0xF) * 10**i for i in range(4))


def _to_bcd(value: int) -> int:
    return sum(value // 10**i % 10 << 4 * i for i in range(4))
