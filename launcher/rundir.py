"""The run directory: where one machine's sockets are while it runs; nobody else can enter it.

One directory a machine, in one that belongs to the user::

    $XDG_RUNTIME_DIR/vibevmm/NAME/      or /run/vibevmm/NAME for root, /tmp/vibevmm-UID/NAME

It is locked by its launcher for as long as that lives, and removed by its VMM if it is killed, or
until there is one by a guardian (launcher.guardian). A directory without a lock was left behind by
both being killed; the next start removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from types import TracebackType

from launcher import guardian
from protocol.errors import BadInput, HostError

# A Unix socket's path has 108 bytes with the NUL (unix(7)); a device's socket is named after it,
# 31 characters at most, and its generation.
_LONGEST = 107 - len("/" + "d" * 31 + ".4294967295")


CONTROL = "control"
"""The socket, in a run directory, of the machine's control interface."""

DOOR = "door"
"""That of processes which want to be its devices (launcher.door)."""


class RunDirectory:
    """A fresh directory, mode 0700, for machine ``name``; removed by :meth:`close`.

    BadInput if another machine of this user has the name. Without a name a free one is made up.
    """

    def __init__(self, name: str | None, base: str | None = None) -> None:
        self._is_removed = False
        base = base or base_directory()
        _own_directory(base)
        with ExitStack() as guarded:
            guarded.enter_context(guardian.watched(partial(_tidy, base)))
            self._make(base, name)
            self._guarded = guarded.pop_all()

    def _make(self, base: str, name: str | None) -> None:
        base_lock = _lock(base, fcntl.LOCK_EX)
        try:
            _remove_stale(base)
            self.name = name or f"vm-{os.urandom(3).hex()}"
            self.path = os.path.join(base, self.name)
            if len(os.fsencode(self.path)) > _LONGEST:
                raise HostError(
                    f"{self.path} is too long for the paths of sockets; "
                    "choose a shorter --name or XDG_RUNTIME_DIR"
                )
            try:
                os.mkdir(self.path, 0o700)
            except FileExistsError:
                raise BadInput("--name", f"a machine named {self.name!r} is running") from None
            except OSError as error:
                raise HostError(f"cannot make {self.path}: {error.strerror}") from error
            # Locked before anybody else can look: they would need the lock of the base.
            try:
                self._fd = _lock(self.path)
            except OSError:
                os.rmdir(self.path)
                raise
        finally:
            os.close(base_lock)

    def leave_to_another(self) -> None:
        """Who removes it should this process be killed is from now on another one."""
        self._guarded.close()

    def remove(self) -> None:
        """Remove the directory with all that is in it, once."""
        if not self._is_removed:
            self._is_removed = True  # from now on the name may be another machine's
            _remove(self.path)

    def close(self) -> None:
        """Remove it, and let the lock go."""
        self.remove()
        os.close(self._fd)
        self._guarded.close()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def base_directory() -> str:
    """The directory of all machines of this user; BadInput if XDG_RUNTIME_DIR is no text."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    try:
        runtime.encode()
    except UnicodeEncodeError:
        raise BadInput("XDG_RUNTIME_DIR", f"{os.fsencode(runtime)!r} is not UTF-8") from None
    if os.path.isabs(runtime) and os.access(runtime, os.W_OK | os.X_OK):
        return os.path.join(runtime, "vibevmm")
    if os.geteuid() == 0:
        return "/run/vibevmm"
    return f"/tmp/vibevmm-{os.geteuid()}"


def _own_directory(path: str) -> None:
    # In /tmp somebody else may have been first: with a directory, or with a link to one of ours.
    try:
        os.makedirs(path, 0o700, exist_ok=True)
        found = os.lstat(path)
    except OSError as error:
        raise HostError(f"cannot make {path}: {error.strerror}; set XDG_RUNTIME_DIR") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise HostError(
            f"{path} is not a directory that only its owner, you, can enter; "
            "remove it, or set XDG_RUNTIME_DIR"
        )


def running() -> list[str]:
    """The names of this user's machines, starting ones among them, in order."""
    base = base_directory()
    with _shared(base) as is_there:
        if not is_there:
            return []
        names = [entry.name for entry in os.scandir(base)]
        return sorted(name for name in names if _is_locked(os.path.join(base, name)))


def lives(name: str) -> bool:
    """Whether there is a machine ``name``."""
    base = base_directory()
    with _shared(base) as is_there:
        return is_there and _is_locked(os.path.join(base, name))


def path_of(name: str) -> str:
    """The run directory of machine ``name``, if it has one."""
    return os.path.join(base_directory(), name)


@contextlib.contextmanager
def _shared(base: str) -> Iterator[bool]:
    # A start locks the base: nobody has made a directory and not locked it yet, nor will anybody
    # take our look at a lock for somebody's. False: there is no base, and so no machine.
    try:
        fd = _lock(base, fcntl.LOCK_SH)
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        os.close(fd)


def _is_locked(path: str) -> bool:
    try:
        os.close(_lock(path, fcntl.LOCK_SH | fcntl.LOCK_NB))
    except BlockingIOError:
        return True
    except OSError:
        pass  # gone meanwhile, or no directory of ours
    return False


def _lock(path: str, how: int = fcntl.LOCK_EX | fcntl.LOCK_NB) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, how)
    except OSError:
        os.close(fd)
        raise
    return fd


def _tidy(base: str) -> None:
    # What the next start would do, to any directory without a lock.
    with contextlib.suppress(OSError):
        base_lock = _lock(base, fcntl.LOCK_EX)
        _remove_stale(base)
        os.close(base_lock)


def _remove_stale(base: str) -> None:
    for entry in os.scandir(base):
        try:
            fd = _lock(entry.path)
        except OSError:
            continue  # a launcher has it, or it is no directory of ours
        _remove(entry.path)
        os.close(fd)


def _remove(path: str) -> None:
    import shutil  # the start of a machine does not wait for it

    shutil.rmtree(path, ignore_errors=True)
