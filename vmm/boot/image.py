"""Files to boot from: opened by others, read at explicit offsets only.

The launcher and the VMM share one open file description, so neither may move its position.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from protocol.errors import BadInput

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike


class Image:
    """A kernel, binary or initrd: an open regular file that is not empty.

    ``option`` is what the user calls it, and what a BadInput about it names. A bare descriptor
    stays the caller's, who keeps it open for as long as the image is used.
    """

    def __init__(self, file: FileDescriptorLike, option: str) -> None:
        # A file object that nobody else held would close, and its number be another file's.
        self._file = file
        self.fd = file if isinstance(file, int) else file.fileno()
        self.option = option
        status = os.fstat(self.fd)
        if not stat.S_ISREG(status.st_mode):
            raise self.bad("this is not a regular file")
        self.size = status.st_size
        if self.size == 0:
            raise self.bad("the file is empty")

    def bad(self, why: str) -> BadInput:
        """The error to raise about this file."""
        return BadInput(self.option, why)

    def read(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes at ``offset``; fewer at the end of the file."""
        return os.pread(self.fd, size, offset)

    def part(self, offset: int = 0, size: int | None = None) -> FilePart:
        """The bytes from ``offset`` on, which have to be in the file: truncated if not."""
        if size is None:
            size = self.size - offset
        if offset + size > self.size:
            raise self.bad(
                f"the file is truncated: its header promises {offset + size} bytes, "
                f"it has {self.size}"
            )
        return FilePart(self, offset, size)


@dataclass(frozen=True, slots=True)
class FilePart:
    """``size`` bytes at ``offset`` of a file: what a segment is loaded from."""

    image: Image
    offset: int
    size: int

    def __len__(self) -> int:
        return self.size

    def read_into(self, view: memoryview) -> None:
        """Fill ``view``, which is as long as this, straight from the file."""
        done = 0
        while done < self.size:
            count = os.preadv(self.image.fd, [view[done:]], self.offset + done)
            if count == 0:
                raise self.image.bad("the file became shorter while it was read")
            done += count
