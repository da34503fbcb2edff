"""Debian's kernels, downloaded and unpacked under ``.cache/kernels``; never installed.

The lab's own machine runs the ``amd64`` flavour, which has 9p, KVM and VFIO as modules; guests
run ``cloud-amd64`` and ``cloud-arm64``, which are small. Once unpacked, a kernel is used without
asking the network or apt again; delete its folder to get the current one.
"""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from protocol.errors import HostError
from tests.support.packages import CACHE, depends, output, program, unpack


@dataclass(frozen=True, slots=True)
class Kernel:
    """One unpacked kernel package: ``release`` as uname says it, ``root`` as its tree's top,
    ``architecture`` as Debian names it."""

    release: str
    root: Path
    architecture: str

    @property
    def image(self) -> Path:
        """The bzImage, or arm64's Image."""
        return self.root / "boot" / f"vmlinuz-{self.release}"

    def vmlinux(self) -> Path:
        """The ELF file inside an amd64 bzImage, unpacked beside it the first time.

        Raises HostError when ``lz4``, with which Debian compresses it, is missing or refuses it.
        """
        path = self.root / "boot" / f"vmlinux-{self.release}"
        if not path.exists():
            # Whole, or not there: another process may look at the same time.
            with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
                unpacked = Path(scratch) / path.name
                with unpacked.open("wb") as file:
                    _decompress(self.image.read_bytes(), file)
                unpacked.rename(path)
        return path

    def modules(self, names: Iterable[str]) -> list[Path]:
        """The files of the modules named and of all that they need, in loading order."""
        found: dict[Path, None] = {}
        for name in names:
            command = ["modprobe", "-d", str(self.root), "-S", self.release, "--show-depends", name]
            for line in output(command).splitlines():
                # Either "insmod PATH [options]" or "builtin NAME", which needs no loading.
                kind, _, rest = line.strip().partition(" ")
                if kind == "insmod":
                    found[Path(rest.split()[0])] = None
        return list(found)


def debian(flavour: str) -> Kernel:
    """The kernel of Debian's ``linux-image-FLAVOUR``, downloaded the first time.

    Raises HostError when it is not here and apt does not have it.
    """
    root = CACHE / "kernels" / flavour
    architecture = flavour.rpartition("-")[2]
    if not root.is_dir():
        _download(f"linux-image-{flavour}", architecture, root)
    (image,) = (root / "boot").glob("vmlinuz-*")
    return Kernel(image.name.removeprefix("vmlinuz-"), root, architecture)


def is_here(flavour: str) -> bool:
    """Whether ``debian(flavour)`` answers without the network."""
    return (CACHE / "kernels" / flavour).is_dir()


def _download(meta_package: str, architecture: str, root: Path) -> None:
    # The meta package names the current kernel. Its unsigned twin is the same kernel; where only
    # one of the two is on the mirror, either will do.
    match = re.search(r"Depends: (linux-image-\S+)", depends(meta_package, architecture))
    if match is None:
        raise HostError(f"apt knows no {meta_package}; run `make setup` on Debian 12")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent) as scratch:
        tree = unpack([f"{match[1]}-unsigned", match[1]], architecture, Path(scratch))
        (image,) = (tree / "boot").glob("vmlinuz-*")
        output(["depmod", "-b", str(tree), image.name.removeprefix("vmlinuz-")])
        tree.rename(root)


def _decompress(image: bytes, file: IO[bytes]) -> None:
    # The kernel's Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length.
    setup_sects = image[0x1F1]
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sects + 1) * 512 + offset
    # The last four bytes are the size of what is unpacked (scripts/Makefile.lib, size_append).
    packed = image[start : start + length - 4]
    done = subprocess.run(
        [program("lz4"), "-dc"], input=packed, stdout=file, stderr=subprocess.PIPE
    )
    if done.returncode:
        raise HostError(f"lz4 cannot unpack the kernel: {done.stderr.decode().strip()}")
