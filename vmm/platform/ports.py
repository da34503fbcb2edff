"""I/O ports and interrupt lines of the platform devices: one table for the devices and for ACPI.

The PC's own are where every PC has them since the AT. The ACPI blocks may lie anywhere, for
the tables name them; these places are arbitrary, chosen clear of what a PC might probe.
"""

from __future__ import annotations

COM1 = 0x3F8
COM1_LENGTH = 8
COM1_IRQ = 4

RTC_INDEX = 0x70
RTC_DATA = 0x71

I8042_DATA = 0x60
I8042_COMMAND = 0x64

# QEMU's address of the device: Linux takes it from ACPI, small guests assume it.
PVPANIC = 0x505

# PM1a event block: status in the low two bytes, enable in the high two.
PM1A_EVENT = 0x600
PM1A_EVENT_LENGTH = 4
PM1A_CONTROL = 0x604
PM1A_CONTROL_LENGTH = 2
ACPI_RESET = 0x608
# The value that resets the machine, arbitrary, and the SLP_TYP of \_S5, arbitrary as well.
ACPI_RESET_VALUE = 0x01
S5_SLEEP_TYPE = 5
SCI_IRQ = 9

# The interrupt controllers and the timer of the AT; their chips are in vmm/interrupts where the
# backend has none.
PIC_MASTER = 0x20
PIC_SLAVE = 0xA0
PIC_LENGTH = 2
# Edge or level, a bit for each line of the two (82371 PIIX data sheet, ELCR1 and ELCR2).
ELCR = 0x4D0
ELCR_LENGTH = 2
PIT = 0x40
PIT_LENGTH = 4
SYSTEM_CONTROL_B = 0x61
PIT_IRQ = 0
