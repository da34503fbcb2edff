r"""The DSDT's contents: \_S5, and the devices that cannot be found by asking a bus.

The virtio devices are ``LNRO0005`` objects, the id that Linux's virtio_mmio driver answers to
(drivers/virtio/virtio_mmio.c). The keyboard controller is left out: it has no keyboard.
"""

from __future__ import annotations

from collections.abc import Sequence

from vmm.boot.acpi import aml
from vmm.boot.hardware import VirtioMmio
from vmm.memory_map import VIRTIO_SLOT_SIZE
from vmm.platform import ports


def definition_block(devices: Sequence[VirtioMmio]) -> bytes:
    """The AML of the whole namespace, without the table's header."""
    sleep_type = aml.integer(ports.S5_SLEEP_TYPE)
    # PM1a and PM1b, then two that are reserved (ACPI 6.4, chapter 7.4).
    soft_off = aml.package(sleep_type, sleep_type, aml.integer(0), aml.integer(0))
    return aml.name("_S5", soft_off) + aml.scope(
        "_SB", *_platform(), *(_virtio_mmio(device) for device in devices)
    )


def _platform() -> tuple[bytes, ...]:
    com1 = aml.device(
        "COM1",
        aml.name("_HID", aml.eisa_id("PNP0501")),
        aml.name("_UID", aml.integer(1)),
        aml.name(
            "_CRS",
            aml.resources(aml.io(ports.COM1, ports.COM1_LENGTH), aml.irq(ports.COM1_IRQ)),
        ),
    )
    # No interrupt: the clock has no alarm.
    clock = aml.device(
        "RTC",
        aml.name("_HID", aml.eisa_id("PNP0B00")),
        aml.name("_CRS", aml.resources(aml.io(ports.RTC_INDEX, 2))),
    )
    # QEMU, docs/specs/pvpanic.rst.
    pvpanic = aml.device(
        "PEVT",
        aml.name("_HID", aml.string("QEMU0001")),
        aml.name("_CRS", aml.resources(aml.io(ports.PVPANIC, 1))),
    )
    return com1, clock, pvpanic


def _virtio_mmio(device: VirtioMmio) -> bytes:
    return aml.device(
        f"VM{device.slot:02}",
        aml.name("_HID", aml.string("LNRO0005")),
        aml.name("_UID", aml.integer(device.slot)),
        aml.name("_CCA", aml.integer(1)),
        aml.name(
            "_CRS",
            aml.resources(
                aml.memory32_fixed(device.address, VIRTIO_SLOT_SIZE), aml.interrupt(device.gsi)
            ),
        ),
    )
