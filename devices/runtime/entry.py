"""The start and the end of a device process: ``python -m devices.runtime.entry FD``.

FD is a socket over which the launcher sends everything else: a DeviceSpec and descriptors by
name. Whatever this process and its device ever import, they import before the seal.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import struct
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import zmq

from devices import kinds
from devices.runtime import seal
from devices.runtime.device import AnyDevice
from devices.runtime.loop import Loop
from devices.runtime.session import Session
from devices.runtime.worker import Worker
from protocol import codec, fds, log
from protocol.channel import Channel
from protocol.errors import HostError, VibeError
from protocol.journal import Journal
from protocol.memory import GuestMemory
from protocol.messages import TO_DEVICE
from protocol.specs import DeviceSpec
from protocol.trace import Trace

if TYPE_CHECKING:
    from devices.runtime.faults import Injector

_logger = logging.getLogger(__name__)

# How long the last reply may take to leave (arbitrary; it takes a millisecond).
_LINGER_SECONDS = 1.0

# An exception that nobody expected: our own mistake.
_EXIT_BUG = 1


def main(arguments: Sequence[str]) -> NoReturn:
    """Be the device that comes over the descriptor ``arguments[0]``, and exit."""
    # At once: what the interpreter does to tidy up is not all allowed behind the seal.
    os._exit(_status(arguments))


def _status(arguments: Sequence[str]) -> int:
    sys.unraisablehook = lambda bug: report(bug.exc_type, bug.exc_value, bug.exc_traceback)
    with socket.socket(fileno=int(arguments[0])) as channel:
        parent = _peer(channel)
        handover = fds.receive(channel)
    if handover is None:  # the launcher gave up before it had anything for us
        return 0
    try:
        spec = codec.from_plain(DeviceSpec, codec.unpack(handover.payload))
        log.set_up(spec.log)
        _be(spec, handover.fds, parent)
    except seal.Orphaned:
        return 0
    except VibeError as error:
        _logger.error("%s", error)
        return error.exit_status
    except Exception as error:
        report(type(error), error, error.__traceback__)
        return _EXIT_BUG
    return 0


def _be(spec: DeviceSpec, handed: dict[str, int], parent: int) -> None:
    _call_ourselves(spec.name)
    kind = kinds.find(spec.kind)
    config: Any = codec.from_plain(kind.config_type, codec.unpack(spec.config))
    _check_names(kind, handed)
    seal.enter_privileges(parent)
    serve(spec, kind, config, handed)


def serve(
    spec: DeviceSpec,
    kind: type[AnyDevice],
    config: Any,
    handed: Mapping[str, int],
    *,
    is_sealed: bool = True,
    also: tuple[int, Callable[[Loop], None]] | None = None,
) -> None:
    """Be a device of ``kind`` until the VMM says Quit; ``spec`` and ``handed`` came from the
    launcher. Where it ``is_sealed``, privileges were given up before. ``also`` is a further
    descriptor, and who is called when something comes there."""
    held = dict(handed)
    if also is not None:
        held["launcher"] = also[0]
    memory = GuestMemory(handed["memory"], spec.regions)
    journal = Journal(handed["journal"], spec.journal)
    trace = Trace(handed["trace"], spec.name) if "trace" in handed else None
    if is_sealed:
        seal.audit(_held(held), channel=False)
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
    allowed = 0
    if is_sealed:
        seal.audit(_held(held), channel=True)
        allowed = seal.seal(kind.jail.syscalls)
        _logger.info("sealed, with %s", ", ".join(handed))
    session.sealed(allowed, tuple(handed))

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


def _held(handed: Mapping[str, int]) -> set[int]:
    # Python's mmap keeps a duplicate of what it maps.
    files = [found for fd in handed.values() if stat.S_ISREG((found := os.fstat(fd)).st_mode)]
    same = {
        fd
        for fd in fds.open_descriptors()
        if any(os.path.samestat(os.fstat(fd), file) for file in files)
    }
    return {*handed.values(), *same}


def _peer(channel: socket.socket) -> int:
    # Whoever made the pair of sockets: the launcher, which is to be our parent. Asking for our
    # parent instead would answer too late if it has died already.
    credentials = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])


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


if __name__ == "__main__":
    main(sys.argv[1:])
