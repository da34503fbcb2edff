"""Makes device processes by forking: ``python -m devices.runtime.zygote FD``.

An interpreter with all that devices have in common takes a hundred milliseconds to start and a
few to fork. So there is one that has imported it, has one thread, and holds nothing of any
machine. What sets one device apart (its class, its spec, its descriptors) each gets after the fork.

::

    launcher ── blk0.handover, blk0.log, rng0.handover, … ──► zygote
                                                                └─ fork ─► midwife
                                                                             ├─ fork ─► blk0
                                                                             ├─ fork ─► rng0
    launcher ◄── their pids ── zygote, which has reaped it ◄─────────────────┘ exits

The midwife's end makes orphans of them, and the launcher, which adopts orphans, their parent: it is
the one who hears of their deaths, and they die with it (docs/decisions/0013).
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from devices.runtime import entry
from protocol import codec, fds
from protocol.errors import ProtocolError
from protocol.specs import Forked

# Where entry.main looks for a device's handover socket.
_HANDOVER = 3

_PID = struct.Struct("=i")

# The host has no more to give; our own mistake.
_EXIT_HOST, _EXIT_BUG = 3, 1


def main(arguments: Sequence[str], device: Callable[[Sequence[str]], NoReturn]) -> int:
    """Fork whatever comes over the descriptor ``arguments[0]`` into ``device``, until its end."""
    # What is there now stays: no collection has to touch, and so to copy, these pages.
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=int(arguments[0])) as channel:
        while (request := fds.receive(channel)) is not None:
            pids = _fork(_ends(request.fds), channel, device)
            fds.close_all(request.fds.values())
            try:
                fds.send(channel, codec.pack(codec.to_plain(Forked(pids))), {})
            except BrokenPipeError:
                break  # the launcher is gone; so will be its devices
    return 0


def _ends(handed: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    # Each device's handover socket and log, by its name, in the order in which they came.
    names = [name.removesuffix(".log") for name in handed if name.endswith(".log")]
    if set(handed) != {f"{name}.{end}" for name in names for end in ("handover", "log")}:
        raise ProtocolError(f"each device has a handover and a log; got {', '.join(handed)}")
    return {name: (handed[f"{name}.handover"], handed[f"{name}.log"]) for name in names}


def _fork(
    ends: Mapping[str, tuple[int, int]],
    channel: socket.socket,
    device: Callable[[Sequence[str]], NoReturn],
) -> tuple[int, ...]:
    try:
        reading, writing = os.pipe()
        midwife = os.fork()
    except OSError as error:
        _cannot(error)
    if midwife == 0:
        os._exit(_deliver(ends, channel, [reading, writing], device))
    os.close(writing)
    with open(reading, "rb") as pipe:
        # In the order of ends. A device that is still on its way to closing the pipe keeps
        # nobody waiting: it is the midwife's end that counts, and that they fit the pipe.
        status = os.waitstatus_to_exitcode(os.waitpid(midwife, 0)[1])
        if status < 0:
            print(f"E a process was killed by {signal.Signals(-status).name}", file=sys.stderr)
        if status != 0:
            raise SystemExit(_EXIT_HOST)
        told = pipe.read(len(ends) * _PID.size)
    return tuple(pid for (pid,) in _PID.iter_unpack(told))


def _deliver(
    ends: Mapping[str, tuple[int, int]],
    channel: socket.socket,
    pipe: Sequence[int],
    device: Callable[[Sequence[str]], NoReturn],
) -> int:
    # In the midwife. What is forked here does not come back, whatever happens to it: above are
    # the zygote's frames.
    others = {channel.fileno(), *pipe, *(fd for pair in ends.values() for fd in pair)}
    for name, (handover, log) in ends.items():
        try:
            pid = os.fork()
        except OSError as error:
            _cannot(error)
        if pid == 0:
            try:
                _become(name, handover, log, others)
                device([str(_HANDOVER)])
            finally:
                os._exit(_EXIT_BUG)
        os.write(pipe[1], _PID.pack(pid))
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
