"""An input, taken apart from the front; what is missing reads as zero."""

from __future__ import annotations


class Source:
    """``data`` as numbers, and as places and sizes near the edges."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> bool:
        """Whether anything is left."""
        return self._at < len(self._data)

    def take(self, size: int = 1) -> int:
        """A number of ``size`` bytes, little-endian."""
        return int.from_bytes(self.bytes(size), "little")

    def bytes(self, size: int) -> bytes:
        """The next ``size`` bytes, fewer at the end."""
        found = self._data[self._at : self._at + size]
        self._at += size
        return found

    def near(self, most: int, size: int) -> int:
        """Up to ``most`` from either end of the numbers of ``size`` bytes, or any of them."""
        choice = self.take()
        if choice == 0xFF:
            return self.take(size)
        if choice >= 0xE0:
            return (1 << 8 * size) - 1 - (choice - 0xE0)
        return choice % (most + 1)
