"""The jail of a device process, closed in steps whose order is a law of the kernel.

::

    the midwife      Cell.leave_processes   a user and a pid namespace, made before the fork
    one thread       Cell.leave_host        net, ipc, uts; nothing of a machine is known yet
                     ◄── its spec           and the module of its kind is imported
                     Seal.enter             an empty root, no user, no capabilities, starts no
                                            process, Landlock, dies with its parent
    libzmq starts    (connect, hello)       its two threads inherit all that, for it belongs to a
                                            thread
    all threads      Seal.close             limits; seccomp, in all threads at once: an allowlist,
                                            for ever ──► only now the first chain

Between them :meth:`Seal.audit` looks at every open descriptor, for the filter can forbid new ones
only. What becomes of who makes a forbidden call is protocol.specs.OnViolation.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import socket
import stat
import threading
import time
from collections.abc import Collection, Iterable, Sequence

from protocol import fds, jail
from protocol.errors import HostError
from protocol.jail import Cell
from protocol.specs import OnViolation, Part

COMMON = frozenset(
    {
        # The loop: doorbells, the channel, the trace and the log. Of each pair the second is
        # what other machines and C libraries call.
        "read", "write", "close", "poll", "ppoll", "epoll_wait", "epoll_pwait", "epoll_ctl",
        # libzmq on the socket that it has; it sends with sendto, see below.
        "recvfrom",
        # Allocators; what maps and protects executable memory is forbidden in filter.c.
        "brk", "munmap", "madvise",
        # Locks, and clocks where the kernel does not serve them from the vDSO.
        "futex", "clock_gettime", "gettimeofday",
        # libzmq asks whether it was forked; abort() asks who it is.
        "getpid", "gettid",
        # The end of a thread, of the process, and of a signal.
        "exit", "exit_group", "rt_sigprocmask", "rt_sigreturn", "restart_syscall",
    }
)  # fmt: skip
"""What the interpreter, libzmq and the loop call once everything is open (measured by strace)."""

# Of one that takes descriptors, and looks at what they are of, by whichever call its libc makes. It
# can give none away (sendmsg), neither its own nor those.
_RECEIVING = frozenset({"recvmsg", "fstat", "newfstatat"})

# What filter.c adds with conditions on arguments: mmap, mprotect, tgkill, sendto.
_CONDITIONAL = 4

# Descriptors that libzmq and the loop make for themselves, by the kernel's names.
_OWN = frozenset({"anon_inode:[eventfd]", "anon_inode:[eventpoll]", "anon_inode:[timerfd]"})


# Bytes of private memory, and of addresses, that a device may come to have beyond what it has when
# it is sealed (arbitrary).
_ROOM = 64 << 20

# Bytes of its first thread's stack, which RLIMIT_DATA does not count: Linux's own default.
_STACK = 8 << 20


class Seal:
    """Of this process, which has one thread. ``cell`` is what was made of it before; None: it was
    started by hand, and stays in the namespaces of who did."""

    def __init__(self, cell: Cell | None) -> None:
        self._cell = cell
        # /proc, for as long as we have to look at ourselves.
        self._proc = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Those that hold this process."""
        return () if self._cell is None else self._cell.parts

    def enter(
        self, endpoints: Sequence[str], parent: socket.socket | None, *, urings: bool = False
    ) -> Sequence[str]:
        """Give up everything that belongs to a thread, for good, and all files but the sockets at
        ``endpoints``; where these are from now on. The process dies with its parent, which is at
        the other end of ``parent``; None: its parent is a shell. With ``urings`` it may make some
        until :meth:`close`."""
        if (threads := len(self._threads())) != 1:
            raise RuntimeError(f"{threads} threads: what is given up now, the others would keep")
        if self._cell is not None:
            endpoints = self._cell.empty_root(endpoints, self._proc)
        jail.give_up_privileges(urings=urings)
        if self._cell is not None:
            self._cell.restrict([(self._proc, jail.READ)])
        if parent is not None:
            jail.die_with_parent(parent)
        return endpoints

    def audit(self, held: Collection[int], *, channels: int) -> None:
        """HostError if any descriptor is open besides ``held`` and the three standard ones.

        With ``channels``, there may be what libzmq and the loop have made: eventfds, epolls and so
        many sockets.
        """
        sockets = 0
        for fd, what in self.open_descriptors().items():
            if fd in held or fd <= 2 or (channels and what in _OWN):
                continue
            if sockets < channels and stat.S_ISSOCK(os.fstat(fd).st_mode):
                sockets += 1
                continue
            raise HostError(f"descriptor {fd} ({what}) is open, and nobody handed it over")

    def open_descriptors(self) -> dict[int, str]:
        """What is open in this process, but for what looks at that."""
        found = fds.open_descriptors(self._proc)
        del found[self._proc]
        return found

    def close(
        self,
        syscalls: Iterable[str],
        on_violation: OnViolation = "kill",
        *,
        files_grow: bool,
        descriptors: int = 0,
        receives: int = 0,
        ioctls: Collection[int] = (),
        urings: Collection[int] = (),
    ) -> int:
        """Allow the common calls, ``syscalls``, and ioctl(2) with one of the numbers in ``ioctls``,
        in every thread; returns how many that are. Files that are written to stay as large as the
        largest, unless ``files_grow``. There may come to be ``descriptors`` more, if one of
        ``syscalls`` makes them. One that ``receives`` descriptors may come to have so many,
        and map what they are of. One that has made ``urings`` may enter these, and no other."""
        calls = jail.numbers(COMMON.union(syscalls, _RECEIVING if receives else ()))
        jail.unblock_trap(self._wait_for_masks())
        limits = self._limits(files_grow=files_grow)
        limits[resource.RLIMIT_NOFILE] += descriptors + receives
        if receives:
            # What it is sent to be mapped is as large as it is.
            del limits[resource.RLIMIT_AS]
        if urings:
            # The kernel's own threads that serve them are among the processes that are counted.
            # None is started otherwise: seccomp sees to that.
            del limits[resource.RLIMIT_NPROC]
        os.close(self._proc)
        jail.limit(limits)
        # Python's own dump of its stack, which jail calls when a call is told of.
        faulthandler.register(signal.SIGSYS, all_threads=False)
        jail.forbid_all_but(
            calls, on_violation, ioctls=ioctls, maps_files=receives > 0, urings=urings
        )
        return len(calls) + _CONDITIONAL + bool(ioctls) + bool(urings)

    def _limits(self, *, files_grow: bool) -> dict[int, int]:
        opened = self.open_descriptors()
        limits = {
            # poll(2) refuses more than this many, and so there have to be some.
            resource.RLIMIT_NOFILE: max(opened) + 1,
            resource.RLIMIT_NPROC: 0,
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_MEMLOCK: 0,
            resource.RLIMIT_MSGQUEUE: 0,
            # The one counts neither what is only read nor stacks; the other is free again for
            # private memory when a file is unmapped.
            resource.RLIMIT_DATA: self._status("status", b"VmData:") * 1024 + _ROOM,
            resource.RLIMIT_AS: self._status("status", b"VmSize:") * 1024 + _ROOM,
            resource.RLIMIT_STACK: _STACK,
        }
        if not files_grow:
            files = (os.fstat(fd) for fd in opened)
            limits[resource.RLIMIT_FSIZE] = max(
                (file.st_size for file in files if stat.S_ISREG(file.st_mode)), default=0
            )
        return limits

    def _threads(self) -> list[int]:
        return [int(name) for name in fds.names("task", self._proc)]

    def _wait_for_masks(self) -> list[int]:
        # libzmq's threads block all signals as their first act. One that has not come to it yet
        # would block again what filter.c is about to unblock. A libzmq that blocks nothing costs
        # this second. Their numbers: those of our own namespace.
        deadline = time.monotonic() + 1
        while True:
            found = [self._thread(number) for number in self._threads()]
            others = {own: done for own, done in found if own != threading.get_native_id()}
            if all(others.values()) or time.monotonic() >= deadline:
                return list(others)
            time.sleep(0.0001)

    def _thread(self, number: int) -> tuple[int, bool]:
        # Before a thread's first act, libc blocks everything; the mask that the thread itself fills
        # leaves out libc's own signals, of which filter.c borrows the first.
        own = self._status(f"task/{number}/status", b"NSpid:")
        mask = self._status(f"task/{number}/status", b"SigBlk:", 16)
        signals = (signal.SIGSYS, jail.SIGNAL_BORROWED)
        return own, [number for number in signals if mask >> number - 1 & 1] == [signal.SIGSYS]

    def _status(self, path: str, key: bytes, base: int = 10) -> int:
        # The last number of a line of proc(5)'s status. In bytes: a codec would have to be
        # imported, in every device once more.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)
        with open(fd, "rb") as status:
            (words,) = (line.split() for line in status if line.startswith(key))
        return int(words[-2] if words[-1] == b"kB" else words[-1], base)
