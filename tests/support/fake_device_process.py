"""``python -m tests.support.fake_device_process FD``: takes its handover and waits to be ended.

One called ``doomed`` logs a last word and dies of SIGSYS instead.
"""

from __future__ import annotations

import os
import signal
import socket
import sys

from protocol import codec, fds
from protocol.specs import DeviceSpec


def main() -> int:
    channel = socket.socket(fileno=int(sys.argv[1]))
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
    sys.exit(main())
