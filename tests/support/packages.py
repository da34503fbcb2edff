"""Debian packages, downloaded and unpacked; nothing is installed.

Packages of this machine's architecture come from the lists that apt has. Others have lists of
their own in ``.cache/apt``, made from the sources in /etc/apt: the machine is not told to know
another architecture (``dpkg --add-architecture``), and its own lists and packages stay as they are.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

from protocol.errors import HostError

PROJECT = Path(__file__).resolve().parents[2]
CACHE = PROJECT / ".cache"

# depmod and modprobe lie where an ordinary user's PATH does not look.
_SEARCH = "/usr/sbin:/sbin:/usr/bin:/bin"


def program(name: str) -> str:
    """The path of a program; raises HostError when it is missing."""
    path = shutil.which(name, path=_SEARCH)
    if path is None:
        raise HostError(f"{name} is missing; run `make setup`")
    return path


def output(command: list[str]) -> str:
    """What the command prints; raises HostError with its complaint when it fails."""
    done = subprocess.run([program(command[0]), *command[1:]], capture_output=True, text=True)
    if done.returncode:
        raise HostError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def host_architecture() -> str:
    """Debian's name of this machine's architecture."""
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def depends(package: str, architecture: str) -> str:
    """What ``apt-cache depends`` says of the package; raises HostError when there is none."""
    return output(["apt-cache", *_options(architecture), "depends", "--important", package])


def unpack(candidates: list[str], architecture: str, folder: Path) -> Path:
    """Unpack the first of the packages that can be had; the top of its tree, in ``folder``.

    Raises HostError with what apt says of each when none can be had.
    """
    errors = []
    for name in candidates:
        print(f"downloading {name}:{architecture} (once)", flush=True)
        done = subprocess.run(
            [program("apt-get"), *_options(architecture), "download", "-qq", name],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        packages = list(folder.glob("*.deb"))
        if packages:
            tree = folder / "tree"
            output(["dpkg", "-x", str(packages[0]), str(tree)])
            return tree
        errors.append(done.stderr.strip())
    raise HostError(
        f"cannot download {candidates[0]} for {architecture}; is the network there? "
        + "; ".join(errors)
    )


@cache
def _options(architecture: str) -> list[str]:
    # What makes apt see that architecture and no other; its lists are fetched once a process.
    if architecture == host_architecture():
        return []
    state = CACHE / "apt" / architecture
    (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    settings = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        # No package is there already.
        "Dir::State::status": "/dev/null",
        "Dir::Cache": state,
        "Acquire::Languages": "none",
        # apt run by root downloads as the user _apt, who may not enter a checkout in a home.
        "APT::Sandbox::User": "root",
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    print(f"fetching Debian's list of packages for {architecture}", flush=True)
    output(["apt-get", *options, "update", "-qq"])
    return options
