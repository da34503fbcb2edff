"""Cgroups (version 2): what the processes of a machine may use, held from outside.

A process cannot be trusted to limit itself, and what it makes the kernel take for it (page tables,
socket buffers, pages of a file) is no matter of its rlimits. So its launcher makes a group for it::

    base                    what was delegated to us, or, of root, the hierarchy's own root
      vibevmm-NAME-PID/     the machine's; PID is its launcher's
        home/               launcher, VMM and zygote, where base is the group that we were in
        4711/               a jailed device process, by its pid; or an uplink, with its passt

A group has controllers below it, or processes in it, and not both (the root excepted): that is why
the launcher, where it has but its own group, goes one further down, and comes back at the end.

A group is a directory, and is removed when no process is in it: by the launcher, and if that is
killed by the zygote (devices.runtime.zygote), which is told of it by a
:class:`protocol.specs.Groups`. Groups that both have left behind, the next launcher finds.

The rules are those of the kernel's Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from protocol.errors import HostError
from protocol.specs import Groups

CONTROLLERS: Final = ("cpu", "memory", "pids")
"""What a process is limited by, in the kernel's names."""

_PREFIX, _HOME = "vibevmm-", "home"

# Files of every group.
_PROCESSES, _BELOW = "cgroup.procs", "cgroup.subtree_control"

# Seconds that processes have to end which are about to (arbitrary: they have been signalled).
_PATIENCE, _LOOK = 5.0, 0.002


class Files:
    """What is done to the files and directories that groups are, by paths. OSError."""

    def read(self, path: str) -> str:
        """What a file says."""
        with open(path, encoding="ascii") as file:
            return file.read()

    def write(self, path: str, text: str) -> None:
        """Write it to a file that there is, at once."""
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    def make(self, path: str) -> None:
        """Make a group."""
        os.mkdir(path)

    def remove(self, path: str) -> None:
        """Remove a group, in which there is nothing."""
        os.rmdir(path)

    def below(self, path: str) -> list[str]:
        """The names of the groups in one."""
        return [entry.name for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)]


class Tree(Files):
    """The hierarchy as this process sees it: its ``root``, and ``own``, the group that the process
    is in; both paths. HostError if there is none."""

    def __init__(self) -> None:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            found = [line.split() for line in mounts if " - cgroup2 " in line]
        if not found:
            raise HostError("no cgroup2 is mounted")
        within, self.root = found[0][3:5]  # proc(5): which part of it is mounted, and where
        with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as groups:
            (own,) = (line.rstrip("\n")[3:] for line in groups if line.startswith("0::"))
        below = os.path.relpath(own, within)
        if below.startswith(".."):
            raise HostError(f"cgroup {own} is not below {self.root}")
        self.own = os.path.normpath(os.path.join(self.root, below))


class Group:
    """The group at ``path`` in ``tree``, of one process only. It ``is_whole`` if it has all of
    CONTROLLERS."""

    def __init__(self, tree: Files, path: str, *, is_whole: bool) -> None:
        self._tree = tree
        self.path = path
        self.is_whole = is_whole

    def limit(self, limits: Mapping[str, str]) -> None:
        """Write each of ``limits``, by the names of files. What this kernel has no file for stays
        as it is, and is the host's to lack. OSError."""
        for name, value in limits.items():
            with contextlib.suppress(FileNotFoundError):
                self._tree.write(f"{self.path}/{name}", value)

    def put(self, pid: int) -> None:
        """Move process ``pid``, with all its threads, here. OSError."""
        self._tree.write(f"{self.path}/{_PROCESSES}", str(pid))

    def why_killed(self) -> str:
        """What the kernel has killed its process for, to follow a colon; empty: it did not."""
        try:
            words = self._tree.read(f"{self.path}/memory.events").split()
            events = dict(zip(words[::2], map(int, words[1::2]), strict=True))
            if not events["oom_kill"]:
                return ""
            if events["oom"]:  # those of this group, not of one above it
                return f"memory limit, {int(self._tree.read(f'{self.path}/memory.max')) >> 20} MiB"
        except (OSError, KeyError, ValueError):  # no such controller; no limit yet
            return ""
        return "out of memory"

    def remove(self) -> None:
        """Its process is dead, and reaped."""
        with contextlib.suppress(OSError):  # else it goes with the machine's
            self._tree.remove(self.path)


class Machine:
    """The groups of machine ``name``, whose launcher this process is. Its children go with it.
    HostError if there can be none, and then nothing has changed.

    ``lacks`` says which controllers there are not, empty: none.
    """

    def __init__(self, name: str, tree: Tree) -> None:
        self._tree = tree
        self._is_closed = False
        reasons = []
        for base in _bases(tree):
            try:
                self.groups = _make(tree, base, name)
                break
            except OSError as error:
                reasons.append(f"{base}: {error.strerror}")
        else:
            raise HostError("; ".join(reasons))
        missing = [each for each in CONTROLLERS if each not in self._controllers()]
        self.lacks = f"no {' and '.join(missing)} controller" if missing else ""

    def _controllers(self) -> list[str]:
        return self._tree.read(f"{self.groups.machine}/{_BELOW}").split()

    def enclose(self, pid: int, limits: Mapping[str, str]) -> Group:
        """A group with ``limits`` (:meth:`Group.limit`), and process ``pid`` in it. OSError."""
        group = Group(self._tree, f"{self.groups.machine}/{pid}", is_whole=not self.lacks)
        self._tree.make(group.path)
        try:
            group.limit(limits)
            # The first in a while takes 12 ms: the kernel waits for every processor.
            group.put(pid)
        except OSError:
            group.remove()
            raise
        return group

    def close(self) -> None:
        """Remove them, once. The devices are dead."""
        if not self._is_closed:
            self._is_closed = True
            remove(self._tree, self.groups)


def why_not(tree: Tree | None = None) -> str:
    """Why a machine of this process would have no groups, or not all of them; empty: it would.
    Tried, and taken back."""
    try:
        machine = Machine("probe", tree or Tree())
    except HostError as error:
        return str(error)
    machine.close()
    return machine.lacks


def remove(tree: Files, groups: Groups, patience: float = _PATIENCE) -> None:
    """Remove ``groups``, once whoever is in ``home`` is back where they were made. The devices
    are dead, or will be within ``patience`` seconds; what is still busy then stays."""
    deadline = time.monotonic() + patience
    base, machine = groups.base, groups.machine
    with contextlib.suppress(OSError):  # it is gone
        for name in tree.below(machine):
            if not (groups.home and name == _HOME):
                _remove(tree, f"{machine}/{name}", deadline)
        _enable(tree, machine, tree.read(f"{machine}/{_BELOW}").split(), yes=False)
    with contextlib.suppress(OSError):  # another machine needs them by now
        _enable(tree, base, groups.enabled, yes=False)
    if groups.home:
        with contextlib.suppress(OSError):
            for pid in tree.read(f"{machine}/{_HOME}/{_PROCESSES}").split():
                with contextlib.suppress(ProcessLookupError):  # it has ended
                    tree.write(f"{base}/{_PROCESSES}", pid)
        _remove(tree, f"{machine}/{_HOME}", deadline)
    _remove(tree, machine, deadline)


def _bases(tree: Tree) -> list[str]:
    # Its own group, where it is alone there: an ordinary user's was delegated, or cannot be
    # written to; whoever is root may also begin at the top.
    return list(dict.fromkeys([tree.own, tree.root] if os.geteuid() == 0 else [tree.own]))


def _make(tree: Tree, base: str, name: str) -> Groups:
    _sweep(tree, base)
    available = tree.read(f"{base}/cgroup.controllers").split()
    wanted = [each for each in CONTROLLERS if each in available]
    if not wanted:
        raise OSError(errno.ENOTSUP, f"no {', '.join(CONTROLLERS)} controller")
    enabled = tree.read(f"{base}/{_BELOW}").split()
    missing = tuple(each for each in wanted if each not in enabled)
    pid = os.getpid()
    machine = f"{base}/{_PREFIX}{name}-{pid}"
    tree.make(machine)
    groups = Groups(base, machine, missing)
    try:
        if _is_bound(tree, base) and (found := tree.read(f"{base}/{_PROCESSES}").split()):
            if not {int(each) for each in found} <= {pid, *_children()}:
                raise OSError(errno.EBUSY, "other processes are in it")
            groups = replace(groups, home=True)
            tree.make(f"{machine}/{_HOME}")
            for each in found:
                with contextlib.suppress(ProcessLookupError):  # a child that has ended
                    tree.write(f"{machine}/{_HOME}/{_PROCESSES}", each)
        _enable(tree, base, missing)
        _enable(tree, machine, wanted)
    except OSError:
        remove(tree, groups, patience=0)
        raise
    return groups


def _children() -> list[int]:
    # Of this process: somebody who watches over it (launcher.guardian).
    try:
        text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    except OSError:
        return []
    return [int(pid) for pid in text.split()]


def _is_bound(tree: Tree, group: str) -> bool:
    # Whether it may have controllers below it, or processes, and not both: all but the real root,
    # which is known by what it lacks. What a container takes for the root has that.
    try:
        return bool(tree.read(f"{group}/cgroup.type"))
    except FileNotFoundError:
        return False


def _enable(tree: Files, group: str, controllers: Sequence[str], *, yes: bool = True) -> None:
    # Below that group.
    if controllers:
        signed = (("+" if yes else "-") + each for each in controllers)
        tree.write(f"{group}/{_BELOW}", " ".join(signed))


def _sweep(tree: Tree, base: str) -> None:
    # Of machines whose launcher and VMM were both killed.
    for name in tree.below(base):
        pid = name.rpartition("-")[2]
        if name.startswith(_PREFIX) and pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            remove(tree, Groups(base, f"{base}/{name}"), patience=0)


def _remove(tree: Files, path: str, deadline: float) -> None:
    with contextlib.suppress(OSError):
        while True:
            try:
                tree.remove(path)
                break
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() >= deadline:
                    raise
            time.sleep(_LOOK)
