"""fio from Debian's source, linked statically, so that it runs from an initramfs.

``python -m tests.soak.fio`` leaves it in ``.cache/fio``, which takes the network and a minute; what
Debian has built is linked against forty libraries.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from protocol.errors import HostError
from tests.support.packages import CACHE, output, program

BUILT = CACHE / "fio"
_SOURCES = (
    "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] "
    "http://deb.debian.org/debian bookworm main\n"
)


def fio() -> Path:
    """Its file, built the first time; HostError if that cannot be done."""
    if not BUILT.exists():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            _build(Path(folder)).rename(BUILT)
    return BUILT


def _build(folder: Path) -> Path:
    # The machine's own lists of packages stay as they are.
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "sources.list").write_text(_SOURCES)
    settings = {
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State": folder,
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder,
        "APT::Sandbox::User": "root",
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    output(["apt-get", *options, "update", "-qq"])
    _run(folder, program("apt-get"), *options, "source", "--download-only", "-qq", "fio")
    tree = folder / "fio"
    tree.mkdir()
    (archive,) = folder.glob("fio_*.orig.tar.gz")
    output(["tar", "-xf", str(archive), "-C", str(tree), "--strip-components=1"])
    _run(tree, "./configure", "--build-static", "--disable-native")
    _run(tree, program("make"), "-j", str(os.cpu_count()), "fio")
    return tree / "fio"


def _run(folder: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise HostError(f"{' '.join(command)}: {done.stderr[-500:]}")


if __name__ == "__main__":
    try:
        print(fio())
    except HostError as error:
        sys.exit(f"fio: {error}")
