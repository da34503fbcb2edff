"""Child processes: started with nothing but what they need, watched, and always reaped."""

from __future__ import annotations

import contextlib
import os
import resource  # os.wait4 imports it, which must not be when no descriptor is left
import signal
import socket
import sys
import time

from protocol import fds
from protocol.errors import HostError
from protocol.jail.cgroup import Group

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# What a child may know of the user's environment: how to show text and time, where libraries
# are, whether Python may write compiled files.
_KEPT = (
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "LD_LIBRARY_PATH",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONPYCACHEPREFIX",
)

# Seconds that a process has to be dead from when its sockets are closed (arbitrary: the kernel does
# little in between).
_DYING = 0.1

# The child's descriptors: standard input, output and error, then its handover socket.
_HANDOVER = 3


class Cord:
    """What joins the launcher and a child that is about to be: a handover socket and a log.

    ``handover`` and ``log`` are ours, the log's reading end; ``their_handover`` and ``their_log``
    are the child's, until :meth:`cut`.
    """

    def __init__(self) -> None:
        self.handover, self.their_handover = fds.handover_pair()
        try:
            self.log, self.their_log = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            self.handover.close()
            self.their_handover.close()
            raise
        # Only our end is non-blocking: the child's output must not get lost when we are slow.
        os.set_blocking(self.their_log, True)

    def cut(self) -> None:
        """Close the child's ends here: it has them now, or will never be."""
        self.their_handover.close()
        os.close(self.their_log)

    def close(self) -> None:
        """Close our ends."""
        self.handover.close()
        os.close(self.log)


class Child:
    """Process ``pid``, a child of ours, at the other end of ``cord``, whose ends of ours it owns.

    It hears of everything else over ``handover``; ``log`` is the reading end of its standard
    output and error. ``status`` is, once it has been reaped, what wait4 said as an exit code:
    negative for a signal; ``usage`` what it used, and ``why_killed`` what its cgroup, its own as
    well, says of that. ``is_free``: it is not to be jailed.
    """

    group: Group | None = None
    is_free = False
    why_killed = ""

    def __init__(self, name: str, pid: int, cord: Cord) -> None:
        self.name = name
        self.pid = pid
        self.handover = cord.handover
        self.log = cord.log
        self.status: int | None = None
        self.usage: resource.struct_rusage | None = None
        try:
            # It cannot be another process's: nobody but us reaps our children.
            self.pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise

    def kill(self) -> None:
        """SIGKILL, if it still lives."""
        if self.status is None:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def dismiss(self, why: str, status: int) -> None:
        """It is not wanted, for a reason that it has no use for: :meth:`kill`."""
        self.kill()

    def hang_up(self) -> None:
        """Tell it that nothing more will come."""
        with contextlib.suppress(OSError):  # it has hung up itself
            self.handover.shutdown(socket.SHUT_RDWR)

    def reap(self) -> bool:
        """Whether it is dead; if so its status is known from now on."""
        if self.status is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
                self.usage = usage
                if self.group is not None and self.status == -signal.SIGKILL:
                    self.why_killed = self.group.why_killed()
        return self.status is not None

    @property
    def is_dying(self) -> bool:
        """Whether it is dead, or is in a moment: its sockets are closed before that."""
        return self.status is not None or fds.has_ended(self.pidfd, _DYING)

    @property
    def can_run(self) -> bool:
        """Whether it is neither dead nor stopped, by SIGSTOP say, until somebody continues it."""
        if self.status is not None:
            return False
        how = os.WSTOPPED | os.WNOHANG | os.WNOWAIT
        try:
            return os.waitid(os.P_PIDFD, self.pidfd, how) is None
        except ChildProcessError:  # it is dead, so nothing is left to wait for but that
            return False

    def kill_and_reap(self) -> None:
        """Kill it if it lives, and wait until it is gone."""
        self.kill()
        while not self.reap():
            time.sleep(0.001)  # SIGKILL takes 0.6 to 74 ms

    def close(self) -> None:
        """End it if it lives, and close what we have of it, once."""
        self.kill_and_reap()
        if self.pidfd >= 0:
            self.handover.close()
            os.close(self.log)
            os.close(self.pidfd)
            self.pidfd = -1
            if self.group is not None:
                self.group.remove()

    def how_it_ended(self) -> str:
        """In words: ``exited with status 1``, ``was killed by SIGSYS``."""
        if self.status is None:
            return "is alive"
        if self.status >= 0:
            return f"exited with status {self.status}"
        try:
            word = signal.Signals(-self.status).name
        except ValueError:
            word = f"signal {-self.status}"
        return f"was killed by {word}" + (f": {self.why_killed}" if self.why_killed else "")


def start(name: str, module: str) -> Child:
    """A child in an interpreter of its own, which runs ``module``; HostError if it cannot be."""
    try:
        cord = Cord()
        with contextlib.ExitStack() as undo:
            undo.callback(cord.close)
            try:
                pid = _spawn(module, cord)
            finally:
                cord.cut()
            child = Child(name, pid, cord)
            undo.pop_all()
    except OSError as error:
        raise HostError(f"cannot start {sys.executable}: {error.strerror}") from error
    return child


def keep_descriptors() -> None:
    """Make close-on-exec what we inherited ourselves, beyond standard input, output and error.

    What Python opens is so from birth; a descriptor that a shell or a service manager let slip
    to us would go on to every child.
    """
    for name in os.listdir("/proc/self/fd"):
        if (fd := int(name)) > 2:
            with contextlib.suppress(OSError):  # the one that listed them
                os.set_inheritable(fd, False)


def _spawn(module: str, cord: Cord) -> int:
    # -S and -s: no site module, which would run what .pth files say; the path that it would have
    # made comes from us. -P: the current directory is no place to import from.
    argv = [sys.executable, "-P", "-s", "-S", "-m", module, str(_HANDOVER)]
    return os.posix_spawn(
        sys.executable,
        argv,
        _environment(),
        # Everything else is close-on-exec. The order matters only if a source is below 4, which
        # cli.main sees to: 0, 1 and 2 are always open.
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, cord.their_log, 1),
            (os.POSIX_SPAWN_DUP2, cord.their_log, 2),
            (os.POSIX_SPAWN_DUP2, cord.their_handover.fileno(), _HANDOVER),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
    )


def _environment() -> dict[str, str]:
    # A child imports from where we do, in the same order, from whatever directory it runs.
    places = [path for path in sys.path if path and os.path.isabs(path)]
    if _ROOT not in places:
        places.insert(0, _ROOT)
    kept = {key: os.environ[key] for key in _KEPT if key in os.environ}
    return {**kept, "PYTHONPATH": os.pathsep.join(places)}
