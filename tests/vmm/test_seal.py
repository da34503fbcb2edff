"""The VMM's own jail: what it cannot do behind it, and can before, in processes of their own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from protocol import jail

ROOT = Path(__file__).parents[2]

# Deeds that succeed, or fail for a reason of their own, where nobody forbids them; and what is told
# of each: nothing where libc has all signals blocked.
KILLED = {
    "a program": ("os.execv('/bin/true', ['true'])", "execve"),
    "a process": ("os._exit(0) if os.fork() == 0 else None", "clone"),
    "a program in a process": (
        "os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)",
        None,
    ),
    "a TCP socket": ("socket.socket(socket.AF_INET)", "socket"),
    "netlink": ("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", "socket"),
    "looking into another": ("libc.ptrace(16, 0, 0, 0)", "ptrace"),
    "another's memory": (
        "libc.process_vm_readv(os.getppid(), 0, 0, 0, 0, 0)",
        "process_vm_readv",
    ),
    "a mount": ("libc.mount(0, 0, 0, 0, 0)", "mount"),
    "a namespace": ("libc.unshare(0)", "unshare"),
    "another user": ("os.setuid(os.getuid())", "setuid"),
    "in a thread": (
        "thread = threading.Thread(target=lambda: libc.unshare(0)); thread.start(); thread.join()",
        "unshare",
    ),
}
REFUSED = {
    "reading a file": "open('/etc/passwd').close()",
    "listing": "os.listdir('/')",
    "a file beside its sockets": "open(os.path.join(place, 'file'), 'w').close()",
    "a directory": "os.mkdir(os.path.join(place, 'directory'))",
    "removing what is not its own": "os.unlink(os.path.join(other, 'file'))",
}
TAKE_OVER = "signal.signal(signal.SIGSYS, signal.SIG_IGN)"
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
import ctypes, os, shutil, signal, socket, threading
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


@pytest.mark.parametrize(("deed", "call"), KILLED.values(), ids=KILLED)
def test_what_kills_it_is_told_with_its_place(deed: str, call: str | None, tmp_path: Path) -> None:
    done = does(deed, tmp_path, sealed=True)

    assert done.stdout == "sealed\n"
    assert done.returncode == -signal.SIGSYS
    if call is None:
        assert done.stderr == ""
        return
    line, _, stack = done.stderr.partition("\n")
    assert re.fullmatch(rf"E forbidden system call {call} \(\d+\) at libc\S+\+0x[0-9a-f]+", line)
    assert 'File "<string>", line' in stack


@pytest.mark.parametrize("deed", REFUSED.values(), ids=REFUSED)
def test_what_is_refused(deed: str, tmp_path: Path) -> None:
    if jail.landlock_version() <= 0:
        pytest.skip("no Landlock on this host")

    done = does(deed, tmp_path, sealed=True)

    assert done.stdout == "sealed\n"
    assert done.stderr.splitlines()[-1].startswith("PermissionError")


@pytest.mark.parametrize("strict", [False, True])
def test_a_part_that_is_lacking_is_left_out_or_refused(tmp_path: Path, strict: bool) -> None:
    program = f"""
from vmm import seal
print(*seal.enter((), {str(tmp_path)!r}, strict={strict}).lacks)
"""
    lacking = (sys.executable, "-m", "tests.support.lacking", "uts", "--")
    done = subprocess.run(
        [*lacking, sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )

    if strict:
        assert "the jail is to be whole, and lacks uts" in done.stderr.splitlines()[-1]
    else:
        assert (done.stdout, done.stderr) == ("uts\n", "")


def test_nobody_takes_the_trap_over(tmp_path: Path) -> None:
    done = does(TAKE_OVER, tmp_path, sealed=True)

    assert done.stderr.splitlines()[-1].startswith("PermissionError")


CAN = {**{name: deed for name, (deed, _) in KILLED.items()}, **REFUSED, "a trap": TAKE_OVER}


@pytest.mark.parametrize("deed", CAN.values(), ids=CAN)
def test_who_is_not_sealed_can(deed: str, tmp_path: Path) -> None:
    done = does(deed, tmp_path, sealed=False)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("deed", ALLOWED.values(), ids=ALLOWED)
def test_what_it_needs_it_has(deed: str, tmp_path: Path) -> None:
    done = does(deed, tmp_path, sealed=True)

    assert (done.returncode, done.stderr) == (0, "")
