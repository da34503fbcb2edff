"""``python -m tests.support.fake_zygote FD``: a zygote of devices that only wait to be ended.

One called ``doomed`` logs a last word and dies of SIGSYS instead.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import NoReturn

from devices.runtime import zygote
from protocol import codec, fds
from protocol.specs import DeviceSpec


def main(arguments: Sequence[str]) -> NoReturn:
    """Take the handover, and wait to be ended."""
    os._exit(status(arguments))


def status(arguments: Sequence[str]) -> int:
    channel = socket.socket(fileno=int(arguments[0]))
    got = fds.receive(channel)
    if got is None:
        return 0
    spec = codec.from_plain(DeviceSpec, codec.unpack(got.payload))
    if spec.name == "doomed":
        print("E about to call what is forbidden", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSYS)
    # A real one dies by PDEATHSIG; here the end of the socket says the same.
    return 0 if channel.recv(1) == b"" else 1


if __name__ == "__main__":
    sys.exit(zygote.main(sys.argv[1:], main))
