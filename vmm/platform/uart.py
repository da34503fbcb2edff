"""The 16550A, the PC's serial port (PC16550D data sheet; bits named as in <linux/serial_reg.h>).

Transmission takes no time here: a byte goes to the sink as it is written, and the transmitter
is empty at once. Reception is by another thread, into a backlog that stands for the line and
feeds the FIFO of 16 as the guest empties it, so that input is never overrun.

::

    receive() ─► backlog ─► FIFO ─► RBR          THR ─► sink
                             ▲                    │
                             └──── MCR.LOOP ◄─────┘
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from vmm.regmap import Register, RegisterMap

IER_RDI, IER_THRI, IER_RLSI, IER_MSI = 0x01, 0x02, 0x04, 0x08
IER_WRITABLE = 0x0F

IIR_NO_INT, IIR_MSI, IIR_THRI, IIR_RDI, IIR_RLSI, IIR_RX_TIMEOUT = (
    0x01, 0x00, 0x02, 0x04, 0x06, 0x0C,
)  # fmt: skip
IIR_FIFO_ENABLED = 0xC0

FCR_ENABLE_FIFO, FCR_CLEAR_RCVR = 0x01, 0x02
FCR_TRIGGER_SHIFT = 6
TRIGGERS = (1, 4, 8, 14)

LCR_DLAB = 0x80

MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP = 0x01, 0x02, 0x04, 0x08, 0x10
MCR_WRITABLE = 0x1F

LSR_DR, LSR_OE, LSR_THRE, LSR_TEMT = 0x01, 0x02, 0x20, 0x40

MSR_DCTS, MSR_DDSR, MSR_TERI, MSR_DDCD = 0x01, 0x02, 0x04, 0x08
MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x10, 0x20, 0x40, 0x80
MSR_DELTAS = 0x0F
# What a terminal that is always there drives.
CONNECTED = MSR_CTS | MSR_DSR | MSR_DCD

FIFO_SIZE = 16
# How many bytes wait for room in the FIFO. Arbitrary: a paste of a screenful.
BACKLOG_SIZE = 4096

# The divisor of 9600 baud, as the PC's firmware leaves it; it has no effect.
DIVISOR_9600 = 12

_BYTES = tuple(bytes((value,)) for value in range(256))


def _nothing(_level: bool) -> None:
    # The interrupt line of a port that has none.
    pass


class Uart16550(RegisterMap):
    """One serial port of eight byte-wide registers.

    ``sink(data)`` takes what the guest sends, in its order, on the thread of the vCPU.
    ``set_irq(level)`` is called when the interrupt line changes, with the port's lock held. On
    the edge-triggered line of a PC every rise is one interrupt; as there, OUT2 gates the line.
    ``on_room()`` is called, without the lock, when a backlog that had refused bytes has room.
    """

    def __init__(
        self,
        sink: Callable[[bytes], None],
        set_irq: Callable[[bool], None] = _nothing,
        on_room: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(
            [
                Register(0, 1, "RBR, THR, DLL", self._read_data, self._write_data),
                Register(1, 1, "IER, DLM", self._read_enable, self._write_enable),
                Register(2, 1, "IIR, FCR", self._read_identification, self._write_fifo_control),
                Register(3, 1, "LCR", lambda: self._lcr, self._write_line_control),
                Register(4, 1, "MCR", lambda: self._mcr, self._write_modem_control),
                Register(5, 1, "LSR", self._read_line_status, lambda _value, _mask: None),
                Register(6, 1, "MSR", self._read_modem_status, lambda _value, _mask: None),
                Register(7, 1, "SCR", lambda: self._scr, self._write_scratch),
            ]
        )
        self._sink, self._set_irq, self._on_room = sink, set_irq, on_room
        self._lock = threading.Lock()
        self._ier = self._fcr = self._lcr = self._mcr = self._scr = 0
        self._divisor = DIVISOR_9600
        self._overrun = False
        self._modem_deltas = 0
        # The transmitter's interrupt: set when THR runs empty, cleared when IIR reports it.
        self._transmitter_ran_empty = False
        self._fifo: deque[int] = deque()
        self._backlog: deque[int] = deque()
        self._was_refused = False
        self._line = False

    # The other end of the line

    def receive(self, data: bytes) -> int:
        """Bytes from the terminal, from any thread; returns how many were taken.

        The rest does not fit now: offer it again after ``on_room``.
        """
        with self._lock:
            taken = min(len(data), BACKLOG_SIZE - len(self._backlog))
            self._backlog.extend(data[:taken])
            self._was_refused = taken < len(data)
            self._update()
        return taken

    def writable(self) -> int:
        """How many bytes :meth:`receive` would take now."""
        with self._lock:
            return BACKLOG_SIZE - len(self._backlog)

    # Offsets 0 and 1: data and interrupt enable, or the divisor while LCR.DLAB is set

    def _read_data(self) -> int:
        with self._lock:
            if self._lcr & LCR_DLAB:
                return self._divisor & 0xFF
            value = self._fifo.popleft() if self._fifo else 0
            self._update()
            has_room, self._was_refused = self._was_refused, False
        if has_room:
            self._on_room()
        return value

    def _write_data(self, value: int, _mask: int) -> None:
        with self._lock:
            if self._lcr & LCR_DLAB:
                self._divisor = self._divisor & 0xFF00 | value
                return
            self._transmitter_ran_empty = True
            loops = self._mcr & MCR_LOOP
            if loops and len(self._fifo) < self._depth():
                self._fifo.append(value)
            elif loops:
                self._overrun = True
            self._update()
        if not loops:
            self._sink(_BYTES[value])

    def _read_enable(self) -> int:
        with self._lock:
            return self._divisor >> 8 if self._lcr & LCR_DLAB else self._ier

    def _write_enable(self, value: int, _mask: int) -> None:
        with self._lock:
            if self._lcr & LCR_DLAB:
                self._divisor = value << 8 | self._divisor & 0xFF
                return
            # Enabling the transmitter's interrupt while it is empty raises it again, even after
            # IIR has reported it: Linux sends its first byte from the interrupt it gets so.
            if value & IER_THRI and not self._ier & IER_THRI:
                self._transmitter_ran_empty = True
            self._ier = value & IER_WRITABLE
            self._update()

    # Offset 2: interrupt identification, FIFO control

    def _read_identification(self) -> int:
        with self._lock:
            pending = self._pending()
            if pending == IIR_THRI:
                self._transmitter_ran_empty = False
                self._update()
            return pending | (IIR_FIFO_ENABLED if self._fcr & FCR_ENABLE_FIFO else 0)

    def _write_fifo_control(self, value: int, _mask: int) -> None:
        with self._lock:
            if (value ^ self._fcr) & FCR_ENABLE_FIFO or value & FCR_CLEAR_RCVR:
                self._fifo.clear()
            self._fcr = value if value & FCR_ENABLE_FIFO else 0
            self._update()

    # Offsets 3 to 7

    def _write_line_control(self, value: int, _mask: int) -> None:
        self._lcr = value

    def _write_modem_control(self, value: int, _mask: int) -> None:
        with self._lock:
            before = self._modem_lines()
            self._mcr = value & MCR_WRITABLE
            after = self._modem_lines()
            changed = before ^ after
            # Each line has its delta four bits below; RI counts only where it falls.
            changed &= ~MSR_RI | before
            self._modem_deltas |= changed >> 4
            self._update()

    def _read_line_status(self) -> int:
        with self._lock:
            value = LSR_THRE | LSR_TEMT
            value |= LSR_DR if self._fifo else 0
            value |= LSR_OE if self._overrun else 0
            self._overrun = False
            self._update()
            return value

    def _read_modem_status(self) -> int:
        with self._lock:
            value = self._modem_lines() | self._modem_deltas
            self._modem_deltas = 0
            self._update()
            return value

    def _write_scratch(self, value: int, _mask: int) -> None:
        self._scr = value

    # All of these are called with the lock held

    def _depth(self) -> int:
        return FIFO_SIZE if self._fcr & FCR_ENABLE_FIFO else 1

    def _modem_lines(self) -> int:
        # In loopback the modem's inputs are the port's own outputs.
        if not self._mcr & MCR_LOOP:
            return CONNECTED
        wires = ((MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD))
        return sum(status for control, status in wires if self._mcr & control)

    def _pending(self) -> int:
        # The most urgent interrupt that is enabled, as IIR names it.
        if self._ier & IER_RLSI and self._overrun:
            return IIR_RLSI
        if self._ier & IER_RDI and self._fifo:
            if not self._fcr & FCR_ENABLE_FIFO:
                return IIR_RDI
            # A FIFO below its trigger reports after four characters' time without another; no
            # time passes on this line, so it reports at once.
            trigger = TRIGGERS[self._fcr >> FCR_TRIGGER_SHIFT]
            return IIR_RDI if len(self._fifo) >= trigger else IIR_RX_TIMEOUT
        if self._ier & IER_THRI and self._transmitter_ran_empty:
            return IIR_THRI
        if self._ier & IER_MSI and self._modem_deltas:
            return IIR_MSI
        return IIR_NO_INT

    def _update(self) -> None:
        # After every change: refill the FIFO from the line, and drive the interrupt line.
        if self._backlog and not self._mcr & MCR_LOOP:
            while self._backlog and len(self._fifo) < self._depth():
                self._fifo.append(self._backlog.popleft())
        # OUT2 is the PC's gate; in loopback the chip holds the pin inactive.
        is_open = self._mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2
        line = is_open and self._pending() != IIR_NO_INT
        if line != self._line:
            self._line = line
            self._set_irq(line)
