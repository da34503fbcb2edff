"""Makes what a stock Linux guest is started with, for `make demo` and for trying by hand.

``python -m tools.linux [amd64|arm64]`` leaves three files in ``.cache/linux/ARCHITECTURE`` and
prints their paths: ``vmlinuz``, Debian's own kernel; ``initrd``, whose /init is
``tools/linux_init.sh``; and ``disk.img``, a fresh ext4 file system with one file on it,
``from-host``, whose SHA-256 is printed as well. Only the disk is made anew when all are there.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from protocol.errors import HostError
from tests.support import initramfs
from tests.support.kernels import debian
from tests.support.packages import CACHE, program

MODULES = ("virtio_mmio", "virtio_blk", "virtio_console", "virtio_net", "virtio-rng")
# Both arbitrary: room to try things; more than the guest's driver asks for at once.
DISK_SIZE = 64 << 20
FILE_SIZE = 1 << 20


def prepare(architecture: str) -> tuple[Path, str]:
    """The folder with the three files, and the SHA-256 of what is on the disk.

    Raises HostError when the kernel or busybox is not here and cannot be had.
    """
    kernel = debian(f"cloud-{architecture}")
    init = Path(__file__).with_name("linux_init.sh").read_text()
    folder = CACHE / "linux" / architecture
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        new = Path(scratch)
        (new / "vmlinuz").symlink_to(os.path.relpath(kernel.image, folder))
        image = initramfs.build(kernel, init, MODULES)
        (new / "initrd").symlink_to(os.path.relpath(image, folder))
        content = os.urandom(FILE_SIZE)
        make_disk(new, content)
        # Each takes its place whole: a machine that runs keeps the disk that it has.
        for name in ("vmlinuz", "initrd", "disk.img"):
            (new / name).rename(folder / name)
    return folder, hashlib.sha256(content).hexdigest()


def make_disk(folder: Path, content: bytes) -> None:
    """An ext4 file system in ``folder``/disk.img, with ``content`` as its file from-host."""
    tree = folder / "tree"
    tree.mkdir()
    (tree / "from-host").write_bytes(content)
    disk = folder / "disk.img"
    with disk.open("wb") as file:
        file.truncate(DISK_SIZE)
    subprocess.run([program("mkfs.ext4"), "-q", "-F", "-d", tree, disk], check=True)


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="tools.linux", description=__doc__.partition("\n")[0])
    parser.add_argument("architecture", nargs="?", default="amd64", choices=("amd64", "arm64"))
    try:
        folder, checksum = prepare(parser.parse_args().architecture)
    except HostError as error:
        print(f"linux: {error}", file=sys.stderr)
        return 3
    for name in ("vmlinuz", "initrd", "disk.img"):
        print(os.path.relpath(folder / name))
    print(f"from-host: sha256 {checksum}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
