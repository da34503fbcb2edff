"""The bus: dispatch, straddling accesses, and addresses that nobody claims."""

from __future__ import annotations

import logging

import pytest

from vmm.bus import MAX_LOGGED, Bus


class Ram:
    """A device of plain bytes that notes each access."""

    def __init__(self, size: int) -> None:
        self.bytes = bytearray(size)
        self.accesses: list[tuple[str, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        self.accesses.append(("read", offset, size))
        return int.from_bytes(self.bytes[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self.accesses.append(("write", offset, size))
        self.bytes[offset : offset + size] = value.to_bytes(size, "little")


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_an_access_within_a_device_arrives_whole(size: int) -> None:
    bus, ram = Bus(), Ram(16)
    bus.add_mmio(0x9000_0000, 16, ram)

    bus.mmio_write(0x9000_0008, size, 0x5A)

    assert bus.mmio_read(0x9000_0008, size) == 0x5A
    assert ram.accesses == [("write", 8, size), ("read", 8, size)]


def test_ports_and_mmio_are_two_address_spaces() -> None:
    bus, port, mmio = Bus(), Ram(8), Ram(8)
    bus.add_pio(0x3F8, 8, port)
    bus.add_mmio(0x3F8, 8, mmio)

    bus.pio_write(0x3F9, 1, 0x11)
    bus.mmio_write(0x3FA, 1, 0x22)

    assert (port.bytes[1], mmio.bytes[2]) == (0x11, 0x22)
    assert bus.pio_read(0x3F9, 1) == 0x11


def test_an_access_across_two_devices_gives_each_its_bytes() -> None:
    bus, low, high = Bus(), Ram(4), Ram(4)
    bus.add_mmio(0x1000, 4, low)
    bus.add_mmio(0x1004, 4, high)

    bus.mmio_write(0x1002, 4, 0x4433_2211)

    assert (low.bytes, high.bytes) == (b"\0\0\x11\x22", b"\x33\x44\0\0")
    assert bus.mmio_read(0x1000, 8) == 0x0000_4433_2211_0000


def test_an_access_over_the_edge_of_a_device_reads_ones_beyond_it() -> None:
    bus, ram = Bus(), Ram(2)
    bus.add_pio(0x70, 2, ram)

    bus.pio_write(0x6F, 4, 0x4433_2211)

    assert ram.bytes == b"\x22\x33"
    assert bus.pio_read(0x6F, 4) == 0xFF33_22FF


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_unclaimed_reads_give_ones_of_that_width_and_writes_are_dropped(size: int) -> None:
    bus = Bus()
    bus.add_mmio(0x1000, 0x1000, Ram(0x1000))

    for address in (0, 0xFF0, 0x2000, 1 << 52):
        bus.mmio_write(address, size, 0)
        assert bus.mmio_read(address, size) == (1 << 8 * size) - 1
    bus.pio_write(0x80, size, 0)
    assert bus.pio_read(0xFFFF, size) == (1 << 8 * size) - 1


@pytest.mark.parametrize(
    ("address", "level", "hint"),
    [
        (0x00A0_3010, "INFO", "no device in virtio slot 3; attach one with --device"),
        (0x00A0_F000, "WARNING", "no memory there; the guest may need a larger --mem"),
        (0x4000_0000, "WARNING", "no memory there; the guest may need a larger --mem"),
        (0x9000_2000, "WARNING", "check the address against the memory map"),
    ],
)
def test_an_unmapped_mmio_address_is_logged_once_with_a_hint(
    address: int, level: str, hint: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bus = Bus()

    bus.mmio_read(address, 4)
    bus.mmio_write(address, 4, 0)

    (record,) = caplog.records
    assert f"MMIO read of unmapped address {address:#x}" in record.message
    assert hint in record.message
    assert record.levelname == level


def test_a_write_to_an_empty_virtio_slot_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    Bus().mmio_write(0x00A0_3050, 4, 0)

    (record,) = caplog.records
    assert (record.levelname, "virtio slot 3" in record.message) == ("WARNING", True)


def test_an_unclaimed_port_is_logged_below_the_level_of_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    bus = Bus()

    bus.pio_write(0x80, 1, 0)
    bus.pio_write(0x80, 1, 0)

    assert [(r.levelname, r.message) for r in caplog.records] == [
        ("INFO", "write of port 0x80: no device there; harmless in a probe")
    ]


def test_a_guest_that_touches_every_address_floods_neither_log_nor_memory(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bus = Bus()

    for page in range(10 * MAX_LOGGED):
        bus.mmio_read(0xA000_0000 + page * 4096, 8)

    assert len(caplog.records) == MAX_LOGGED + 1
    assert "no further ones are logged" in caplog.records[-1].message
    assert len(bus._logged) == MAX_LOGGED


def test_overlapping_devices_are_refused() -> None:
    bus = Bus()
    bus.add_pio(0x60, 2, Ram(2))
    bus.add_mmio(0x1000, 0x1000, Ram(1))

    with pytest.raises(ValueError, match="port 0x61 is taken"):
        bus.add_pio(0x61, 1, Ram(1))
    with pytest.raises(ValueError, match="address 0x1800 is taken"):
        bus.add_mmio(0x1800, 8, Ram(8))
