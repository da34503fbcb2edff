"""The start and the end of a device process, which the zygote makes.

It has a socket over which the launcher sends everything else: a DeviceSpec and descriptors by
name. Whatever this process and its device ever import, they import before its root is emptied.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import zmq

import jail
from devices import kinds
from devices.runtime.device import AnyDevice
from devices.runtime.loop import Loop
from devices.runtime.seal import Seal
from devices.runtime.session import Session
from devices.runtime.worker import Worker
from protocol import codec, fds, log
from protocol.channel import Channel
from protocol.errors import HostError, VibeError
from protocol.journal import Journal
from protocol.memory import GuestMemory
from protocol.messages import TO_DEVICE, Sealed
from protocol.specs import DeviceSpec
from protocol.trace import Trace

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
        handover = fds.receive(parent)
        if handover is None:  # the launcher gave up before it had anything for us
            return 0
        spec = codec.from_plain(DeviceSpec, codec.unpack(handover.payload))
        log.set_up(spec.log)
        _be(spec, handover.fds, cell, parent)
    except jail.Orphaned:
        return 0
    except VibeError as error:
        _logger.error("%s", error)
        return error.exit_status
    except Exception as error:
        report(type(error), error, error.__traceback__)
        return _EXIT_BUG
    return 0


def _be(
    spec: DeviceSpec, handed: dict[str, int], cell: jail.Cell | None, parent: socket.socket
) -> None:
    _call_ourselves(spec.name)
    kind = kinds.find(spec.kind)
    config: Any = codec.from_plain(kind.config_type, codec.unpack(spec.config))
    _check_names(kind, handed)
    with parent:
        if spec.isolation.level == "none":
            jail.die_with_parent(parent)
            ours = None
        else:
            if "faults" in handed:
                import devices.runtime.faults  # noqa: F401  # while there are files to import
            ours = Seal(cell)
            spec = replace(spec, endpoint=ours.enter(spec.endpoint, parent))
            _tell_lacks(spec, cell)
    serve(spec, kind, config, handed, ours)


def _tell_lacks(spec: DeviceSpec, cell: jail.Cell | None) -> None:
    lacks = {} if cell is None else cell.lacks
    for part, why in lacks.items():
        _logger.info("jailed without %s: %s", part, why)
    if lacks and spec.isolation.strict:
        raise HostError(f"the jail is to be whole, and lacks {', '.join(lacks)}")


def serve(
    spec: DeviceSpec,
    kind: type[AnyDevice],
    config: Any,
    handed: Mapping[str, int],
    seal: Seal | None,
    *,
    also: tuple[int, Callable[[Loop], None]] | None = None,
) -> None:
    """Be a device of ``kind`` until the VMM says Quit; ``spec`` and ``handed`` came from the
    launcher. ``seal`` is to be closed, and was entered; None: there is none. ``also`` is a further
    descriptor, and who is called when something comes there."""
    held = dict(handed)
    if also is not None:
        held["launcher"] = also[0]
    memory = GuestMemory(handed["memory"], spec.regions)
    journal = Journal(handed["journal"], spec.journal)
    trace = Trace(handed["trace"], spec.name) if "trace" in handed else None
    if seal is not None:
        seal.audit(_held(held, seal), channel=False)
    loop = Loop()
    if also is not None:
        loop.add(also[0], partial(also[1], loop))
    injector = _injector(handed["faults"]) if "faults" in handed else None
    worker = Worker(
        kind,
        config,
        handed,
        memory,
        journal,
        loop,
        trace,
        failing=spec.failing,
        largest_chain=spec.largest_chain,
        injector=injector,
    )

    context = zmq.Context()
    channel = Channel(context, TO_DEVICE, spec.generation)
    channel.connect(spec.endpoint)
    converse = Session if injector is None else injector.session
    session = converse(channel, worker, loop, trace)
    session.greet(spec.kind)
    sealed = Sealed(0, tuple(handed), ())
    if seal is not None:
        seal.audit(_held(held, seal), channel=True)
        calls = seal.close(kind.jail.syscalls, spec.on_violation, files_grow=trace is not None)
        _logger.info("sealed, with %s", ", ".join(handed))
        sealed = Sealed(calls, tuple(handed), seal.parts)
    session.sealed(sealed)

    loop.run()
    channel.close(_LINGER_SECONDS)
    context.term()
    if trace is not None:
        trace.flush()


def _injector(board: int) -> Injector:
    # Imported only where faults may be asked for.
    from devices.runtime.faults import Injector
    from protocol.faults import Board

    return Injector(Board(board))


def _call_ourselves(name: str) -> None:
    # What ps and the kernel call us: 15 bytes. A spare becomes a device here.
    with open("/proc/self/comm", "wb", buffering=0) as comm:
        comm.write(name.encode())


def _check_names(kind: type[AnyDevice], handed: Mapping[str, int]) -> None:
    wanted = ["memory", "journal", "call", *(f"kick{queue.index}" for queue in kind.queues)]
    missing = [name for name in wanted if name not in handed]
    if missing:
        raise HostError(f"the launcher did not hand over {', '.join(missing)}")


def _held(handed: Mapping[str, int], seal: Seal) -> set[int]:
    # Python's mmap keeps a duplicate of what it maps.
    files = [found for fd in handed.values() if stat.S_ISREG((found := os.fstat(fd)).st_mode)]
    same = {
        fd
        for fd in seal.open_descriptors()
        if any(os.path.samestat(os.fstat(fd), file) for file in files)
    }
    return {*handed.values(), *same}


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
