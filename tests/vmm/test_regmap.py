"""Register maps: exact, partial, wide and misaligned accesses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.regmap import Register, RegisterMap


class Cells:
    """Plain storage behind a register map, which notes what was touched, in order."""

    def __init__(self, *layout: tuple[int, int]) -> None:
        self.touched: list[str] = []
        self.values = [0] * len(layout)
        self.map = RegisterMap(
            Register(offset, size, f"r{i}", self._reader(i), self._writer(i))
            for i, (offset, size) in enumerate(layout)
        )

    def _reader(self, i: int):
        def read() -> int:
            self.touched.append(f"read r{i}")
            return self.values[i]

        return read

    def _writer(self, i: int):
        def write(value: int, mask: int) -> None:
            self.touched.append(f"write r{i} {value:#x}/{mask:#x}")
            self.values[i] = self.values[i] & ~mask | value

        return write


def test_an_exact_access_reaches_its_register() -> None:
    cells = Cells((0, 2), (2, 2))

    cells.map.write(2, 2, 0xBEEF)

    assert cells.values == [0, 0xBEEF]
    assert cells.map.read(2, 2) == 0xBEEF


def test_a_wide_access_touches_each_register_once_in_order_of_address() -> None:
    cells = Cells((2, 2), (0, 2))

    cells.map.write(0, 4, 0x1122_3344)
    value = cells.map.read(0, 4)

    assert value == 0x1122_3344
    assert cells.touched == [
        "write r1 0x3344/0xffff",
        "write r0 0x1122/0xffff",
        "read r1",
        "read r0",
    ]


def test_a_partial_write_says_which_bits_it_wrote() -> None:
    cells = Cells((0, 4))

    cells.map.write(1, 2, 0xABCD)

    assert cells.touched == ["write r0 0xabcd00/0xffff00"]


def test_bytes_of_no_register_read_as_ones_and_drop_writes() -> None:
    cells = Cells((1, 1))

    cells.map.write(0, 4, 0)

    assert cells.touched == ["write r0 0x0/0xff"]
    assert cells.map.read(0, 4) == 0xFFFF_00FF
    assert cells.map.read(8, 8) == 0xFFFF_FFFF_FFFF_FFFF


def test_overlapping_registers_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="r1 and r0 share byte 0x3"):
        Cells((0, 4), (3, 1))


@given(
    st.lists(
        st.tuples(st.integers(0, 15), st.sampled_from([1, 2, 3, 4, 8]), st.integers(0, 2**64 - 1)),
        max_size=20,
    )
)
def test_any_mix_of_accesses_behaves_as_bytes_do(
    writes: list[tuple[int, int, int]],
) -> None:
    cells = Cells((0, 1), (1, 1), (2, 2), (4, 4), (8, 8))
    memory = bytearray(16) + b"\xff" * 16

    for offset, size, value in writes:
        part = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        cells.map.write(offset, size, int.from_bytes(part, "little"))
        memory[offset : offset + size] = part
        memory[16:] = b"\xff" * 16

    for size in (1, 2, 3, 4, 8):
        for offset in range(16):
            expected = int.from_bytes(memory[offset : offset + size], "little")
            assert cells.map.read(offset, size) == expected
