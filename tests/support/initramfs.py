"""Writes initramfs images: an init script, busybox, kernel modules in loading order, files.

The format is cpio "newc" (the kernel's Documentation/driver-api/early-userspace/
buffer-format.rst): a header of thirteen 8-digit hexadecimal numbers behind ``070701``, the name
and a NUL, the content; name and content each padded to four bytes.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from protocol.errors import HostError
from tests.support.kernels import Kernel
from tests.support.packages import CACHE, host_architecture, output, program, unpack


class Archive:
    """A newc archive in memory; parents of what is added are made as needed."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._known: set[str] = set()
        self._inode = 0

    def file(self, name: str, content: bytes, mode: int = 0o755) -> None:
        """Add a regular file; ``name`` has no leading slash."""
        self._add(name, stat.S_IFREG | mode, content)

    def device(self, name: str, major: int, minor: int) -> None:
        """Add a character device."""
        self._add(name, stat.S_IFCHR | 0o600, b"", major, minor)

    def folder(self, name: str) -> None:
        """Add a folder, and its parents, unless it is there."""
        if name not in self._known:
            self._add(name, stat.S_IFDIR | 0o755, b"")

    def finish(self) -> bytes:
        """The whole archive, closed by its trailer."""
        trailer = self._record("TRAILER!!!", 0, b"", 0, 0)
        return b"".join([*self._parts, trailer])

    def _add(self, name: str, mode: int, content: bytes, major: int = 0, minor: int = 0) -> None:
        parent = name.rpartition("/")[0]
        if parent:
            self.folder(parent)
        self._known.add(name)
        self._inode += 1
        self._parts.append(self._record(name, mode, content, major, minor))

    def _record(self, name: str, mode: int, content: bytes, major: int, minor: int) -> bytes:
        encoded = name.encode() + b"\0"
        # ino, mode, uid, gid, nlink, mtime, filesize, dev major and minor, rdev major and minor,
        # namesize, checksum (0 in newc). Time 0 makes equal input give equal images.
        fields = (self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, major, minor, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        return _padded(header + encoded) + _padded(content)


def build(
    kernel: Kernel,
    init_script: str,
    modules: Iterable[str] = (),
    files: Mapping[str, Path] | None = None,
) -> Path:
    """Path of an image whose ``/init`` is ``init_script``, run by busybox's shell.

    ``modules`` and all they need lie in ``/modules``, so named that sorting them gives the
    loading order; ``files`` maps names in the image to files here. The image is kept under a hash
    of all this, and made only when it is not there yet.
    """
    contents = {"bin/busybox": busybox(kernel.architecture), **(files or {})}
    names = tuple(modules)
    image = CACHE / "initramfs" / f"{_key(kernel, init_script, names, contents)}.cpio"
    if image.exists():
        return image
    archive = Archive()
    for name in ("dev", "proc", "sys", "tmp", "mnt"):
        archive.folder(name)
    # The kernel opens it for init before anything can mount devtmpfs (devices.txt: char 5, 1).
    archive.device("dev/console", 5, 1)
    archive.file("init", init_script.encode())
    for number, module in enumerate(kernel.modules(names)):
        archive.file(f"modules/{number:03}-{module.name}", module.read_bytes(), 0o644)
    for name, source in contents.items():
        archive.file(name, source.read_bytes())
    image.parent.mkdir(parents=True, exist_ok=True)
    half_done = image.with_suffix(f".{os.getpid()}")
    half_done.write_bytes(archive.finish())
    half_done.rename(image)
    return image


def programs(*names: str) -> dict[str, Path]:
    """``files`` for `build`: programs of this host, in ``bin``, and the libraries that they want,
    where they are. Raises HostError when one is missing."""
    files = {}
    for name in names:
        path = files[f"bin/{name}"] = Path(program(name))
        wanted = re.findall(r"(/\S+) \(0x", output(["ldd", str(path)]))
        files |= {library.lstrip("/"): Path(library) for library in wanted}
    return files


def busybox(architecture: str) -> Path:
    """A static busybox: this machine's own, or another architecture's, downloaded once.

    Raises HostError when it is not here and cannot be had.
    """
    if architecture == host_architecture():
        installed = Path("/bin/busybox")
        if not installed.exists():
            raise HostError(f"{installed} is missing; run `make setup`")
        return installed
    root = CACHE / "busybox" / architecture
    if not root.is_dir():
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root.parent) as scratch:
            unpack(["busybox-static"], architecture, Path(scratch)).rename(root)
    return root / "bin" / "busybox"


def _key(kernel: Kernel, init: str, modules: tuple[str, ...], files: Mapping[str, Path]) -> str:
    # Size and time of change stand for a file's content: reading it all would cost as much as
    # writing the image.
    def identity(path: Path) -> tuple[str, int, int]:
        found = path.stat()
        return str(path), found.st_size, found.st_mtime_ns

    sources = sorted((name, identity(path)) for name, path in files.items())
    # This file decides about the image, too.
    text = repr((kernel.release, init, modules, sources, Path(__file__).read_bytes()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
