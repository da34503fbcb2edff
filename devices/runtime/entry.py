"""The start and the end of a device process, which the zygote makes.

It has a socket over which the launcher sends everything else: a DeviceSpec and descriptors by
name, of each device that this process is to be, mostly of one. Whatever it and they ever import,
they import before its root is emptied.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import zmq

from devices import kinds
from devices.runtime import vhost_user
from devices.runtime.device import AnyDevice, QueueDeclaration
from devices.runtime.front_end import FrontEnd
from devices.runtime.loop import Loop
from devices.runtime.seal import Seal
from devices.runtime.session import Session
from devices.runtime.worker import Worker
from protocol import codec, fds, jail, log
from protocol.channel import Channel
from protocol.config_space import Written
from protocol.errors import HostError, VibeError
from protocol.journal import Journal
from protocol.mapping import map_file
from protocol.memory import GuestMemory
from protocol.messages import TO_DEVICE, Sealed
from protocol.specs import DeviceSpec, Part
from protocol.trace import Trace
from protocol.vhost_user import FROM_FRONT_END, Connection

if TYPE_CHECKING:
    from devices.runtime.faults import Injector

_logger = logging.getLogger(__name__)

# How long the last reply may take to leave (arbitrary; it takes a millisecond).
_LINGER_SECONDS = 1.0

# An exception that nobody expected: our own mistake.
_EXIT_BUG = 1


def main(handover: int, cell: jail.Cell | None) -> NoReturn:
    """Be the device that comes over the descriptor ``handover``, and exit. ``cell`` is what this
    process is in already; None: it is not to be isolated."""
    # At once: what the interpreter does to tidy up is not all allowed behind the seal.
    os._exit(_status(handover, cell))


def _status(handover_fd: int, cell: jail.Cell | None) -> int:
    sys.unraisablehook = lambda bug: report(bug.exc_type, bug.exc_value, bug.exc_traceback)
    try:
        # Before anything is known of a machine: a spare waits with that done.
        if cell is not None:
            cell.leave_host()
        parent = socket.socket(fileno=handover_fd)
        if members := _receive(parent):
            _be(members, cell, parent)
    except jail.Orphaned:
        return 0
    except VibeError as error:
        _logger.error("%s", error)
        return error.exit_status
    except Exception as error:
        report(type(error), error, error.__traceback__)
        return _EXIT_BUG
    return 0


def _receive(channel: socket.socket) -> list[Member]:
    # The devices of this process; none, if the launcher gave up before.
    members: list[Member] = []
    while not members or len(members) < members[0].spec.sharing:
        handover = fds.receive(channel)
        if handover is None:
            return []
        spec = codec.from_plain(DeviceSpec, codec.unpack(handover.payload))
        if not members:
            log.set_up(spec.log)
            _call_ourselves(spec.process or spec.name)
        members.append(Member(spec, kinds.find(spec.kind), handover.fds))
    return members


def _be(members: Sequence[Member], cell: jail.Cell | None, parent: socket.socket) -> None:
    with parent:
        if members[0].spec.isolation.level == "none":
            jail.die_with_parent(parent)
            ours = None
        else:
            if any("faults" in member.handed for member in members):
                import devices.runtime.faults  # noqa: F401  # while there are files to import
            ours = Seal(cell)
            endpoints = ours.enter(
                [member.spec.endpoint for member in members],
                parent,
                urings=any(member.makes_urings for member in members),
            )
            for member, endpoint in zip(members, endpoints, strict=True):
                member.spec = replace(member.spec, endpoint=endpoint)
            _tell_lacks(members[0].spec, cell)
        if not members[0].spec.endpoint:
            serve_front_end(members[0], ours, parent)
            return
    serve(members, ours)


def _tell_lacks(spec: DeviceSpec, cell: jail.Cell | None) -> None:
    lacks = {} if cell is None else cell.lacks
    for part, why in lacks.items():
        _logger.info("jailed without %s: %s", part, why)
    if lacks and spec.isolation.strict:
        raise HostError(f"the jail is to be whole, and lacks {', '.join(lacks)}")


class Member:
    """A device of this process: what it was told by the launcher, ``spec`` and ``handed``, and
    what it is, ``kind`` with ``config``; None: as in the spec."""

    def __init__(
        self,
        spec: DeviceSpec,
        kind: type[AnyDevice],
        handed: Mapping[str, int],
        config: object = None,
    ) -> None:
        self._config: Any = config
        if config is None:
            self._config = codec.from_plain(kind.config_type, codec.unpack(spec.config))
        self.spec = spec
        self.kind = kind.fitting(self._config)
        self.handed = handed
        _check_names(spec, self.kind.virtqueues(self._config), handed)

    @property
    def makes_urings(self) -> bool:
        """Whether it makes io_urings, which is before the jail is closed."""
        return self.kind.makes_urings(self._config)

    @property
    def is_traced(self) -> bool:
        """Whether it writes a trace, which grows."""
        return "trace" in self.handed

    def open(self) -> None:
        """Map what is shared with others."""
        self._memory = GuestMemory(self.handed["memory"], self.spec.regions)
        self._journal = Journal(self.handed["journal"], self.spec.journal)
        self._trace = Trace(self.handed["trace"], self.spec.name) if self.is_traced else None

    def work(self, loop: Loop) -> Worker:
        """The device, to be served by ``loop``, which has neither memory nor rings yet."""
        return Worker(self.kind, self._config, self.handed, None, None, loop, None)

    def greet(self, context: zmq.Context[zmq.Socket[bytes]], loop: Loop) -> Session:
        """Come to be the device, to be served by ``loop``, and say hello to the VMM."""
        injector = _injector(self.handed["faults"]) if "faults" in self.handed else None
        made = FrontEnd if self.kind.connects else Worker
        worker = made(
            self.kind,
            self._config,
            self.handed,
            self._memory,
            self._journal,
            loop,
            self._trace,
            failing=self.spec.failing,
            largest_chain=self.spec.largest_chain,
            injector=injector,
        )
        self._channel = Channel(context, TO_DEVICE, self.spec.generation)
        self._channel.connect(self.spec.endpoint)
        converse = Session if injector is None else injector.session
        session = converse(self._channel, worker, loop, self._trace)
        session.greet(self.spec.kind)
        return session

    def close(self) -> None:
        """Send what is to be sent yet, and write what is to be written."""
        self._channel.close(_LINGER_SECONDS)
        if self._trace is not None:
            self._trace.flush()


def serve(
    members: Sequence[Member],
    seal: Seal | None,
    *,
    also: tuple[int, Callable[[Loop], None]] | None = None,
) -> None:
    """Be ``members`` until the VMM has said Quit to each. ``seal`` is to be closed, and was
    entered; None: there is none. ``also`` is a further descriptor, and who is called when
    something comes there."""
    held = [fd for member in members for fd in member.handed.values()]
    if also is not None:
        held.append(also[0])
    for member in members:
        member.open()
    if seal is not None:
        seal.audit(_held(held, seal), channels=0)
    loop = Loop()
    if also is not None:
        loop.add(also[0], partial(also[1], loop))
    context = zmq.Context()
    sessions = [member.greet(context, loop) for member in members]
    calls, parts = 0, tuple[Part, ...]()
    if seal is not None:
        made = [fd for session in sessions for fd in session.worker.descriptors]
        seal.audit(_held([*held, *made], seal), channels=len(members))
        calls = seal.close(
            frozenset().union(*(member.kind.jail.syscalls for member in members)),
            members[0].spec.on_violation,
            files_grow=any(member.is_traced for member in members),
            ioctls=frozenset().union(*(member.kind.jail.ioctls for member in members)),
            urings=[fd for session in sessions for fd in session.worker.urings],
            descriptors=sum(member.kind.jail.descriptors for member in members),
        )
        parts = seal.parts
    serving = set(sessions)
    for member, session in zip(members, sessions, strict=True):
        session.on_quit = partial(_quit, loop, serving, session)
        if seal is not None:
            _logger.info("sealed, with %s", ", ".join(member.handed))
        session.sealed(Sealed(calls, tuple(member.handed), parts))

    loop.run()
    for member in members:
        member.close()
    context.term()


def serve_front_end(member: Member, seal: Seal | None, parent: socket.socket) -> None:
    """Be ``member`` for the front-end that was handed over, until it hangs up. What is sent to
    ``parent`` it passes on to the front-end, with the journal."""
    connection = Connection(socket.socket(fileno=member.handed["front-end"]), FROM_FRONT_END)
    loop = Loop()
    worker = member.work(loop)
    written = Written(map_file(member.handed["written"], Written.SIZE))
    if seal is not None:
        seal.audit(
            _held(
                (*member.handed.values(), *worker.descriptors, parent.fileno(), loop.fileno()), seal
            ),
            channels=0,
        )
        seal.close(
            member.kind.jail.syscalls,
            member.spec.on_violation,
            files_grow=False,
            urings=worker.urings,
            descriptors=member.kind.jail.descriptors,
            receives=vhost_user.descriptors(len(worker.queues)),
            ioctls=member.kind.jail.ioctls,
        )
        _logger.info("sealed, with %s", ", ".join(member.handed))
    sizes = member.spec.journal
    back_end = vhost_user.BackEnd(
        connection, worker, loop, member.handed["journal"], sizes, parent.sendall, written
    )
    loop.run()
    back_end.close()


def _quit(loop: Loop, serving: set[Session], session: Session) -> None:
    serving.discard(session)
    if not serving:
        loop.stop()


def _injector(board: int) -> Injector:
    # Imported only where faults may be asked for.
    from devices.runtime.faults import Injector
    from protocol.faults import Board

    return Injector(Board(board))


def _call_ourselves(name: str) -> None:
    # What ps and the kernel call us: 15 bytes. A spare becomes a device here.
    with open("/proc/self/comm", "wb", buffering=0) as comm:
        comm.write(name.encode())


def _check_names(
    spec: DeviceSpec, queues: Iterable[QueueDeclaration], handed: Mapping[str, int]
) -> None:
    wanted = ["journal", "alive", "front-end", "written"]
    if spec.endpoint:
        kicks = (f"kick{queue.index}" for queue in queues)
        wanted = ["memory", "journal", "alive", "call", *kicks]
    missing = [name for name in wanted if name not in handed]
    if missing:
        raise HostError(f"the launcher did not hand over {', '.join(missing)}")


def _held(handed: Iterable[int], seal: Seal) -> set[int]:
    # Python's mmap keeps a duplicate of what it maps.
    files = [found for fd in handed if stat.S_ISREG((found := os.fstat(fd)).st_mode)]
    same = {
        fd
        for fd in seal.open_descriptors()
        if any(os.path.samestat(os.fstat(fd), file) for file in files)
    }
    return {*handed, *same}


def report(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    """Log an exception that nobody expected."""
    # Places without their source lines: those would be read from files, and behind the seal
    # that is a death without the message.
    places = [
        f"{frame.f_code.co_filename}:{line} {frame.f_code.co_name}"
        for frame, line in traceback.walk_tb(trace)
    ]
    _logger.error("bug: %s: %s, in %s", kind.__name__, error, " > ".join(places) or "nothing")
