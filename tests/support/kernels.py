"""Debian's kernels, downloaded and unpacked under ``.cache/kernels``; never installed.

The lab's own machine runs the ``amd64`` flavour, which has 9p, KVM and VFIO as modules; its
guests run ``cloud-amd64``, which is small. Once unpacked, a kernel is used without asking the
network or apt again; delete its folder to get the current one.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from protocol.errors import HostError

PROJECT = Path(__file__).resolve().parents[2]
CACHE = PROJECT / ".cache"

# depmod and modprobe lie where an ordinary user's PATH does not look.
_SEARCH = "/usr/sbin:/sbin:/usr/bin:/bin"


@dataclass(frozen=True, slots=True)
class Kernel:
    """One unpacked kernel package: ``release`` as uname says it, ``root`` as its tree's top."""

    release: str
    root: Path

    @property
    def image(self) -> Path:
        """The bzImage."""
        return self.root / "boot" / f"vmlinuz-{self.release}"

    def vmlinux(self) -> Path:
        """The ELF file inside the bzImage, unpacked beside it the first time.

        Raises HostError when ``lz4``, with which Debian compresses it, is missing or refuses it.
        """
        path = self.root / "boot" / f"vmlinux-{self.release}"
        if not path.exists():
            # Whole, or not there: another process may look at the same time.
            with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
                unpacked = Path(scratch) / path.name
                with unpacked.open("wb") as file:
                    _unpack(self.image.read_bytes(), file)
                unpacked.rename(path)
        return path

    def modules(self, names: Iterable[str]) -> list[Path]:
        """The files of the modules named and of all that they need, in loading order."""
        found: dict[Path, None] = {}
        for name in names:
            command = ["modprobe", "-d", str(self.root), "-S", self.release, "--show-depends", name]
            for line in _output(command).splitlines():
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
    if not root.is_dir():
        _download(f"linux-image-{flavour}", root)
    (image,) = (root / "boot").glob("vmlinuz-*")
    return Kernel(image.name.removeprefix("vmlinuz-"), root)


def is_here(flavour: str) -> bool:
    """Whether ``debian(flavour)`` answers without the network."""
    return (CACHE / "kernels" / flavour).is_dir()


def _download(meta_package: str, root: Path) -> None:
    # The meta package names the current kernel. Its unsigned twin is the same kernel; where only
    # one of the two is on the mirror, either will do.
    depends = _output(["apt-cache", "depends", "--important", meta_package])
    match = re.search(r"Depends: (linux-image-\S+)", depends)
    if match is None:
        raise HostError(f"apt knows no {meta_package}; run `make setup` on Debian 12")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent) as scratch:
        package = _fetch([f"{match[1]}-unsigned", match[1]], Path(scratch))
        tree = Path(scratch) / "tree"
        _output(["dpkg", "-x", str(package), str(tree)])
        (image,) = (tree / "boot").glob("vmlinuz-*")
        _output(["depmod", "-b", str(tree), image.name.removeprefix("vmlinuz-")])
        tree.rename(root)


def _fetch(candidates: list[str], folder: Path) -> Path:
    errors = []
    for name in candidates:
        print(f"downloading {name} (once)", flush=True)
        done = subprocess.run(
            ["apt-get", "download", "-qq", name], cwd=folder, capture_output=True, text=True
        )
        packages = list(folder.glob("*.deb"))
        if packages:
            return packages[0]
        errors.append(done.stderr.strip())
    raise HostError("cannot download a kernel; is the network there? " + "; ".join(errors))


def _unpack(image: bytes, output: IO[bytes]) -> None:
    # The kernel's Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length.
    setup_sects = image[0x1F1]
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sects + 1) * 512 + offset
    # The last four bytes are the size of what is unpacked (scripts/Makefile.lib, size_append).
    packed = image[start : start + length - 4]
    done = subprocess.run(
        [_program("lz4"), "-dc"], input=packed, stdout=output, stderr=subprocess.PIPE
    )
    if done.returncode:
        raise HostError(f"lz4 cannot unpack the kernel: {done.stderr.decode().strip()}")


def _program(name: str) -> str:
    program = shutil.which(name, path=_SEARCH)
    if program is None:
        raise HostError(f"{name} is missing; run `make setup`")
    return program


def _output(command: list[str]) -> str:
    done = subprocess.run([_program(command[0]), *command[1:]], capture_output=True, text=True)
    if done.returncode:
        raise HostError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
