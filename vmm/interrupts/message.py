"""An interrupt message, from an IOAPIC or a local APIC to a local APIC, as a number of 64 bits.

The ICR (Intel SDM, volume 3A, "Interrupt Command Register") and a redirection entry of the IOAPIC
(82093AA data sheet, 3.2.4) have the same layout, and an LVT entry that of its lower half. Bits 12
and 14 differ, and a message has no use for them::

    63    56       16    15      13    11    10    8 7       0
    │ dest │ ─ ─ ─ │mask│level│ │low│ │logical│ mode │ vector │
"""

from __future__ import annotations

VECTOR = 0xFF
MODE, FIXED, LOWEST, NMI, EXTINT = 0x700, 0x000, 0x100, 0x400, 0x700
LOGICAL = 1 << 11
# Active low. Kept where a guest writes it, and nothing more: lines are asserted or not here.
ACTIVE_LOW = 1 << 13
LEVEL = 1 << 15
MASKED = 1 << 16
DESTINATION_SHIFT = 56
