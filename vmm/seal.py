"""The jail of the VMM, closed before it listens to anybody.

It is trusted with the guest's memory, and handed open what it needs. What it is left with:

===============  ===========================================================================
files            to read what Python imports, and KVM; to make and remove its sockets, and what
                 it removes for a launcher that was killed
system calls     all but those that nobody needs here: they kill, so that what has taken the VMM
                 over starts no program and no process, and looks into none
network          none, nor the host's name and queues
capabilities     root's: to kill devices, which have users of their own
===============  ===========================================================================

Namespaces and Landlock (:func:`parts`) are left out where the host lacks them, which is told.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import resource
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress

from protocol import jail
from protocol.errors import HostError
from protocol.specs import Part
from vmm.hypervisor.detect import KVM

_log = logging.getLogger(__name__)

# What vmm.hypervisor.detect looks at.
_ABOUT_KVM = ("/proc/cpuinfo", "/sys/module")

# <linux/capability.h>: CAP_KILL.
_KILL = 1 << 5


def parts() -> frozenset[Part]:
    """Of protocol.specs.PARTS, those that hold a VMM of this user's. Root's stays root."""
    mine: frozenset[Part] = frozenset({"net", "ipc", "uts", "landlock"})
    return mine if os.geteuid() == 0 else mine | {"user"}


def enter(cleanup: Iterable[str], directory: str, *, strict: bool = False) -> jail.Cell:
    """Close it around this process, which must have one thread: it makes sockets in
    ``directory``, and may have to remove ``cleanup``. What it is in; HostError, also where
    a part is lacking and ``strict``."""
    cell = jail.Cell()
    cell.leave_host()
    jail.keep_capabilities(_KILL if os.geteuid() == 0 and "user" not in cell.holds else 0)
    jail.limit({resource.RLIMIT_CORE: 0})
    # Python's own dump of its stack, which jail calls when a call is told of.
    faulthandler.register(signal.SIGSYS, all_threads=False)
    jail.deny()
    with ExitStack() as opened:
        cell.restrict(_rights(opened, cleanup, directory), alone=False)
    for part, why in cell.lacks.items():
        _log.info("jailed without %s: %s", part, why)
    if cell.lacks and strict:
        raise HostError(f"the jail is to be whole, and lacks {', '.join(cell.lacks)}")
    return cell


def _rights(opened: ExitStack, cleanup: Iterable[str], directory: str) -> Iterator[tuple[int, int]]:
    wanted = [(path, jail.READ) for path in sys.path if os.path.isabs(path)]
    for path in cleanup:
        removed = jail.REMOVE_DIRECTORY if os.path.isdir(path) else jail.REMOVE_FILE
        wanted.append((os.path.dirname(path), removed))
    wanted.append((directory, jail.READ | jail.REMOVE_FILE | jail.MAKE_SOCKET))
    wanted += [(KVM, jail.READ | jail.WRITE), *((path, jail.READ) for path in _ABOUT_KVM)]
    for path, rights in wanted:
        with suppress(OSError):  # nothing is there, and nothing may be done there
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            opened.callback(os.close, fd)
            yield fd, rights
