"""The VMM's own jail: what it cannot do behind it, and can before, in processes of their own."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from protocol import jail

ROOT = Path(__file__).parents[2]

# Deeds that succeed, or fail for a reason of their own, where nobody forbids them.
KILLED = {
    "a program": "os.execv('/bin/true', ['true'])",
    "a process": "os._exit(0) if os.fork() == 0 else None",
    "a program in a process": "os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)",
    "a TCP socket": "socket.socket(socket.AF_INET)",
    "netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "looking into another": "libc.ptrace(16, 0, 0, 0)",
    "another's memory": "libc.process_vm_readv(os.getppid(), 0, 0, 0, 0, 0)",
    "a mount": "libc.mount(0, 0, 0, 0, 0)",
    "a namespace": "libc.unshare(0)",
    "another user": "os.setuid(os.getuid())",
}
REFUSED = {
    "reading a file": "open('/etc/passwd').close()",
    "listing": "os.listdir('/')",
    "a file beside its sockets": "open(os.path.join(place, 'file'), 'w').close()",
    "a directory": "os.mkdir(os.path.join(place, 'directory'))",
    "removing what is not its own": "os.unlink(os.path.join(other, 'file'))",
}
ALLOWED = {
    "a socket": "socket.socket(socket.AF_UNIX).bind(os.path.join(place, 'socket'))",
    "a thread": "thread = threading.Thread(target=print); thread.start(); thread.join()",
    "an import": "import wave",
    "cleaning up": "os.unlink(os.path.join(place, 'old')); shutil.rmtree(place)",
    "signals": "os.kill(os.getppid(), 0)",
}


def does(deed: str, folder: Path, *, sealed: bool) -> subprocess.CompletedProcess[str]:
    """A process that does ``deed`` behind the VMM's seal, or before it."""
    place, other = folder / "run", folder / "other"
    for made in (place, other):
        made.mkdir()
    (place / "old").touch()
    (other / "file").touch()
    enter = f"seal.enter([{str(place)!r}], {str(place)!r})" if sealed else ""
    program = f"""
import ctypes, os, shutil, socket, threading
from vmm import seal
place, other = {str(place)!r}, {str(other)!r}
libc = ctypes.CDLL(None)
{enter}
print("sealed", flush=True)
{deed}
"""
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("deed", KILLED.values(), ids=KILLED)
def test_what_kills_it(deed: str, tmp_path: Path) -> None:
    done = does(deed, tmp_path, sealed=True)

    assert done.stdout == "sealed\n"
    assert done.returncode == -signal.SIGSYS


@pytest.mark.parametrize("deed", REFUSED.values(), ids=REFUSED)
def test_what_is_refused(deed: str, tmp_path: Path) -> None:
    if jail.landlock_version() <= 0:
        pytest.skip("no Landlock on this host")

    done = does(deed, tmp_path, sealed=True)

    assert done.stdout == "sealed\n"
    assert done.stderr.splitlines()[-1].startswith("PermissionError")


@pytest.mark.parametrize("deed", {**KILLED, **REFUSED}.values(), ids={**KILLED, **REFUSED})
def test_who_is_not_sealed_can(deed: str, tmp_path: Path) -> None:
    done = does(deed, tmp_path, sealed=False)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("deed", ALLOWED.values(), ids=ALLOWED)
def test_what_it_needs_it_has(deed: str, tmp_path: Path) -> None:
    done = does(deed, tmp_path, sealed=True)

    assert (done.returncode, done.stderr) == (0, "")
