"""Copy-on-write overlays: what a guest writes to a disk, beside the image that is only read.

An overlay is a sparse file, as large as its base and a little::

    0       4096      4096 + n    4096 + 2n
    ├ header ┼ durable ┼ current   ┼ blocks of 4 KiB, where the base has them, if they were written
    └────────┴─────────┴───────────┴──────────────────────────────────────────────────────────────

Of each block the two bitmaps have a bit: it is here, and not in the base. ``current`` is what a
process goes by, and its successor if it dies: it is set behind the data, and both are in the page
cache. The disk may come to have them in the other order, though, or one of them. So ``current`` is
believed only in the boot of the host in which it was written; ``durable`` gets its bits once their
data is, at a flush. After a crash of the host a block is as a flush has left it, or later, never
torn between base and nothing.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import struct
from collections.abc import Callable

from devices.runtime import files
from protocol.errors import BadInput

BLOCK = 4096
"""What is copied at least."""

_PAGE = 4096

_ZEROS = memoryview(mmap.mmap(-1, 64 * 1024)).toreadonly()

# Magic, version, 4 bytes of nothing; the base's size, and when it was last changed (ns; 0: a block
# device, which does not tell); the boot in which the current bitmap was written.
_HEADER = struct.Struct("<8sI4xQQ16s")
_MAGIC, _VERSION = b"vibe-cow", 1

_BOOT_ID = "/proc/sys/kernel/random/boot_id"

Buffers = Callable[[int], list[memoryview]]
"""The first so many bytes of what is to be written, in pieces."""


def zeros(size: int) -> list[memoryview]:
    """Of them the first so many: at a page's beginning, as direct I/O wants what it writes."""
    return [_ZEROS[:size]]


class Raw:
    """An image that is a file as it is."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def find(self, offset: int, size: int) -> tuple[int, int, int]:
        """Where the first of ``size`` bytes at ``offset`` are: file, offset there, how many."""
        return self.fd, offset, size

    def write(self, data: Buffers, size: int, offset: int, flags: int) -> int:
        """Write the first of ``size`` bytes, as pwritev2(2) with ``flags``; how many. OSError."""
        return os.pwritev(self.fd, data(size), offset, flags)

    def discard(self, offset: int, size: int) -> None:
        """Give them back: they read as zeros, or as before. OSError."""
        files.discard(self.fd, offset, size)

    def zero(self, offset: int, size: int, *, unmap: bool) -> None:
        """Make them zeros, and give them back where that may be. OSError."""
        (files.discard if unmap else files.zero)(self.fd, offset, size)

    def flush(self) -> None:
        """Make all that was written durable. OSError."""
        os.fdatasync(self.fd)

    def close(self) -> None:
        """Leave it as it is to be found."""


class Overlay(Raw):
    """``fd`` on ``base``, a disk of ``size`` bytes; ``syncs`` unless what is written may be lost
    with the host."""

    def __init__(self, fd: int, base: int, size: int, *, syncs: bool) -> None:
        super().__init__(fd)
        self.data = _data_offset(size)
        """Where its first block is."""
        self._base = base
        self._size = size
        self._syncs = syncs
        self._map = mmap.mmap(fd, self.data)
        half = _bitmap_size(size)
        whole = memoryview(self._map)
        self._durable = whole[_PAGE : _PAGE + half]
        self.current = whole[_PAGE + half :]
        """A bit a block, from the lowest of the first byte on."""
        self._saved = b""  # what the durable bitmap is known to be

    def find(self, offset: int, size: int) -> tuple[int, int, int]:
        """See Raw: those that are all here, or all in the base."""
        is_here, size = self._run(offset, size)
        return (self.fd, self.data + offset, size) if is_here else (self._base, offset, size)

    def write(self, data: Buffers, size: int, offset: int, flags: int) -> int:
        """See Raw. A block that is not here, and not written whole, is copied; with ``flags``, what
        says that it is here is durable, too."""
        is_here, size = self._run(offset, size)
        if is_here:
            return os.pwritev(self.fd, data(size), self.data + offset, flags)
        at = offset % BLOCK
        pieces = data(size)
        size = sum(map(len, pieces))  # which may be fewer
        if at or (size < BLOCK and offset + size < self._size):
            size = min(size, BLOCK - at)
            block = bytearray(os.pread(self._base, BLOCK, offset - at))
            block[at : at + size] = b"".join(data(size))
            self._write_all([memoryview(block)], offset - at, flags)
            return size
        if offset + size < self._size:
            size -= size % BLOCK
            pieces = data(size)
        self._write_all(pieces, offset, flags)
        return size

    def _write_all(self, pieces: list[memoryview], offset: int, flags: int) -> None:
        # Blocks that are not here: all of them, or they stay as they were.
        size = sum(map(len, pieces))
        if os.pwritev(self.fd, pieces, self.data + offset, flags) < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._mark(offset, size)
        if flags:
            self.flush()

    def discard(self, offset: int, size: int) -> None:
        """See Raw: zeros hide the base."""
        self.zero(offset, size, unmap=True)

    def zero(self, offset: int, size: int, *, unmap: bool) -> None:
        """See Raw."""
        end = offset + size
        first = min(-(-offset // BLOCK) * BLOCK, end)
        last = end if end == self._size else max(end // BLOCK * BLOCK, first)
        if last > first:
            super().zero(self.data + first, last - first, unmap=unmap)
            self._mark(first, last - first)
        for start, stop in ((offset, first), (last, end)):
            if stop > start:
                self.write(zeros, stop - start, start, 0)

    def flush(self) -> None:
        """See Raw: data first, then what says that it is there."""
        current = bytes(self.current)
        if self._syncs:
            os.fdatasync(self.fd)
        if current == self._saved:
            return
        for at in range(0, len(current), _PAGE):
            if self._durable[at : at + _PAGE] != current[at : at + _PAGE]:
                self._durable[at : at + _PAGE] = current[at : at + _PAGE]
        if self._syncs:
            os.fdatasync(self.fd)
        self._saved = current

    def close(self) -> None:
        """See Raw: another boot, or another host, may be the next."""
        if self.current != self._saved:
            self.flush()

    def _run(self, offset: int, size: int) -> tuple[bool, int]:
        # Whether the block at `offset` is here; bytes from there on, up to `size`, of which the
        # same is true.
        block, last = offset // BLOCK, (offset + size - 1) // BLOCK
        is_here = self._is_here(block)
        while block < last and self._is_here(block + 1) == is_here:
            block += 1
        return is_here, min(size, (block + 1) * BLOCK - offset)

    def _is_here(self, block: int) -> bool:
        return bool(self.current[block // 8] >> block % 8 & 1)

    def _mark(self, offset: int, size: int) -> None:
        for block in range(offset // BLOCK, -(-(offset + size) // BLOCK)):
            self.current[block // 8] |= 1 << block % 8


def open_overlay(path: str, base_path: str, base: int) -> tuple[int, str]:
    """The overlay at ``path`` of ``base``, the image at ``base_path``. If there is none it is made,
    without a name, and the absolute path that it is to have comes with it; else that is empty.
    BadInput of the key ``overlay``. Whoever has it to himself calls :func:`begin` next."""
    try:
        # O_NONBLOCK: a FIFO, which is refused, must not hold us up.
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return _make(path, base)
    except (OSError, ValueError) as error:
        raise BadInput("overlay", f"{path}: {_why(error)}") from error
    try:
        _check(fd, path, base_path, base)
    except BaseException:
        os.close(fd)
        raise
    return fd, ""


def begin(fd: int) -> None:
    """Believe the current bitmap if it was written since the host booted, else the durable one.
    OSError if there is no room for them."""
    magic, version, size, changed, boot = _HEADER.unpack(os.pread(fd, _HEADER.size, 0))
    # They are mapped: to write where the file system has no room is SIGBUS, and no error.
    os.posix_fallocate(fd, 0, _data_offset(size))
    if boot == _boot():
        return
    half = _bitmap_size(size)
    with mmap.mmap(fd, _data_offset(size)) as whole:
        whole[_PAGE + half : _PAGE + 2 * half] = whole[_PAGE : _PAGE + half]
    os.pwrite(fd, _HEADER.pack(magic, version, size, changed, _boot()), 0)


def _make(path: str, base: int) -> tuple[int, str]:
    size, changed = _identity(base)
    name = os.path.realpath(path)
    try:
        fd = _new(name)
    except OSError as error:
        raise BadInput("overlay", f"{path}: {_why(error)}") from error
    try:
        os.ftruncate(fd, _data_offset(size) + size)
        os.posix_fallocate(fd, 0, _data_offset(size))
        os.pwrite(fd, _HEADER.pack(_MAGIC, _VERSION, size, changed, _boot()), 0)
    except OSError as error:
        if os.fstat(fd).st_nlink:
            os.unlink(name)
        os.close(fd)
        raise BadInput("overlay", f"{path}: {_why(error)}") from error
    return fd, name


def _new(path: str) -> int:
    # Without a name; but some file systems have no such files (NFS, or an overlayfs of old).
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        return os.open(os.path.dirname(path), flags | os.O_TMPFILE, 0o666)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)


def _check(fd: int, path: str, base_path: str, base: int) -> None:
    header = os.pread(fd, _HEADER.size, 0) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    if len(header) < _HEADER.size or not header.startswith(_MAGIC):
        raise BadInput("overlay", f"{path}: is no overlay")
    _, version, size, changed, _ = _HEADER.unpack(header)
    if version != _VERSION:
        raise BadInput("overlay", f"{path}: is of version {version}, and not {_VERSION}")
    there, last = _identity(base)
    if size != there:
        raise BadInput(
            "overlay", f"{path}: is of a disk of {size} bytes, and {base_path} has {there}"
        )
    if changed != last:
        raise BadInput(
            "overlay", f"{path}: is of another image than {base_path}, or that was changed since"
        )
    if os.fstat(fd).st_size < _data_offset(size) + size:
        raise BadInput("overlay", f"{path}: is shorter than it was")


def _identity(base: int) -> tuple[int, int]:
    # Size, and the last change.
    found = os.fstat(base)
    is_file = stat.S_ISREG(found.st_mode)
    return os.lseek(base, 0, os.SEEK_END), found.st_mtime_ns if is_file else 0


def _bitmap_size(size: int) -> int:
    # In whole pages.
    blocks = -(-size // BLOCK)
    return -(-blocks // (8 * _PAGE)) * _PAGE


def _data_offset(size: int) -> int:
    return _PAGE + 2 * _bitmap_size(size)


def _boot() -> bytes:
    with open(_BOOT_ID) as file:
        return bytes.fromhex(file.read().strip().replace("-", ""))


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
