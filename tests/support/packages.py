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
        error = _download([name], architecture, folder)
        if not error:
            return _unpacked(folder)
        errors.append(error)
    raise _unavailable(candidates[0], architecture, errors)


def unpack_all(names: list[str], architecture: str, folder: Path) -> Path:
    """Unpack all these packages; the top of their tree, in ``folder``.

    Raises HostError with what apt says when one of them cannot be had.
    """
    if error := _download(names, architecture, folder):
        raise _unavailable(names[0], architecture, [error])
    return _unpacked(folder)


def _download(names: list[str], architecture: str, folder: Path) -> str:
    # What is wrong, if they are not there now.
    more = f" and {len(names) - 1} more" if names[1:] else ""
    print(f"downloading {names[0]}:{architecture}{more} (once)", flush=True)
    done = subprocess.run(
        [program("apt-get"), *_options(architecture), "download", "-qq", *names],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    return (done.stderr.strip() or f"status {done.returncode}") if done.returncode else ""


def _unpacked(folder: Path) -> Path:
    tree = folder / "tree"
    for package in sorted(folder.glob("*.deb")):
        output(["dpkg", "-x", str(package), str(tree)])
    return tree


def _unavailable(name: str, architecture: str, errors: list[str]) -> HostError:
    return HostError(
        f"cannot download {name} for {architecture}; is the network there? " + "; ".join(errors)
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
