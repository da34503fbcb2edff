"""Machines from Python: started, watched, paused, broken and stopped by a program.

::

    from launcher.api import VM

    with VM(kernel="vmlinuz", cmdline="console=ttyS0", devices=["rng", "blk,disk.img"]) as vm:
        vm.wait_ready()
        vm.kill("blk0")
        for event in vm.events():
            print(event.kind, event.device)

A machine is a ``vibevmm run`` of its own, spoken to through its control interface; the methods are
the verbs of the command line. Errors are those of protocol.errors: BadInput for what was asked,
HostError for what the host lacks, and launcher.client.Refused for what the machine refuses.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import IO, Any, cast

from devices import kinds
from launcher import device_options, rundir
from launcher.client import DEADLINE, Client, Gone
from launcher.signals import OWNER
from protocol import control as wire
from protocol.control import Description, Event, Lost
from protocol.errors import BadInput, GuestDied, HostError, VibeError
from protocol.messages import MachineStats

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

_MODULE = "launcher"

# Seconds between two looks at whether a machine that starts has died of it.
_LOOK = 0.02
# Bytes of what it said of it (arbitrary: a message, and the last lines of a log).
_MOST_SAID = 64 * 1024

Value = str | int | float | bool | os.PathLike[str]


class VM:
    """A machine, started now with these options of ``vibevmm run``: ``cpus=2`` is ``--cpus 2``,
    ``stats=True`` is ``--stats``, ``devices`` are given to ``--device`` one by one, and any other
    list to the option of its name. ``name`` is made up if there is none.

    It belongs to the program: :meth:`close`, the end of ``with`` or of the program stops it.
    ``stdout`` is where its terminal goes (as with subprocess.Popen); join it with :meth:`attach`.
    """

    def __init__(
        self,
        *,
        name: str | None = None,
        devices: Sequence[str] = (),
        stdout: int | IO[Any] = subprocess.DEVNULL,
        **options: Value | Sequence[Value],
    ) -> None:
        self.name = name or f"vm-{os.urandom(3).hex()}"
        self._client: Client | None = None
        self._following: list[Client] = []
        # What it says on standard error; -1 once nobody will ask.
        self._said = os.memfd_create("vibevmm-said", os.MFD_CLOEXEC)
        self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
            [sys.executable, "-m", _MODULE, "run", "--name", self.name]
            + [f"--device={device}" for device in devices]
            + [word for option, value in options.items() for word in _words(option, value)],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([_ROOT, *filter(None, sys.path)]),
                OWNER: str(os.getpid()),
            },
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=self._said,
            start_new_session=True,
        )

    @classmethod
    def connect(cls, name: str) -> VM:
        """The machine ``name``, which somebody else has started and which runs on after
        :meth:`close`; BadInput if there is none."""
        if name not in rundir.running():
            raise BadInput(repr(name), "no such machine")
        found = cls.__new__(cls)
        found.name, found._process, found._client, found._following = name, None, None, []
        return found

    # ── its life ──────────────────────────────────────────────────────────────────────

    def wait_ready(self, seconds: float = 90.0) -> None:
        """Return when the guest runs. What kept it from doing so is raised: BadInput, HostError,
        GuestDied, with what ``vibevmm run`` said."""
        self._connected(seconds)

    def wait(self, seconds: float | None = None) -> int:
        """The exit status of ``vibevmm run``, when it has ended. Only for a machine started here;
        HostError if it takes longer than ``seconds``."""
        if self._process is None:
            raise HostError(f"machine {self.name!r} was not started here")
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise HostError(f"machine {self.name!r} has not ended in {seconds:g} s") from None

    def stop(self, *, force: bool = False, timeout: float = 30.0) -> str:
        """End it by its power button, by force if it has not gone ``timeout`` seconds later, or at
        once; returns when it is gone, with the reason: a word such as ``power-off``."""
        reason = "gone"
        try:
            request = wire.Shutdown(force, int(timeout * 1e9))
            reason = cast(str, self._connected().ask(request, None).reason)
        except Gone:
            pass
        if self._process is not None:
            self._process.wait()
        elif self._client is not None and not self._client.wait_gone(DEADLINE):
            raise HostError(f"machine {self.name!r} has ended and is not gone yet")
        return reason

    def close(self) -> None:
        """Let go of it: stop one that was started here, by force, and reap it."""
        for client in (*self._following, *filter(None, [self._client])):
            client.close()
        self._following, self._client = [], None
        if self._process is not None:
            if self._process.poll() is None:
                # The second is meant for one that does not end.
                for _ in range(2):
                    self._process.send_signal(signal.SIGTERM)
                    try:
                        self._process.wait(DEADLINE)
                        break
                    except subprocess.TimeoutExpired:
                        continue
                else:
                    self._process.kill()
                    self._process.wait()
            if self._said >= 0:
                os.close(self._said)
                self._said = -1

    def __enter__(self) -> VM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # ── the verbs ─────────────────────────────────────────────────────────────────────

    def describe(self) -> Description:
        """What it is, its processes and its streams: ``vibevmm ps``."""
        return cast(Description, self._connected().ask(wire.Describe()))

    def stats(self) -> MachineStats:
        """Exits and what the devices counted."""
        return cast(MachineStats, self._connected().ask(wire.Measure()))

    def pause(self) -> None:
        """Hold the guest; nothing if it is held."""
        self._connected().ask(wire.Pause())

    def resume(self) -> None:
        """Let it go on; nothing if it is not held."""
        self._connected().ask(wire.Resume())

    def kill(self, device: str) -> int:
        """SIGKILL the process of ``device``; its pid."""
        return cast(int, self._connected().ask(wire.Kill(device)).pid)

    def restart(self, device: str) -> wire.Serving:
        """Put a fresh process of the same device in its place."""
        return cast(wire.Serving, self._connected().ask(wire.Restart(device)))

    def swap(self, device: str, implementation: str = "", **settings: Value) -> wire.Serving:
        """Put another implementation in the place of ``device`` while the guest runs: a kind such
        as ``blk-mapped``, or ``MODULE[:CLASS]``; the same with other options, if it is empty."""
        words = [f"{name}={_as_text(value)}" for name, value in settings.items()]
        request = wire.Swap(
            device, kinds.whole(implementation), ",".join(map(device_options.quoted, words))
        )
        return cast(wire.Serving, self._connected().ask(request))

    def inject(
        self,
        device: str,
        fault: str = "",
        *,
        at: str = "",
        after: int = 0,
        every: int = 0,
        lasts: float = 0,
        seed: int | None = None,
        delay: float = 0.01,
    ) -> tuple[wire.ArmedFault, ...]:
        """Arm ``fault``, a key of protocol.faults.FAULTS, for a machine started with
        ``allow_inject=True``, at a point of its table; ``none`` takes all back, and nothing changes
        nothing. What is armed. Times are in seconds; ``lasts=0`` has no end."""
        request = wire.Inject(
            device, fault, at, after, every, int(lasts * 1e9), seed, int(delay * 1e9)
        )
        return cast(wire.Armed, self._connected().ask(request)).faults

    def link(self, device: str, *, up: bool) -> None:
        """Take the link of network interface ``device`` up, or down."""
        self._connected().ask(wire.SetLink(device, up))

    def attach(self, stream: str = "serial") -> socket.socket:
        """A connection to one of its streams, the caller's to close: what the guest writes is
        received from it, and what is sent is typed."""
        path = self._connected().ask(wire.Attach(stream)).path
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(path)
        except OSError as error:
            connection.close()
            raise HostError(f"{path}: {error.strerror}") from error
        return connection

    def events(self, follow: bool = True) -> Iterator[Event | Lost]:
        """What happened so far; with ``follow``, what happens until the machine is gone. On a
        connection of its own, so that the other methods may be called meanwhile."""
        self._connected()
        client = Client(self.name)
        self._following.append(client)
        return client.events(follow)

    # ── ───────────────────────────────────────────────────────────────────────────────

    def _connected(self, seconds: float = DEADLINE) -> Client:
        if self._client is not None:
            return self._client
        until = time.monotonic() + seconds
        # Not there yet, it is being started.
        while self._process is not None and not rundir.lives(self.name):
            if self._process.poll() is not None:
                raise self._why()
            if time.monotonic() >= until:
                raise HostError(f"machine {self.name!r} does not start")
            time.sleep(_LOOK)
        self._client = self._met(max(0.0, until - time.monotonic()))
        if self._client is None:
            assert self._process is not None
            self._process.wait()
            raise self._why()
        return self._client

    def _met(self, seconds: float) -> Client | None:
        # None: it has ended, or somebody else's has the name, for which reason ours is ending.
        if self._process is None:
            return Client(self.name, seconds)
        with contextlib.suppress(Gone), contextlib.ExitStack() as undo:
            client = undo.enter_context(Client(self.name, seconds))
            if client.ask(wire.Describe()).pid == self._process.pid:
                undo.pop_all()
                return client
        return None

    def _why(self) -> VibeError:
        # A machine that ended well before anybody spoke to it is gone, too.
        assert self._process is not None
        status = self._process.returncode
        if self._said < 0:
            return Gone(f"machine {self.name!r} is gone")
        said = os.pread(self._said, _MOST_SAID, 0).decode(errors="replace").strip()
        text = said.removeprefix("vibevmm: ") or f"ended with status {status}"
        if status == 0:
            return Gone(f"machine {self.name!r} is gone: {text}")
        if status == 1:
            return GuestDied(text)
        if status == 2:
            where, _, why = text.partition(": ")
            return BadInput(where, why)
        return HostError(text)


def _as_text(value: Value) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)


def _words(option: str, value: Value | Sequence[Value]) -> list[str]:
    # One option as words of the command line; False is an option that is not given.
    name = f"--{option.replace('_', '-')}"
    if isinstance(value, bool):
        return [name] if value else []
    if isinstance(value, str | int | float | os.PathLike):
        return [f"{name}={os.fspath(value) if isinstance(value, os.PathLike) else value}"]
    return [word for item in value for word in _words(option, item)]
