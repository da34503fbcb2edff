"""``python -m vmm.entry FD``: the VMM process. FD is the handover socket to the launcher."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys

from protocol import codec, fds
from protocol.errors import HostError
from protocol.log import set_up as set_up_log
from protocol.specs import Guard as GuardSpec
from protocol.specs import MachineSpec
from vmm import seal
from vmm.guard import Guard
from vmm.session import Session


def main() -> int:
    """Receive the machine's spec and descriptors, and run it."""
    # The launcher decides when a VM ends; what a terminal sends is for it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    handover = socket.socket(fileno=int(sys.argv[1]))
    told = fds.receive(handover)
    if told is None:
        return 1
    guarded = codec.from_plain(GuardSpec, codec.unpack(told.payload))
    guard = Guard(guarded, told.fds)
    got = fds.receive_all(handover)
    if got is None:
        guard.clean_up()
        return 1
    spec = codec.from_plain(MachineSpec, codec.unpack(got.payload))
    set_up_log(spec.log)
    try:
        cell = seal.enter(guarded.cleanup, os.path.dirname(spec.endpoint), strict=spec.strict)
        Session(handover, spec, got.fds, guard, tuple(cell.lacks)).run()
    except HostError as error:
        logging.getLogger(__name__).error("%s", error)
        os._exit(error.exit_status)
    except Exception:
        # Ours. The vCPUs' threads would go on for ever, for the interpreter waits for them.
        logging.getLogger(__name__).exception("an error of ours")
        os._exit(1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
