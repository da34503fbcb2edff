"""``vibevmm device run --vhost-user``: a device for front-ends that are none of ours.

This process never reads what a front-end sends. It listens, has a process forked and jailed for
each connection, as a machine has for its devices, and hands it over, with all that the device
opened and a fresh journal. One front-end is served at a time; the next one waits for it to go::

    front-end ──connects──► here ──handover: connection, journal, image──► device, sealed
        ▲                    ▲                                               │
        │                    └──── "send this, and the journal" ─────────────┤
        └───────── vhost-user ───────────────────────────────────────────────┘

A front-end that has hung up is heard of here, too: a device that does not notice is killed.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from devices import kinds
from devices.runtime.device import AnyDevice
from devices.runtime.vhost_user import LARGEST_QUEUE
from launcher import device_options, model, streams
from launcher.family import Family
from launcher.host import Host, Streams
from launcher.locks import Locks
from launcher.logs import Logs, harmless
from launcher.loop import Loop
from launcher.networks import Networks, Uplinks
from launcher.nursery import ZYGOTE, Nursery
from launcher.output import Output
from launcher.run import MESSAGES, ZYGOTE_MODULE
from launcher.signals import ALL, Interrupted, Signals
from launcher.spawn import Child, keep_descriptors
from protocol import codec, fds, jail, journal
from protocol.config_space import Written
from protocol.errors import BadInput
from protocol.log import Level
from protocol.memory import create_memfd
from protocol.specs import JAIL, DeviceSpec, Isolation, OnViolation

OPTION = "--vhost-user"

# Seconds for what a device has begun, once its front-end is gone (arbitrary).
_FAREWELL = 5.0

_MAX_MESSAGE = 4096

# What a device may be told only in a machine.
_OF_MACHINES = ("on-death", "on_death", "process")


@dataclass(frozen=True, slots=True)
class Served:
    """A device that is to be served: what it is, and what it has opened. ``name`` is also what
    its processes are called."""

    name: str
    kind: str
    device: type[AnyDevice]
    config: Any
    isolation: Isolation
    on_violation: OnViolation
    opened: Mapping[str, int]


def run(command: str, implementation: str, path: str, given: str) -> int:
    """Serve ``implementation``, with the options ``given`` to ``command``, at the socket ``path``
    until a signal says so; the exit status. VibeError."""
    kind, device = kinds.whole(implementation), kinds.find(implementation, command)
    request = device_options.Request(command, kind, device_options.parse_settings(command, given))
    common, config = device_options.configure(request, device.config_type)
    for key, _ in request.settings:
        if key in _OF_MACHINES:
            raise BadInput(f"{command}: {key}", "has no meaning here: there is no machine")
    isolation = common.isolation or JAIL
    if isolation.level == "bounce":
        raise BadInput(
            f"{command}: isolation", "bounce is not to be had: memory is the front-end's"
        )
    name = common.name or kinds.label(kind, device)
    loop = Loop()
    with Signals(loop, ALL) as coming, contextlib.ExitStack() as resources:
        listener = _listen(path, resources)
        leading = Streams()
        resources.callback(leading.close)
        locks = _locks(resources)
        opened = _open(command, device, config, Host(name, leading, locks))
        resources.callback(fds.close_all, opened.values())
        if leading.terminal:
            raise BadInput(f"{command}: backend", "a terminal is not to be had here; pty or socket")
        for bridge in leading.bridges:
            bridge.connect(loop)
        served = Served(name, kind, device, config, isolation, common.on_violation, opened)
        try:
            coming.check()
            server = _Server(served, listener, loop, resources)
            if leading.networks is not None:
                server.connect(leading.networks)
            coming.on_signal = server.on_signal
            locks.name(name, command)
            locks.settle(name)
            for text in leading.announcements:
                _say(text)
            _say(f"{name} waits for a front-end at {path}; Ctrl-C ends it")
            loop.run()
        except Interrupted as interrupted:
            return interrupted.exit_status
        return server.exit_status


def _listen(path: str, resources: contextlib.ExitStack) -> socket.socket:
    try:
        listener = streams.listen(path)
    except BadInput as error:
        raise BadInput(OPTION, error.why) from error
    resources.callback(listener.close)
    resources.callback(partial(_remove, os.path.abspath(path)))
    return listener


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def _locks(resources: contextlib.ExitStack) -> Locks:
    locks = Locks()
    resources.callback(locks.close)
    return locks


def _open(command: str, device: type[AnyDevice], config: Any, host: Host) -> Mapping[str, int]:
    try:
        return model.opened(device, config, host)
    except BadInput as error:
        raise BadInput(f"{command}: {error.where}", error.why) from error


class _Server:
    """Serves whoever connects to ``listener``, one after the other."""

    def __init__(
        self, served: Served, listener: socket.socket, loop: Loop, resources: contextlib.ExitStack
    ) -> None:
        self.exit_status = 0
        self._served = served
        self._listener = listener
        self._loop = loop
        self._connections = 0
        self._front_end: socket.socket | None = None
        self._journal = -1
        # A pipe's writing end: its last reader is gone when a device has come to its end, with all
        # that the kernel did for it.
        self._ended = -1
        # What front-ends write into the configuration, to all that serve here.
        self._written = create_memfd(f"vibevmm-{served.name}-written", Written.SIZE)
        resources.callback(os.close, self._written)
        self._child: Child | None = None
        self._is_ending = False
        self._uplinks: Uplinks | None = None
        output = Output(MESSAGES, loop)
        resources.callback(output.close, _FAREWELL)
        logs = Logs(output)
        self._note = partial(logs.note, Level.WARN)
        self._family = Family(loop, logs, self._died)
        resources.callback(self._family.close)
        # What the zygote forks has us for its parent.
        jail.adopt_orphans(True)
        resources.callback(jail.adopt_orphans, False)
        keep_descriptors()
        self._nursery = Nursery(ZYGOTE_MODULE)
        resources.callback(self._nursery.close)
        self._hear_zygote()
        self._hang_up = select.epoll()
        resources.callback(self._hang_up.close)
        loop.on_readable(self._hang_up.fileno(), self._hung_up)
        resources.callback(self._let_go)
        resources.callback(self._close_pipe)
        loop.on_readable(listener.fileno(), self._accept)

    def connect(self, networks: Networks) -> None:
        """Have there be uplinks for what its interface is connected to."""
        self._uplinks = Uplinks(networks.by_device, self._loop, self._welcome)
        self._uplinks.begin()

    def _welcome(self, child: Child) -> None:
        self._family.adopt(child)
        self._family.listen(child)

    def on_signal(self, number: signal.Signals) -> None:
        """One that asks for the end: of the device, first; the second time it is meant."""
        if number in (signal.SIGUSR1, signal.SIGCONT):
            return
        self.exit_status = 128 + number  # as a shell has it
        if self._is_ending or self._child is None:
            self._loop.end()
            return
        self._is_ending = True
        self._loop.on_readable(self._listener.fileno(), None)
        assert self._front_end is not None
        with contextlib.suppress(OSError):  # it was first
            self._front_end.shutdown(socket.SHUT_RDWR)
        self._loop.after(_FAREWELL, self._loop.end)

    def _hear_zygote(self) -> None:
        zygote = self._nursery.zygote
        self._welcome(zygote)
        self._loop.on_readable(zygote.handover.fileno(), self._answered)

    def _accept(self) -> None:
        try:
            self._front_end, _ = self._listener.accept()
        except OSError:
            return  # it left again
        self._loop.on_readable(self._listener.fileno(), None)
        self._hang_up.register(self._front_end, select.EPOLLRDHUP | select.EPOLLET)
        if self._nursery.zygote.status is not None:
            self._nursery.replace_zygote()
            self._hear_zygote()
        name = self._served.name
        self._nursery.ask([name], [name] if self._served.isolation.level == "none" else [])

    def _answered(self) -> None:
        # The zygote has forked, or is dead: that is told by its end.
        if not self._nursery.is_expecting:
            self._loop.on_readable(self._nursery.zygote.handover.fileno(), None)
            return
        for child in self._nursery.answer():
            self._welcome(child)
            self._begin(child)

    def _begin(self, child: Child) -> None:
        assert self._front_end is not None
        served = self._served
        self._child = child
        self._connections += 1
        sizes = (LARGEST_QUEUE,) * len(served.device.virtqueues(served.config))
        self._journal = journal.create(f"vibevmm-{served.name}", sizes)
        spec = DeviceSpec(
            name=served.name,
            kind=served.kind,
            config=codec.pack(codec.to_plain(served.config)),
            generation=self._connections,
            endpoint="",
            regions=(),
            journal=sizes,
            failing=False,
            log=Level.WARN,
            isolation=served.isolation,
            on_violation=served.on_violation,
        )
        alive, self._ended = os.pipe()
        handed = {
            "front-end": self._front_end.fileno(),
            "journal": self._journal,
            "alive": alive,
            "written": self._written,
            **served.opened,
        }
        with contextlib.suppress(OSError):  # it is dead, which is heard
            fds.send(child.handover, codec.pack(codec.to_plain(spec)), handed)
        os.close(alive)
        self._loop.on_readable(child.handover.fileno(), partial(self._share, child))

    def _share(self, child: Child) -> None:
        # The device may not send descriptors, so that it can give none of its own away. What comes
        # from there goes to its front-end, which it could send that itself, and the journal.
        try:
            message = child.handover.recv(_MAX_MESSAGE)
        except OSError:
            message = b""
        if not message:
            self._loop.on_readable(child.handover.fileno(), None)
            return
        assert self._front_end is not None
        flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
        try:
            socket.send_fds(self._front_end, [message], [self._journal], flags)
        except OSError:
            child.kill()  # its front-end does not read, or is gone

    def _hung_up(self) -> None:
        self._hang_up.poll(0)
        if self._child is not None:
            self._loop.after(_FAREWELL, partial(self._overdue, self._child))

    def _overdue(self, child: Child) -> None:
        if child is self._child:
            self._note(f"{child.name} does not notice that its front-end is gone, and is killed")
            child.kill()

    def _died(self, child: Child) -> None:
        if self._uplinks is not None and self._uplinks.died(child):
            self._note(f"{child.name} {child.how_it_ended()}")
            self._family.let_go(child)
            child.close()
            return
        if child.name == ZYGOTE:
            self._note(f"{child.name} {child.how_it_ended()}")
            self._family.let_go(child)
            self._loop.on_readable(child.handover.fileno(), None)
            if self._child is not None or self._front_end is None:
                return  # there will be another when it is needed
        else:
            self._loop.on_readable(child.handover.fileno(), None)
            self._family.let_go(child)
            if child.status:
                self._note(f"{child.name} {child.how_it_ended()}")
            child.close()
            self._child = None
        self._let_go()
        if self._is_ending:
            self._loop.end()
        elif self._ended >= 0:
            self._loop.on_readable(self._ended, self._done)
        else:
            self._loop.on_readable(self._listener.fileno(), self._accept)

    def _done(self) -> None:
        # Nothing goes on for the one that is dead: the next may begin.
        self._loop.on_readable(self._ended, None)
        self._close_pipe()
        self._loop.on_readable(self._listener.fileno(), self._accept)

    def _close_pipe(self) -> None:
        if self._ended >= 0:
            os.close(self._ended)
            self._ended = -1

    def _let_go(self) -> None:
        if self._front_end is not None:
            self._front_end.close()
            self._front_end = None
        if self._journal >= 0:
            os.close(self._journal)
            self._journal = -1


def _say(text: str) -> None:
    print(f"vibevmm: {harmless(text)}", file=sys.stderr, flush=True)
