"""The static tables, laid out one behind the other from the RSDP's place on.

::

    RSDP -> XSDT -> FADT -> FACS, DSDT
                 -> MADT (where there are APICs)

Sections cited are those of the ACPI specification 6.4. The hardware is ACPI's ordinary model,
not the reduced one, which would take the 8259 and the PIT away from Linux.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from vmm.boot.acpi.dsdt import definition_block
from vmm.boot.hardware import VirtioMmio
from vmm.boot.layout import RSDP
from vmm.boot.segment import Segment, align_up
from vmm.memory_map import IOAPIC, LOCAL_APIC
from vmm.platform import ports

# Ours: no registry gives them out.
OEM_ID = b"VIBE  "
OEM_TABLE_ID = b"VIBEVMM "
CREATOR_ID = b"VIBE"

# 5.2.9: the FADT's flags ("Fixed ACPI Description Table Fixed Feature Flags") ...
_WBINVD = 1 << 0
_PROC_C1 = 1 << 2
_SLP_BUTTON = 1 << 5  # set: there is no fixed sleep button; bit 4, clear: a fixed power button
_FIX_RTC = 1 << 6  # set: no fixed RTC wake-up
_RESET_REG_SUP = 1 << 10
# ... and those of 5.2.9.3 ("IA-PC Boot Architecture Flags"). Bit 1, a keyboard controller,
# stays clear: ours is a reset line only, and Linux would spend its timeouts on probing it.
_LEGACY_DEVICES = 1 << 0
_VGA_NOT_PRESENT = 1 << 2

# 5.2.12: flags of the MADT, of a local APIC, and of an interrupt source (MPS INTI flags).
_PCAT_COMPAT = 1 << 0
_ENABLED = 1 << 0
_ACTIVE_HIGH, _LEVEL = 1 << 0, 3 << 2

_SYSTEM_IO = 1
_ALL_PROCESSORS = 0xFF

# The FACS has to be aligned to 64 bytes (5.2.10), the others to nothing.
_ALIGNMENT = 64

# 5.2.5.3: signature, checksum, OEM id, revision, RSDT; length, XSDT, extended checksum.
_RSDP = struct.Struct("<8sB6sBIIQB3x")
_RSDP_V1_SIZE = 20


def build_tables(cpus: int, devices: Sequence[VirtioMmio] = (), irqchip: bool = True) -> Segment:
    """All tables, for ``cpus`` CPUs whose APIC ids count from 0, in one segment at the RSDP.

    Without ``irqchip`` there is no MADT, and interrupts are the lines of two 8259.
    """
    blob = bytearray(align_up(_RSDP.size, _ALIGNMENT))

    def place(table: bytes) -> int:
        address = RSDP + len(blob)
        blob.extend(table.ljust(align_up(len(table), _ALIGNMENT), b"\0"))
        return address

    facs = place(_facs())
    dsdt = place(_table(b"DSDT", 2, definition_block(devices)))
    listed = [place(_fadt(facs, dsdt))]
    if irqchip:
        listed.append(place(_madt(cpus)))
    xsdt = place(_table(b"XSDT", 1, struct.pack(f"<{len(listed)}Q", *listed)))
    blob[: _RSDP.size] = _rsdp(xsdt)
    return Segment("ACPI tables", RSDP, bytes(blob))


def _rsdp(xsdt: int) -> bytes:
    data = bytearray(_RSDP.pack(b"RSD PTR ", 0, OEM_ID, 2, 0, _RSDP.size, xsdt, 0))
    data[8] = _checksum(data[:_RSDP_V1_SIZE])
    data[32] = _checksum(data)
    return bytes(data)


def _checksum(data: bytes | bytearray) -> int:
    return -sum(data) & 0xFF


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    # 5.2.6: the header that every table but RSDP and FACS has.
    header = struct.Struct("<4sIBB6s8sI4sI")
    fields = (OEM_ID, OEM_TABLE_ID, 1, CREATOR_ID, 1)
    table = bytearray(header.pack(signature, header.size + len(body), revision, 0, *fields) + body)
    table[9] = _checksum(table)
    return bytes(table)


def _facs() -> bytes:
    # 5.2.10: signature, length, hardware signature, waking vector, global lock, flags, the
    # 64-bit waking vector, version; the rest is reserved.
    return struct.pack("<4sIIIIIQB31x", b"FACS", 64, 0, 0, 0, 0, 0, 2)


def _generic_address(port: int, length: int) -> bytes:
    # 5.2.3.2: address space, width in bits, offset, access size (1 byte, 2 words), address.
    return struct.pack("<BBBBQ", _SYSTEM_IO, length * 8, 0, min(length, 2), port)


def _fadt(facs: int, dsdt: int) -> bytes:
    # 5.2.9, in order. An address of 0 is a register block that is not there: no SMI command
    # port (the machine is in ACPI mode from the start), no PM timer, no general-purpose events.
    none = bytes(12)
    flags = _WBINVD | _PROC_C1 | _SLP_BUTTON | _FIX_RTC | _RESET_REG_SUP
    body = b"".join(
        (
            struct.pack("<II", facs, dsdt),
            # Interrupt model, power profile (unspecified), SCI, SMI command port, ACPI enable
            # and disable, S4BIOS, P-states.
            struct.pack("<BBHIBBBB", 0, 0, ports.SCI_IRQ, 0, 0, 0, 0, 0),
            # PM1a and PM1b event, PM1a and PM1b control, PM2 control, PM timer, GPE0, GPE1.
            struct.pack("<8I", ports.PM1A_EVENT, 0, ports.PM1A_CONTROL, 0, 0, 0, 0, 0),
            # The lengths of these: PM1 event, PM1 control, PM2, timer, GPE0, GPE1; GPE1's base,
            # C-state control.
            struct.pack("<8B", ports.PM1A_EVENT_LENGTH, ports.PM1A_CONTROL_LENGTH, *bytes(6)),
            # C2 and C3 latency (above 100 and 1000: not there), cache flush size and stride,
            # duty offset and width, day and month alarm, century.
            struct.pack("<4H5B", 101, 1001, 0, 0, 0, 0, 0, 0, 0),
            struct.pack("<HBI", _LEGACY_DEVICES | _VGA_NOT_PRESENT, 0, flags),
            _generic_address(ports.ACPI_RESET, 1),
            # Reset value, ARM boot flags, minor revision; 64-bit FACS (the 32-bit one is set,
            # so this is not) and DSDT.
            struct.pack("<BHBQQ", ports.ACPI_RESET_VALUE, 0, 0, 0, dsdt),
            # The register blocks again, as generic addresses: PM1a and PM1b event, PM1a and
            # PM1b control, PM2, timer, GPE0, GPE1; sleep control and status.
            _generic_address(ports.PM1A_EVENT, ports.PM1A_EVENT_LENGTH),
            none,
            _generic_address(ports.PM1A_CONTROL, ports.PM1A_CONTROL_LENGTH),
            none * 7,
            bytes(8),  # hypervisor vendor: none
        )
    )
    return _table(b"FACP", 6, body)


def _madt(cpus: int) -> bytes:
    # 5.2.12; each entry starts with its type and length. ISA lines enter the IOAPIC at the inputs
    # of their own numbers, the timer's too: so KVM routes them unless told otherwise, and what
    # is the same needs no override. SCI has one because it is level-triggered.
    body = struct.pack("<II", LOCAL_APIC, _PCAT_COMPAT)
    for cpu in range(cpus):
        body += struct.pack("<BBBBI", 0, 8, cpu, cpu, _ENABLED)
    body += struct.pack("<BBBBII", 1, 12, 0, 0, IOAPIC, 0)
    body += struct.pack("<BBBBIH", 2, 10, 0, ports.SCI_IRQ, ports.SCI_IRQ, _ACTIVE_HIGH | _LEVEL)
    # LINT1 of every CPU is the NMI.
    body += struct.pack("<BBBHB", 4, 6, _ALL_PROCESSORS, 0, 1)
    return _table(b"APIC", 5, body)
