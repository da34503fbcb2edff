"""The tables: walked as an operating system walks them, and read by ACPICA's own tools."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from vmm.boot.acpi.tables import build_tables
from vmm.boot.hardware import VirtioMmio
from vmm.memory_map import MAX_VIRTIO_DEVICES, VIRTIO_GSIS

ALL_DEVICES = [VirtioMmio(slot, gsi) for slot, gsi in enumerate(VIRTIO_GSIS)]


class Acpi:
    """The tables as found from the RSDP, each by its signature."""

    def __init__(
        self, cpus: int = 1, devices: list[VirtioMmio] | None = None, irqchip: bool = True
    ) -> None:
        segment = build_tables(cpus, devices or [], irqchip)
        assert isinstance(segment.data, bytes)
        self.start, self.data = segment.gpa, segment.data
        self.rsdp = self.data[:36]
        (self.xsdt_address,) = struct.unpack_from("<Q", self.rsdp, 24)
        xsdt = self.at(self.xsdt_address)
        listed = [self.at(address) for (address,) in struct.iter_unpack("<Q", xsdt[36:])]
        self.tables = {table[:4].decode(): table for table in listed}
        fadt = self.tables["FACP"]
        facs, dsdt = struct.unpack_from("<II", fadt, 36)
        self.tables |= {"XSDT": xsdt, "FACS": self.at(facs), "DSDT": self.at(dsdt)}

    def at(self, address: int) -> bytes:
        (length,) = struct.unpack_from("<I", self.data, address - self.start + 4)
        table = self.data[address - self.start :][:length]
        assert len(table) == length
        return table

    def madt(self, kind: int) -> list[bytes]:
        """The MADT's entries of one type."""
        rest, found = self.tables["APIC"][44:], []
        while rest:
            entry, rest = rest[: rest[1]], rest[rest[1] :]
            if entry[0] == kind:
                found.append(entry)
        return found


def test_the_rsdp_is_where_a_bios_would_have_it_and_sums_to_zero() -> None:
    acpi = Acpi()

    assert acpi.start % 16 == 0
    assert 0xE_0000 <= acpi.start < acpi.start + len(acpi.data) <= 0x10_0000
    assert acpi.rsdp.startswith(b"RSD PTR ")
    assert (sum(acpi.rsdp[:20]) & 0xFF, sum(acpi.rsdp) & 0xFF) == (0, 0)


@pytest.mark.parametrize("devices", [[], ALL_DEVICES])
def test_every_table_with_a_checksum_sums_to_zero(devices: list[VirtioMmio]) -> None:
    acpi = Acpi(8, devices)

    sums = {name: sum(table) & 0xFF for name, table in acpi.tables.items() if name != "FACS"}
    assert sums == {"XSDT": 0, "FACP": 0, "APIC": 0, "DSDT": 0}


def test_the_largest_machine_fits_below_1_mib() -> None:
    acpi = Acpi(8, ALL_DEVICES)

    assert len(ALL_DEVICES) == MAX_VIRTIO_DEVICES
    assert acpi.start + len(acpi.data) <= 0x10_0000


@pytest.mark.parametrize("cpus", [1, 2, 8])
def test_every_cpu_has_a_local_apic_that_is_enabled(cpus: int) -> None:
    entries = Acpi(cpus).madt(0)

    assert [(entry[3], entry[4]) for entry in entries] == [(cpu, 1) for cpu in range(cpus)]


def test_the_ioapic_starts_at_gsi_0_and_only_sci_is_overridden() -> None:
    acpi = Acpi()

    (ioapic,) = acpi.madt(1)
    (override,) = acpi.madt(2)
    assert struct.unpack_from("<II", ioapic, 4) == (0xFEC0_0000, 0)
    # Bus ISA, IRQ 9, GSI 9, active high (1), level-triggered (3 << 2).
    assert struct.unpack("<BBIH", override[2:]) == (0, 9, 9, 1 | 3 << 2)


def test_without_apics_there_is_no_madt() -> None:
    assert set(Acpi(irqchip=False).tables) == {"XSDT", "FACP", "FACS", "DSDT"}


def test_the_hardware_is_not_reduced_and_has_a_power_button_and_a_reset_register() -> None:
    fadt = Acpi().tables["FACP"]

    (flags,) = struct.unpack_from("<I", fadt, 112)
    (boot_flags,) = struct.unpack_from("<H", fadt, 109)
    assert {bit for bit in range(32) if flags >> bit & 1} == {0, 2, 5, 6, 10}
    # Legacy devices and no VGA; no keyboard controller, which Linux would probe at length.
    assert boot_flags == 0b101
    assert struct.unpack_from("<IIII", fadt, 56) == (0x600, 0, 0x604, 0)
    assert struct.unpack_from("<H", fadt, 46) == (9,)


def iasl(*arguments: str | Path) -> str:
    program = shutil.which("iasl")
    if program is None:
        pytest.skip("iasl is missing (package acpica-tools)")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", ["FACP", "APIC", "FACS", "XSDT"])
def test_acpica_reads_the_static_tables_and_finds_nothing_wrong(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.dat"
    path.write_bytes(Acpi(8, ALL_DEVICES).tables[name])

    said = iasl("-d", path)

    text = path.with_suffix(".dsl").read_text()
    assert f'"{name}"' in text
    for complaint in ("Warning", "Error", "Invalid", "incorrect", "**"):
        assert complaint not in said + text


def test_acpica_recompiles_the_dsdt_to_the_same_bytes(tmp_path: Path) -> None:
    dsdt = Acpi(8, ALL_DEVICES).tables["DSDT"]
    path = tmp_path / "dsdt.dat"
    path.write_bytes(dsdt)
    iasl("-d", path)

    said = iasl("-p", tmp_path / "again", path.with_suffix(".dsl"))

    assert "0 Errors, 0 Warnings, 0 Remarks" in said
    assert (tmp_path / "again.aml").read_bytes()[36:] == dsdt[36:]


def test_a_virtio_device_reads_as_linux_expects_it(tmp_path: Path) -> None:
    path = tmp_path / "dsdt.dat"
    path.write_bytes(Acpi(1, [VirtioMmio(2, 23)]).tables["DSDT"])
    iasl("-d", path)

    text = " ".join(path.with_suffix(".dsl").read_text().split())

    assert 'Name (_HID, "LNRO0005")' in text
    assert "Name (_UID, 0x02)" in text
    assert "Memory32Fixed (ReadWrite, 0x00A02000, // Address Base 0x00001000," in text
    assert "Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive, ,, ) { 0x00000017, }" in text
    assert "Name (_S5, Package (0x04) // _S5_: S5 System State { 0x05, 0x05, Zero, Zero })" in text
