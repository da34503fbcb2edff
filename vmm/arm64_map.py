"""What an arm64 machine has beside RAM, the virtio window and the MMIO console.

Those are where every machine has them (memory_map.py). Below them lies::

    0x9001_0000  GICv2 distributor, 4 KiB
    0x9002_0000  GICv2 CPU interface, 8 KiB

Both addresses are arbitrary, outside of RAM, and on a page of their own whether pages are of 4,
16 or 64 KiB.

Interrupt line (GSI) n is SPI n, which the GIC calls INTID 32 + n. The lines have the numbers that
they have on x86, so that a device's line does not depend on the machine.
"""

from __future__ import annotations

GIC_DISTRIBUTOR = 0x9001_0000
GIC_DISTRIBUTOR_SIZE = 0x1000
GIC_CPU_INTERFACE = 0x9002_0000
GIC_CPU_INTERFACE_SIZE = 0x2000

# Private interrupts of a CPU begin at INTID 16, those that all CPUs share at 32 (as the kernel has
# it, Documentation/devicetree/bindings/interrupt-controller/arm,gic.yaml and irq-gic.c).
FIRST_PPI = 16
FIRST_SPI = 32

# The EL1 physical timer's in Secure and Non-secure state: arbitrary as far as a guest with a device
# tree goes, and what real machines have.
SECURE_TIMER_INTID = 29
TIMER_INTID = 30

# The MMIO console's; COM1's on a PC.
CONSOLE_GSI = 4


def intid(gsi: int) -> int:
    """The GIC's number of interrupt line ``gsi``."""
    return FIRST_SPI + gsi
