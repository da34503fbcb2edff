"""The platform devices of one machine, put on its bus where ports.py and the memory maps say."""

from __future__ import annotations

from collections.abc import Callable

from protocol.specs import Architecture
from vmm import arm64_map, memory_map
from vmm.bus import Bus
from vmm.platform import ports
from vmm.platform.i8042 import I8042
from vmm.platform.mmio_console import MmioConsole
from vmm.platform.pm import PowerManagement
from vmm.platform.power import Request
from vmm.platform.pvpanic import PvPanic
from vmm.platform.rtc import Rtc
from vmm.platform.uart import Uart16550


class Board:
    """What a PC has: ``uart`` (COM1), ``mmio_console``, ``pm``; the rest needs no name.
    ``keyboard`` is the console that the guest spoke on last: what is typed is meant for it.

    ``set_irq(gsi, level)`` drives an interrupt line; ``sink`` takes what the guest prints on
    either console; ``request`` hears that the guest ends or panics; ``on_room`` as the UART's.
    """

    keyboard: Uart16550 | MmioConsole

    def __init__(
        self,
        bus: Bus,
        set_irq: Callable[[int, bool], None],
        sink: Callable[[bytes], None],
        request: Request,
        on_room: Callable[[], None] = lambda: None,
    ) -> None:
        def from_uart(data: bytes) -> None:
            self.keyboard = self.uart
            sink(data)

        def from_mmio_console(data: bytes) -> None:
            self.keyboard = self.mmio_console
            sink(data)

        self.uart = Uart16550(from_uart, lambda level: set_irq(ports.COM1_IRQ, level), on_room)
        self.mmio_console = MmioConsole(from_mmio_console, on_room)
        self.keyboard = self.uart
        self.pm = PowerManagement(lambda level: set_irq(ports.SCI_IRQ, level), request)
        bus.add_pio(ports.COM1, ports.COM1_LENGTH, self.uart)
        bus.add_mmio(memory_map.MMIO_CONSOLE, memory_map.MMIO_CONSOLE_SIZE, self.mmio_console)
        bus.add_pio(ports.PM1A_EVENT, ports.PM1A_EVENT_LENGTH, self.pm.event)
        bus.add_pio(ports.PM1A_CONTROL, ports.PM1A_CONTROL_LENGTH, self.pm.control)
        bus.add_pio(ports.ACPI_RESET, 1, self.pm.reset)
        bus.add_pio(ports.RTC_INDEX, 2, Rtc())
        bus.add_pio(ports.PVPANIC, 1, PvPanic(request))
        keyboard = I8042(request)
        bus.add_pio(ports.I8042_DATA, 1, keyboard.data)
        bus.add_pio(ports.I8042_COMMAND, 1, keyboard.command)

    def press_power_button(self) -> bool:
        """From any thread: asks the guest to shut down, if it listens. Whether there is one."""
        self.pm.press_power_button()
        return True


class Arm64Board:
    """What an arm64 machine has: the MMIO console, which is its serial port and ``keyboard``. It
    ends by PSCI, which is the hypervisor's. The arguments are those of the PC's."""

    def __init__(
        self,
        bus: Bus,
        set_irq: Callable[[int, bool], None],
        sink: Callable[[bytes], None],
        _request: Request,
        on_room: Callable[[], None] = lambda: None,
    ) -> None:
        self.keyboard = MmioConsole(
            sink, on_room, lambda level: set_irq(arm64_map.CONSOLE_GSI, level)
        )
        bus.add_mmio(memory_map.MMIO_CONSOLE, memory_map.MMIO_CONSOLE_SIZE, self.keyboard)

    def press_power_button(self) -> bool:
        """There is none."""
        return False


def board_of(architecture: Architecture) -> type[Board | Arm64Board]:
    """What a machine of ``architecture`` has."""
    return Arm64Board if architecture == "arm64" else Board
