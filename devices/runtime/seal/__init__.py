"""The jail of a device process, closed in three steps whose order is a law of the kernel.

::

    one thread       enter_privileges   dies with its parent, no new privileges, no capabilities,
                                        and starts no process
    libzmq starts    (connect, hello)   its two threads inherit all that, for it belongs to a thread
    three threads    seal               seccomp, in all threads at once: an allowlist, for ever
                                        ──► only now the first chain

Between them :func:`audit` looks at every open descriptor, for the filter can forbid new ones
only. Whoever makes a forbidden call dies of SIGSYS, and its last line on stderr names the call.
"""

from __future__ import annotations

import os
import resource
import signal
import stat
import threading
import time
from collections.abc import Collection, Iterable

from devices.runtime.seal._seal import lib
from protocol import fds
from protocol.errors import HostError, VibeError

COMMON = frozenset(
    {
        # The loop: doorbells, the channel, the trace and the log. Of each pair the second is
        # what other machines and C libraries call.
        "read", "write", "close", "poll", "ppoll", "epoll_wait", "epoll_pwait", "epoll_ctl",
        # libzmq on the socket that it has; it sends with sendto, see below.
        "recvfrom",
        # Allocators; what maps and protects executable memory is forbidden in seal.c.
        "brk", "munmap", "mremap", "madvise",
        # Locks, and clocks where the kernel does not serve them from the vDSO.
        "futex", "clock_gettime", "gettimeofday",
        # libzmq asks whether it was forked; abort() asks who it is.
        "getpid", "gettid",
        # The end of a thread, of the process, and of a signal.
        "exit", "exit_group", "rt_sigprocmask", "rt_sigreturn", "restart_syscall",
    }
)  # fmt: skip
"""What the interpreter, libzmq and the loop call once everything is open (measured by strace)."""

# What seal.c adds with conditions on arguments: mmap, mprotect, tgkill, sendto.
_CONDITIONAL = 4

# Descriptors that libzmq and the loop make for themselves, by the kernel's names.
_OWN = frozenset({"anon_inode:[eventfd]", "anon_inode:[eventpoll]", "anon_inode:[timerfd]"})


class Orphaned(VibeError):
    """The parent is gone; nobody will ever stop this process."""


def adopt_orphans(yes: bool) -> None:
    """For the launcher, which is not jailed: whether it becomes the parent of descendants whose
    parent ends, so that they can die with it."""
    _check("adopting orphans", lib.seal_adopt_orphans(yes))


def die_with(parent: int) -> None:
    """From now on this process is killed when ``parent`` ends, which is its parent; Orphaned if it
    has ended before."""
    _check("dying with the launcher", lib.seal_death_with_parent())
    if os.getppid() != parent:
        raise Orphaned(f"process {parent}, which started this one, is gone")


def enter_privileges(parent: int | None) -> None:
    """Give up everything that belongs to a thread, for good. The process must still have one
    thread, and ``parent`` must be its parent, with which it dies from now on; None for a process
    that was started by hand, whose parent is a shell."""
    if len(_threads()) != 1:
        raise RuntimeError(
            f"{len(_threads())} threads: what is given up now, the others would keep"
        )
    if parent is not None:
        # After this a change of credentials would clear the death signal; there is none to come.
        die_with(parent)
    _check("no new privileges", lib.seal_no_new_privileges())
    _check("dropping capabilities", lib.seal_drop_capabilities())
    # A process made before the seal would not die with the parent, and would stay unsealed.
    _check("starting no process", lib.seal_forbid_processes())
    # A core file would hold the guest's memory.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def audit(held: Collection[int], *, channel: bool) -> None:
    """HostError if any descriptor is open besides ``held`` and the three standard ones.

    With ``channel``, there may be what libzmq and the loop have made: eventfds, epolls and one
    socket.
    """
    sockets = 0
    for fd, what in fds.open_descriptors().items():
        if fd in held or fd <= 2 or (channel and what in _OWN):
            continue
        if channel and stat.S_ISSOCK(os.fstat(fd).st_mode) and not sockets:
            sockets += 1
            continue
        raise HostError(f"descriptor {fd} ({what}) is open, and nobody handed it over")


def seal(syscalls: Iterable[str]) -> int:
    """Allow the common calls and ``syscalls``, in every thread; returns how many that are."""
    calls = []
    for name in sorted(COMMON.union(syscalls)):
        number = lib.seal_resolve(name.encode())
        if number == lib.SEAL_UNKNOWN:
            raise ValueError(f"{name!r} is not a system call")
        if number >= 0:
            calls.append(number)
    _wait_for_masks()
    _check("signals of libzmq's threads", lib.seal_unblock_trap(len(_threads()) - 1))
    _check("seccomp", lib.seal_filter(calls, len(calls)))
    return len(calls) + _CONDITIONAL


def _threads() -> list[int]:
    return [int(thread) for thread in os.listdir("/proc/self/task")]


def _wait_for_masks() -> None:
    # libzmq's threads block all signals as their first act. One that has not come to it yet would
    # block again what seal.c is about to unblock. A libzmq that blocks nothing costs this second.
    deadline = time.monotonic() + 1
    others = [thread for thread in _threads() if thread != threading.get_native_id()]
    while not all(map(_has_blocked, others)) and time.monotonic() < deadline:
        time.sleep(0.0001)


def _has_blocked(thread: int) -> bool:
    # Before a thread's first act, libc blocks everything; the mask that the thread itself fills
    # leaves out libc's own signals, of which seal.c borrows the first.
    # In bytes: a codec would have to be imported, in every device once more.
    with open(f"/proc/self/task/{thread}/status", "rb") as status:
        (mask,) = (int(line.split()[1], 16) for line in status if line.startswith(b"SigBlk:"))
    blocked = {number for number in (signal.SIGSYS, lib.SEAL_BORROWED) if mask >> number - 1 & 1}
    return blocked == {signal.SIGSYS}


def _check(step: str, result: int) -> None:
    if result < 0:
        raise HostError(f"the jail cannot be closed: {step}: {os.strerror(-result)}")
