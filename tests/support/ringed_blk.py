"""A disk with an io_uring, that tries what else could be done with such."""

from __future__ import annotations

import ctypes

from devices.blk import Blk, Request
from devices.lanes import PLAIN
from protocol.ring import Chain

# System calls, and a flag of io_uring_enter: its first argument is no descriptor.
_SETUP, _ENTER, _REGISTER, _REGISTERED_RING = 425, 426, 427, 16

DEEDS = {
    "another": ("io_uring_enter", lambda ring: (_ENTER, ring + 1, 0, 0, 0, None, 0)),
    "by-number": ("io_uring_enter", lambda ring: (_ENTER, ring, 0, 0, _REGISTERED_RING, None, 0)),
    "register": ("io_uring_register", lambda ring: (_REGISTER, ring, 2, None, 0)),
    "make": ("io_uring_setup", lambda ring: (_SETUP, 8, ctypes.create_string_buffer(120))),
}
"""By name, which is the disk's serial number: the system call, and its arguments."""


class RingedBlk(Blk):
    """Does so when it is asked for its serial number."""

    lanes = PLAIN

    def requestq(self, chain: Chain) -> int:
        """See Blk."""
        if chain.readable.size == 16 and chain.writable.size > 20:
            kind = int.from_bytes(bytes(chain.readable.buffers()[0][:4]), "little")
            if kind == Request.GET_ID:
                _, arguments = DEEDS[self.config.serial]
                ctypes.CDLL(None).syscall(*arguments(self._ring()))
        return super().requestq(chain)

    requestq.virtqueue = Blk.requestq.virtqueue  # type: ignore[attr-defined]

    def _ring(self) -> int:
        return int(PLAIN.lib.blk_keeper(self._disks[0]).ended)
