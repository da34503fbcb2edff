"""Cgroups as the kernel has them (Documentation/admin-guide/cgroup-v2.rst), as far as its rules
matter to who makes some."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path

from protocol.jail.cgroup import Tree

ROOT = "/cgroups"

_FILES = {
    "cpu": ("cpu.max",),
    "memory": ("memory.max", "memory.swap.max", "memory.oom.group", "memory.events"),
    "pids": ("pids.max",),
}


@dataclass
class _Node:
    processes: set[str] = field(default_factory=set)
    below: set[str] = field(default_factory=set)
    files: dict[str, str] = field(default_factory=dict)


class Cgroups(Tree):
    """A hierarchy with ``controllers``, in which this process is in ``own``, with ``others``.
    ``real``: its root is the kernel's own, and no container's. ``writes`` are all that were made
    and did not fail: of limits, processes and controllers, by their paths. A group is empty if the
    processes that were written to it are dead."""

    def __init__(
        self,
        *controllers: str,
        own: str = ROOT,
        others: tuple[str, ...] = (),
        real: bool = True,
    ) -> None:
        self.root = ROOT
        self.own = own
        self.writes: list[tuple[str, str]] = []
        self.forbidden: set[str] = set()
        """Groups that are another user's."""
        self.busy: set[str] = set()
        """Groups in which a process is dying, and is dead when somebody looks again."""
        self._controllers = set(controllers)
        self._real = real
        self._nodes = {ROOT: _Node()}
        if own != ROOT:
            self._nodes[ROOT].below = set(controllers)
            self._nodes[own] = _Node()
        self._nodes[own].processes |= {str(os.getpid()), *others}

    def groups(self) -> list[str]:
        """The paths of all, but the root and who was there at first."""
        return sorted(set(self._nodes) - {ROOT, self.own})

    def processes(self, path: str) -> set[str]:
        """Those in a group."""
        return self._nodes[path].processes

    def controllers(self, path: str) -> set[str]:
        """Those that are to be had below a group."""
        return self._nodes[path].below

    def set(self, path: str, text: str) -> None:
        """What the kernel says in a file."""
        group, _, name = path.rpartition("/")
        self._nodes[group].files[name] = text

    def add(self, path: str) -> None:
        """Somebody has made a group."""
        self._nodes[path] = _Node()

    def read(self, path: str) -> str:
        """A file."""
        group, _, name = path.rpartition("/")
        node = self._node(group)
        match name:
            case "cgroup.controllers":
                return " ".join(sorted(self._available(group))) + "\n"
            case "cgroup.subtree_control":
                return " ".join(sorted(node.below)) + "\n"
            case "cgroup.procs":
                return "".join(f"{pid}\n" for pid in sorted(node.processes))
            case "cgroup.type" if not self._is_real_root(group):
                return "domain\n"
        if name not in self._names(group):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        return node.files.get(name, "max\n")

    def write(self, path: str, text: str) -> None:
        """To a file."""
        group, _, name = path.rpartition("/")
        node = self._node(group)
        self._check_writable(group)
        if name == "cgroup.procs":
            if node.below and not self._is_real_root(group):
                raise OSError(errno.EBUSY, "Device or resource busy")
            pid = str(os.getpid()) if text == "0" else text
            for other in self._nodes.values():
                other.processes.discard(pid)
            node.processes.add(pid)
        elif name == "cgroup.subtree_control":
            self._switch(group, node, text.split())
        elif name in self._names(group):
            node.files[name] = text
        else:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        self.writes.append((path, text))

    def _switch(self, group: str, node: _Node, words: list[str]) -> None:
        children = [child for path, child in self._nodes.items() if str(Path(path).parent) == group]
        for word in words:
            sign, name = word[0], word[1:]
            if sign == "+":
                if name not in self._available(group):
                    raise FileNotFoundError(errno.ENOENT, "No such file or directory")
                if node.processes and not self._is_real_root(group):
                    raise OSError(errno.EBUSY, "Device or resource busy")
            elif any(name in child.below for child in children):
                raise OSError(errno.EBUSY, "Device or resource busy")
        for word in words:
            (node.below.add if word[0] == "+" else node.below.discard)(word[1:])

    def make(self, path: str) -> None:
        """A group."""
        parent = str(Path(path).parent)
        self._node(parent)
        self._check_writable(parent)
        if path in self._nodes:
            raise FileExistsError(errno.EEXIST, "File exists", path)
        self._nodes[path] = _Node()

    def remove(self, path: str) -> None:
        """One that is empty."""
        node = self._node(path)
        if path in self.busy:
            self.busy.remove(path)
            raise OSError(errno.EBUSY, "Device or resource busy")
        if any(os.path.exists(f"/proc/{pid}") for pid in node.processes) or self.below(path):
            raise OSError(errno.EBUSY, "Device or resource busy")
        del self._nodes[path]

    def below(self, path: str) -> list[str]:
        """The names of the groups in one."""
        self._node(path)
        return [Path(other).name for other in self._nodes if str(Path(other).parent) == path]

    def _node(self, path: str) -> _Node:
        if path not in self._nodes:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        return self._nodes[path]

    def _check_writable(self, path: str) -> None:
        if path in self.forbidden:
            raise PermissionError(errno.EACCES, "Permission denied", path)

    def _is_real_root(self, path: str) -> bool:
        return path == ROOT and self._real

    def _available(self, path: str) -> set[str]:
        return self._controllers if path == ROOT else self._nodes[str(Path(path).parent)].below

    def _names(self, path: str) -> set[str]:
        names = {name for each in self._available(path) for name in _FILES[each]}
        return set() if path == ROOT else names
