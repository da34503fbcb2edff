"""The MMIO console at 0x9000_0000: the 16550's registers for guests that have no ports.

It is always there, so that the first line of a new kernel needs nothing but a store: a byte
written to offset 0 appears on the console. On x86, where COM1 is beside it, it raises no interrupt;
on arm64 it is the serial port.
"""

from __future__ import annotations

from collections.abc import Callable

from vmm.platform.uart import Uart16550

REGISTERS = 8


class MmioConsole:
    """Byte-wide registers at offsets 0 to 7; the rest of the page is empty.

    An access of any width means the one register at its offset: a store uses its lowest byte,
    a load is extended with zeros. For ``str w0, [x1]`` shall print one character, not set up
    three registers beside it. The arguments are those of the UART.
    """

    def __init__(
        self,
        sink: Callable[[bytes], None],
        on_room: Callable[[], None] = lambda: None,
        set_irq: Callable[[bool], None] = lambda _level: None,
    ) -> None:
        self._uart = Uart16550(sink, set_irq, on_room)
        self.receive = self._uart.receive
        self.writable = self._uart.writable

    def read(self, offset: int, size: int) -> int:
        """The register at ``offset``; ones where there is none."""
        return self._uart.read(offset, 1) if offset < REGISTERS else (1 << 8 * size) - 1

    def write(self, offset: int, _size: int, value: int) -> None:
        """Store the low byte of ``value`` in the register at ``offset``, if there is one."""
        if offset < REGISTERS:
            self._uart.write(offset, 1, value & 0xFF)
