"""``python -m tests.support.fake_zygote FD``: a zygote of devices that only wait to be ended.

One called ``doomed`` logs a last word and dies of SIGSYS instead.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import NoReturn

from devices.runtime import zygote
from protocol import codec, fds, jail
from protocol.jail import Cell
from protocol.specs import DeviceSpec


def main(handover: int, cell: Cell | None) -> NoReturn:
    """Take the handover, and wait to be ended."""
    os._exit(status(handover))


def status(handover: int) -> int:
    channel = socket.socket(fileno=handover)
    got = fds.receive(channel)
    if got is None:
        return 0
    spec = codec.from_plain(DeviceSpec, codec.unpack(got.payload))
    if spec.name == "doomed":
        print("E about to call what is forbidden", file=sys.stderr, flush=True)
        # The first process of its namespace cannot signal itself to death.
        jail.forbid_all_but(jail.numbers({"write"}), "kill")
        os.getppid()
    # A real one dies by PDEATHSIG; here the end of the socket says the same.
    return 0 if channel.recv(1) == b"" else 1


if __name__ == "__main__":
    sys.exit(zygote.main(sys.argv[1:], main))
