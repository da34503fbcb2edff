"""What holds a process in: each part once, for whoever jails itself with it.

The order is a law of the kernel, and the caller's to keep (devices.runtime.seal has it for a
device): what belongs to a thread is given up before there is a second one; a filter that covers all
threads comes last.

A :class:`Cell` is what the host may lack: namespaces and Landlock. What it has not got is left out
and noted, with the reason. The rest is required: HostError where it cannot be.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from protocol.errors import HostError, VibeError
from protocol.jail._jail import ffi, lib
from protocol.specs import PARTS, OnViolation, Part

READ: Final[int] = lib.JAIL_READ
WRITE: Final[int] = lib.JAIL_WRITE
REMOVE_DIRECTORY: Final[int] = lib.JAIL_REMOVE_DIRECTORY
REMOVE_FILE: Final[int] = lib.JAIL_REMOVE_FILE
MAKE_SOCKET: Final[int] = lib.JAIL_MAKE_SOCKET
"""What may be done to files."""

LOW_PORTS: Final = 1 << 10
"""The capability to listen at ports that are root's (CAP_NET_BIND_SERVICE)."""

SIGNAL_BORROWED: Final[int] = lib.JAIL_BORROWED
"""A signal that no thread of libc's making blocks for long; see jail.h."""

# Of a root launcher's processes, each has a user of its own: the numbers that nobody hands out,
# neither distributions nor container managers (systemd's UIDS-GIDS.md), from there on by pid, of
# which there are at most 2^22. A namespace that has not so many users has nobody, by convention.
_FIRST_USER, _NOBODY = 0x7000_0000, 65534

_ON_VIOLATION: dict[OnViolation, int] = {
    "kill": lib.JAIL_KILL,
    "errno": lib.JAIL_ERRNO,
    "log": lib.JAIL_LOG,
}

DENIED = frozenset(
    {
        # To look into others, or to be told of oneself.
        "ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd", "perf_event_open",
        # To hold a fault of the kernel's open; io_uring, which no filter sees through.
        "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register",
        # To change the kernel, the host's files or its users.
        "bpf", "init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load",
        "mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "fsopen", "fsconfig",
        "fsmount", "fspick", "mount_setattr", "swapon", "swapoff", "reboot", "sethostname",
        "setdomainname", "acct", "quotactl", "syslog", "settimeofday", "clock_settime",
        "clock_adjtime", "adjtimex", "iopl", "ioperm", "mknod", "mknodat", "open_by_handle_at",
        # To be somebody else, or somewhere else, or to have what his keys open.
        "setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setfsuid",
        "setfsgid", "setgroups", "unshare", "setns", "personality", "add_key", "request_key",
        "keyctl",
    }
)  # fmt: skip
"""What nobody here needs, beside what starts a process or program, and sockets but Unix ones."""

_URINGS = frozenset({"io_uring_setup", "io_uring_enter", "io_uring_register"})


class Orphaned(VibeError):
    """The parent is gone; nobody will ever stop this process."""


class Cell:
    """The namespaces of this process, and Landlock's hold on it. ``holds`` are the parts that are
    there, ``lacks`` why the others are not, by name."""

    def __init__(self) -> None:
        self.holds: list[Part] = []
        self.lacks: dict[Part, str] = {}

    def leave_processes(self) -> None:
        """The next process that this one forks sees no other. Once a process."""
        if not self._is_root() or not self._unshare("pid", lib.JAIL_NEW_PID):
            self._enter_user()
            self._unshare("pid", lib.JAIL_NEW_PID)

    def leave_host(self) -> None:
        """No network, nor System V's and POSIX's queues, nor the host's name."""
        if not self._is_root():
            self._enter_user()
        self._unshare("net", lib.JAIL_NEW_NET)
        self._unshare("ipc", lib.JAIL_NEW_IPC)
        self._unshare("uts", lib.JAIL_NEW_UTS)

    def empty_root(self, channels: Sequence[str], proc: int) -> Sequence[str]:
        """No files, but the sockets at ``channels``; where these are from now on. A root user
        becomes nobody in particular. /proc is gone but for ``proc``, a descriptor of /proc/self."""
        pid = int(os.readlink("/proc/self"))  # which others know us by
        paths = [ffi.new("char[]", os.fsencode(channel)) for channel in channels]
        result = lib.jail_unshare(lib.JAIL_NEW_MOUNT)
        if not self._note("mount", result or lib.jail_empty_root(paths, len(paths))):
            return channels
        if self._is_root():
            self._become_nobody(_FIRST_USER + pid, proc)
        return [f"/channel{number}" for number in range(len(channels))]

    def restrict(self, rights: Iterable[tuple[int, int]], *, alone: bool = True) -> None:
        """Landlock: no file but those in ``rights``, each a descriptor and what may be done there
        (``READ`` …), or below it; no port; and who is to be ``alone`` signals nobody. Once this
        thread can gain no privileges."""
        rules = list(rights)
        self._note("landlock", lib.jail_landlock(rules, len(rules), alone))

    @property
    def parts(self) -> tuple[Part, ...]:
        """Those that hold, in one order."""
        return tuple(part for part in PARTS if part in self.holds)

    def _is_root(self) -> bool:
        # In a user namespace root's uid is nothing special.
        return os.geteuid() == 0 and "user" not in self.holds

    def _unshare(self, part: Part, flag: int) -> bool:
        return part in self.holds or self._note(part, lib.jail_unshare(flag))

    def _note(self, part: Part, result: int) -> bool:
        if result < 0:
            self.lacks[part] = os.strerror(-result)
            return False
        self.lacks.pop(part, None)
        self.holds.append(part)
        return True

    def _enter_user(self, proc: int | None = None) -> None:
        if "user" in self.holds:
            return
        user, group = os.geteuid(), os.getegid()
        if not self._unshare("user", lib.JAIL_NEW_USER):
            return
        # user_namespaces(7): who may map one user, himself, has to give up setgroups first.
        # Where that is forbidden (AppArmor on Ubuntu), it is nobody here, which is as good: files
        # are opened by whose one is outside, and none are made.
        with contextlib.suppress(OSError):
            _write("setgroups", b"deny", proc)
            _write("uid_map", b"%d %d 1" % (user, user), proc)
            _write("gid_map", b"%d %d 1" % (group, group), proc)

    def _become_nobody(self, number: int, proc: int) -> None:
        lib.jail_empty_bounding_set()  # while root may; another one comes with the namespace
        if error := _become(number):
            self.lacks["user"] = error.strerror or ""
            return
        # Its own files in /proc belong to it again; behind the seal to nobody.
        _check("being nobody", lib.jail_dumpable(True))
        self._enter_user(proc)


def _become(number: int) -> OSError | None:
    # Why root cannot be somebody else, if so.
    for user in (number, _NOBODY):
        try:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            return None
        except OSError as error:
            why = error
    return why


def leave_root(passed_on: int = 0) -> None:
    """A root user becomes one that nobody else is, in no group, unless there is none. No
    capability, but those of ``passed_on`` that there are, a bit each, which what is executed has,
    too; and nothing is gained by that. For who has one thread."""
    _check("dropping capabilities", lib.jail_save_capabilities(passed_on))
    _check("dropping capabilities", lib.jail_empty_bounding_set())
    if os.geteuid() == 0:
        _become(_FIRST_USER + os.getpid())
    _check("dropping capabilities", lib.jail_pass_on_capabilities(passed_on))
    _check("no new privileges", lib.jail_no_new_privileges())


def adopt_orphans(yes: bool) -> None:
    """For the launcher, which is not jailed: whether it becomes the parent of descendants whose
    parent ends, so that they can die with it."""
    _check("adopting orphans", lib.jail_adopt_orphans(yes))


def die_with(parent: int) -> None:
    """From now on this process ends with ``parent``, the pid of its parent in its own namespace;
    Orphaned if that has ended before."""
    _check("dying with the launcher", lib.jail_death_with_parent())
    if os.getppid() != parent:
        raise Orphaned(f"process {parent}, which started this one, is gone")


def die_with_parent(parent: socket.socket) -> None:
    """From now on this process ends with its parent, which holds the other end of ``parent``.
    Orphaned if that is closed. After this no credentials are to change: the kernel would forget."""
    _check("dying with the launcher", lib.jail_death_with_parent())
    # A process that ends closes its descriptors before it signals its children.
    waiting = select.poll()
    waiting.register(parent, select.POLLRDHUP)
    if waiting.poll(0):
        raise Orphaned("the process that started this one is gone")


def give_up_privileges(*, urings: bool = False) -> None:
    """No new privileges and no old ones: capabilities, starting processes, sockets but those of
    Unix, DENIED, outliving a parent with whom it is to die, being looked into. One with ``urings``
    is to make some, before it closes its jail."""
    _check("no new privileges", lib.jail_no_new_privileges())
    keep_capabilities(0)
    # A process made before the filter would not die with the parent, and would stay unsealed.
    calls = numbers(DENIED - _URINGS if urings else DENIED)
    _check("a first filter", lib.jail_deny_early(calls, len(calls)))
    # A core file would hold the guest's memory.
    _check("being looked into", lib.jail_dumpable(False))


def keep_capabilities(kept: int) -> None:
    """No capability but those of ``kept``, a bit each, that there are; and none is to be had."""
    _check("dropping capabilities", lib.jail_empty_bounding_set())
    _check("dropping capabilities", lib.jail_keep_capabilities(kept))


def deny() -> None:
    """Nothing is gained by executing something; DENIED, what starts a process or program, and
    sockets but those of Unix are forbidden: they are told of, and kill. Of this thread, and those
    that it starts; SIGSYS stays with whoever has it before, who is called when a call is told
    of."""
    _check("no new privileges", lib.jail_no_new_privileges())
    calls = numbers(DENIED)
    _check("seccomp", lib.jail_deny(calls, len(calls)))


def limit(limits: Mapping[int, int]) -> None:
    """Each of ``limits`` (resource.RLIMIT_…), unless there is a lower one; for good."""
    for kind, most in limits.items():
        _, hard = resource.getrlimit(kind)
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (least, least))


def numbers(syscalls: Iterable[str]) -> list[int]:
    """Of system calls by name, without those that this processor's Linux has not got; ValueError
    for what is none."""
    found = []
    for name in sorted(syscalls):
        number = lib.jail_resolve(name.encode())
        if number == lib.JAIL_UNKNOWN:
            raise ValueError(f"{name!r} is not a system call")
        if number >= 0:
            found.append(number)
    return found


def unblock_trap(threads: Collection[int]) -> None:
    """Let ``threads``, all others of this process, hear of what they are forbidden."""
    _check("signals of other threads", lib.jail_unblock_trap(list(threads), len(threads)))


def forbid_all_but(
    calls: Collection[int],
    on_violation: OnViolation,
    *,
    ioctls: Collection[int] = (),
    maps_files: bool = False,
    urings: Collection[int] = (),
) -> None:
    """Allow ``calls``, ioctl(2) with one of the numbers in ``ioctls``, and some others with
    conditions (jail.h), in every thread, for ever. One that ``maps_files`` may share them with who
    gives it their descriptors; one with ``urings`` may enter these."""
    lists = (ffi.new("int[]", list(calls)), ffi.new("unsigned long[]", list(ioctls)))
    rings = ffi.new("int[]", list(urings))
    allowed = (lists[0], len(calls), lists[1], len(ioctls), rings, len(urings), maps_files)
    answer = _ON_VIOLATION[on_violation]
    _check("seccomp", lib.jail_filter(ffi.new("struct jail_allowed *", allowed), answer))


def landlock_version() -> int:
    """Of this kernel's Landlock; OSError if it has none."""
    if (version := lib.jail_landlock_version()) <= 0:
        raise OSError(-version, os.strerror(-version))
    return int(version)


def _check(step: str, result: int) -> None:
    if result < 0:
        raise HostError(f"the jail cannot be closed: {step}: {os.strerror(-result)}")


def _write(name: str, text: bytes, proc: int | None) -> None:
    # Below /proc/self, by path or, where that is gone, by descriptor.
    path = name if proc is not None else f"/proc/self/{name}"
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
    try:
        os.write(fd, text)
    finally:
        os.close(fd)
