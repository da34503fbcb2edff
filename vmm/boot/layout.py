"""Where boot puts its own things: all below 1 MiB, all addresses arbitrary but for the RSDP's.

::

    0x0_0000  left alone: Linux looks here for a BIOS data area and finds zeros
    0x0_1000  GDT
    0x0_2000  page tables: one PML4, one PDPT, four page directories of 2 MiB pages
    0x0_8000  boot_params or hvm_start_info; below 0x1_0000 also a raw binary's stack
    0x0_9000  command line
    0x1_0000  free, up to
    0x9_F000  reserved from here, as on a PC (EBDA, VGA, BIOS)
    0xE_0000  ACPI: the RSDP, then the tables
   0x10_0000  free again: kernels go here or above

The two pages below 0x9_F000 stay free on purpose: there the decompressor of a 64-bit Linux
puts a trampoline over whatever it finds (arch/x86/boot/compressed/pgtable_64.c), and our page
tables are in use while it does.
"""

from __future__ import annotations

GDT = 0x1000
PAGE_TABLES = 0x2000
START_INFO = 0x8000
COMMAND_LINE = 0x9000
COMMAND_LINE_END = 0x1_0000
STACK = 0x8000
STACK_END = 0x1_0000

EBDA = 0x9_F000
# An ACPI-compatible system looks for the RSDP from here on where nothing else tells it the
# place (ACPI 6.4, 5.2.5).
RSDP = 0xE_0000
BIOS_END = 0x10_0000
