"""Devices that lie once, some while after they began: who checks devices has to find it out.

Each lies at its hundredth chance. What no device can do, for the runtime would not let it, such as
completing a request twice, is done by fault injection instead.
"""

from __future__ import annotations

import os

from devices.blk import SECTOR, Blk
from devices.console import Console
from protocol.ring import Chain, Reader, Writer

_HONEST = 100

_RECEIVEQ, _TRANSMITQ = 0, 1


class CorruptingBlk(Blk):
    """Changes one byte of what it is about to read."""

    def _read(self, sector: int, request: Reader, data: Writer) -> None:
        if self.counters["reads"] == _HONEST:
            byte, at = bytearray(1), sector * SECTOR + 77
            os.preadv(self._image, [byte], at)
            os.pwritev(self._image, [bytes([byte[0] ^ 4])], at)
        super()._read(sector, request, data)


class ForgettingBlk(Blk):
    """Says of every hundredth write that it is done. (One alone might be overwritten before it is
    read, and so be no lie.)"""

    def _write(self, sector: int, request: Reader, data: Writer) -> None:
        self.counters["attempts"] += 1
        if self.counters["attempts"] % _HONEST:
            super()._write(sector, request, data)


class LosingBlk(Blk):
    """Never completes one request."""

    def requestq(self, chain: Chain) -> int | None:  # type: ignore[override]
        """As any, but for one."""
        self.counters["chances"] += 1
        return None if self.counters["chances"] == _HONEST else super().requestq(chain)

    requestq.__dict__.update(Blk.requestq.__dict__)


class StutteringConsole(Console):
    """Prints one byte twice."""

    def _transmit(self, chain: Chain) -> bool:
        if not super()._transmit(chain):
            return False
        self.counters["chances"] += 1
        if self.counters["chances"] == _HONEST:
            self._output.write(self.position(_TRANSMITQ), [b"\n"])
            self.advance(_TRANSMITQ, 1)
        return True


class DeafConsole(Console):
    """Does not hear one byte."""

    def _receive(self, chain: Chain) -> bool:
        if self._input.peek(self.position(_RECEIVEQ)):
            self.counters["chances"] += 1
            if self.counters["chances"] == _HONEST:
                self.advance(_RECEIVEQ, 1)
        return super()._receive(chain)
