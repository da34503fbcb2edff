"""Register maps as rows, with partial, wide and misaligned accesses solved once.

A device lists its registers as rows (offset, size, name, read, write) and is thereby a device
on the bus. An access that matches one row exactly goes straight to it. Any other access is
taken apart: each register that it touches is read or written once, in order of address; a
byte that belongs to no register reads as ones, as on an empty bus, or as zeros where a device's
specification says so; writes to it are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple


class Register(NamedTuple):
    """One register: ``size`` bytes, little-endian, at ``offset``; ``name`` is the specification's.

    ``read()`` returns the whole register. ``write(value, mask)`` stores the bits of ``mask``,
    which are those that the guest wrote; ``value`` is 0 outside of them, so that registers in
    which ones clear bits may ignore the mask, as byte-wide ones may.
    """

    offset: int
    size: int
    name: str
    read: Callable[[], int]
    write: Callable[[int, int], None]


class RegisterMap:
    """A device on the bus that consists of registers. ValueError if two of them overlap.

    ``empty`` is what a byte that belongs to none of them reads as.
    """

    def __init__(self, registers: Iterable[Register], empty: int = 0xFF) -> None:
        self._empty = empty
        self.registers = tuple(sorted(registers, key=lambda register: register.offset))
        self._starts = {register.offset: register for register in self.registers}
        # Every byte that belongs to a register, with that register.
        self._bytes: dict[int, Register] = {}
        for register in self.registers:
            for offset in range(register.offset, register.offset + register.size):
                if offset in self._bytes:
                    other = self._bytes[offset].name
                    raise ValueError(f"{register.name} and {other} share byte {offset:#x}")
                self._bytes[offset] = register

    def read(self, offset: int, size: int) -> int:
        """What the guest reads: ``size`` bytes at ``offset``, as a little-endian number."""
        register = self._starts.get(offset)
        if register is not None and register.size == size:
            return register.read()
        value = int.from_bytes(bytes((self._empty,)) * size, "little")
        for register in self._touched(offset, size):
            mask = _shift((1 << 8 * register.size) - 1, register.offset - offset)
            value = value & ~mask | _shift(register.read(), register.offset - offset) & mask
        return value & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """The guest writes ``value``, ``size`` bytes at ``offset``, as a little-endian number."""
        register = self._starts.get(offset)
        if register is not None and register.size == size:
            register.write(value, (1 << 8 * size) - 1)
            return
        written = (1 << 8 * size) - 1
        for register in self._touched(offset, size):
            whole = (1 << 8 * register.size) - 1
            mask = _shift(written, offset - register.offset) & whole
            register.write(_shift(value, offset - register.offset) & mask, mask)

    def _touched(self, offset: int, size: int) -> tuple[Register, ...]:
        # A dict keeps the order of insertion, and names each register once.
        found = {self._bytes[at]: None for at in range(offset, offset + size) if at in self._bytes}
        return tuple(found)


def _shift(value: int, count: int) -> int:
    # Moves ``value`` up by ``count`` bytes, or down when ``count`` is negative.
    return value << 8 * count if count >= 0 else value >> -8 * count
