"""Makes device processes by forking: ``python -m devices.runtime.zygote FD``.

An interpreter with all that devices have in common takes a hundred milliseconds to start and a
few to fork. So there is one that has imported it, has one thread, and holds nothing of any
machine. What sets one device apart (its class, its spec, its descriptors) each gets after the fork.

::

    launcher ── blk0.handover, blk0.log, rng0.handover, … ──► zygote
                                                                ├─ fork ─► midwife ─ fork ─► blk0
                                                                ├─ fork ─► midwife ─ fork ─► rng0
    launcher ◄── their pids ── zygote, which has reaped them ◄──┘ exit

It is also who is left of a launcher that was killed, and may do what that might: it removes the
machine's cgroups (the VMM, jailed, may not).

A midwife's end makes an orphan of its device, and the launcher, which adopts orphans, its parent:
it is the one who hears of its death, and with whom it dies (docs/decisions/0013). Each device has
its own, for a process leaves its pid namespace once, and for those that it forks from then on: a
device that is to be jailed is the first in a new one, and sees no other. The pids that are told are
those of the midwives' namespace, and so the launcher's.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import NoReturn

from devices.runtime import entry
from protocol import codec, fds
from protocol.errors import ProtocolError
from protocol.jail import Cell, cgroup
from protocol.specs import Fork, Forked, Leftover

# Where a device's handover socket is, as launcher.spawn has it.
_HANDOVER = 3

# A midwife's word: whose device, by its place among the names, and its pid.
_PID = struct.Struct("=2i")

# The host has no more to give; our own mistake.
_EXIT_HOST, _EXIT_BUG = 3, 1

Device = Callable[[int, Cell | None], NoReturn]
"""entry.main, or who stands in for it."""


def main(arguments: Sequence[str], device: Device) -> int:
    """Fork whatever comes over the descriptor ``arguments[0]`` into ``device``, until its end."""
    # What is there now stays: no collection has to touch, and so to copy, these pages.
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=int(arguments[0])) as channel:
        if (told := fds.receive(channel)) is None:
            return 0
        groups = codec.from_plain(Leftover, codec.unpack(told.payload)).groups
        while (request := fds.receive(channel)) is not None:
            wanted = codec.from_plain(Fork, codec.unpack(request.payload))
            ends = _ends(request.fds)
            if unknown := set(wanted.free) - set(ends):
                raise ProtocolError(f"no device is called {', '.join(unknown)}")
            pids = _fork(ends, wanted.free, channel, device)
            fds.close_all(request.fds.values())
            try:
                fds.send(channel, codec.pack(codec.to_plain(Forked(pids))), {})
            except BrokenPipeError:
                break
    # The launcher is gone, for it ends nobody else in this way; so are its devices, in a moment.
    if groups is not None:
        cgroup.remove(cgroup.Files(), groups)
    return 0


def _ends(handed: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    # Each device's handover socket and log, by its name, in the order in which they came.
    names = [name.removesuffix(".log") for name in handed if name.endswith(".log")]
    if set(handed) != {f"{name}.{end}" for name in names for end in ("handover", "log")}:
        raise ProtocolError(f"each device has a handover and a log; got {', '.join(handed)}")
    return {name: (handed[f"{name}.handover"], handed[f"{name}.log"]) for name in names}


def _fork(
    ends: Mapping[str, tuple[int, int]],
    free: Collection[str],
    channel: socket.socket,
    device: Device,
) -> tuple[int, ...]:
    try:
        reading, writing = os.pipe()
    except OSError as error:
        _cannot(error)
    # Of what is open here a device keeps its own two.
    others = {channel.fileno(), reading, writing, *(fd for pair in ends.values() for fd in pair)}
    midwives = []
    for place, (name, (handover, log)) in enumerate(ends.items()):
        try:
            midwife = os.fork()
        except OSError as error:
            _cannot(error)
        if midwife == 0:
            cell = None if name in free else Cell()
            become = partial(_become, name, handover, log, others)
            os._exit(_deliver(place, writing, become, cell, device))
        midwives.append(midwife)
    os.close(writing)
    with open(reading, "rb") as pipe:
        # A device that is still on its way to closing the pipe keeps nobody waiting: it is the
        # midwives' end that counts, and that their words fit the pipe.
        statuses = [os.waitstatus_to_exitcode(os.waitpid(midwife, 0)[1]) for midwife in midwives]
        for status in statuses:
            if status < 0:
                print(f"E a process was killed by {signal.Signals(-status).name}", file=sys.stderr)
        if any(statuses):
            raise SystemExit(_EXIT_HOST)
        told = dict(_PID.iter_unpack(pipe.read(len(ends) * _PID.size)))
    return tuple(told[place] for place in range(len(ends)))


def _deliver(
    place: int, pipe: int, become: Callable[[], None], cell: Cell | None, device: Device
) -> int:
    # In the midwife. What is forked here does not come back, whatever happens to it: above are
    # the zygote's frames.
    if cell is not None:
        cell.leave_processes()
    try:
        pid = os.fork()
    except OSError as error:
        _cannot(error)
    if pid == 0:
        try:
            become()
            device(_HANDOVER, cell)
        finally:
            os._exit(_EXIT_BUG)
    os.write(pipe, _PID.pack(place, pid))
    return 0


def _cannot(error: OSError) -> NoReturn:
    print(f"E cannot fork: {error.strerror}", file=sys.stderr, flush=True)
    os._exit(_EXIT_HOST)


def _become(name: str, handover: int, log: int, rest: set[int]) -> None:
    # As launcher.spawn starts a child: a session of its own, /dev/null, the log twice, handover.
    os.setsid()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(handover, _HANDOVER, inheritable=False)
    fds.close_all(rest - {_HANDOVER})
    # What ps and the kernel call it: 15 bytes.
    with open("/proc/self/comm", "wb", buffering=0) as comm:
        comm.write(name.encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], entry.main))
