"""A device process that speaks vhost-user, started as the launcher does, and its front-end."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Self

from devices.runtime.vhost_user import LARGEST_QUEUE
from protocol import codec, fds, journal
from protocol.config_space import Written
from protocol.memory import create_memfd
from protocol.specs import DeviceSpec, Level
from protocol.vhost_user import Inflight, Request
from tests.support.device_host import FakeHost, find_kind, program, spawn
from tests.support.driving import DEADLINE
from tests.support.front_end import FrontEnd


class BackEnd(FrontEnd):
    """A front-end of a device of ``kind``, or of a class that is not in the table (``register``),
    with ``config``. One that ``shares`` passes the in-flight region on, and so does not see the
    device hang up. ``written``, closed by this, is what was written into the configuration
    before."""

    def __init__(
        self,
        kind: str,
        folder: Path,
        config: object = None,
        *,
        register: str = "",
        shares: bool = False,
        host: FakeHost | None = None,
        level: Level = "jail",
        written: int | None = None,
    ) -> None:
        ours, theirs = socket.socketpair()
        super().__init__(ours)
        device = find_kind(kind, register)
        config = device.config_type() if config is None else config
        self.host = host or FakeHost()
        given = device.open(config, self.host)
        sizes = (LARGEST_QUEUE,) * len(device.virtqueues(config))
        spec = DeviceSpec(
            name="device0",
            kind=kind,
            config=codec.pack(codec.to_plain(config)),
            generation=1,
            endpoint="",
            regions=(),
            journal=sizes,
            failing=False,
            log=4,
        )
        self.journal = journal.create("test-journal", sizes)
        self.handover, child = fds.handover_pair()
        self._log = (folder / "log").open("w+b")
        with child:
            self.process = spawn(program(kind, register, level), child, self._log)
        self.written = create_memfd("test-written", Written.SIZE) if written is None else written
        alive, ended = os.pipe()
        handed = {
            "front-end": theirs.fileno(),
            "journal": self.journal,
            "alive": alive,
            "written": self.written,
            **given,
        }
        fds.send(self.handover, codec.pack(codec.to_plain(spec)), handed)
        fds.close_all([alive, ended, *given.values()])
        self._theirs = theirs
        if not shares:
            theirs.close()

    def get_inflight(
        self, queues: int = 1, size: int = 16, padding: int = 0
    ) -> tuple[Inflight, int]:
        """See FrontEnd; between the two, what the launcher does."""
        wanted = Inflight(0, 0, queues, size).pack() + bytes(padding)
        self.connection.send(Request.GET_INFLIGHT_FD, wanted)
        packet = self.handover.recv(4096)
        socket.send_fds(self._theirs, [packet], [self.journal])
        reply = self.connection.wait(DEADLINE)
        assert len(reply.payload) == len(wanted)
        return Inflight.unpack(reply.payload), reply.take()

    def log(self) -> str:
        """What the process has written to stderr so far."""
        return Path(self._log.name).read_text()

    def wait(self) -> int:
        """The exit status of a process that ends by itself."""
        return self.process.wait(DEADLINE)

    def close(self) -> None:
        """Hang up; end it, if it does not, and close everything."""
        self.process.kill()
        self.process.wait()
        if self.handover.fileno() >= 0:
            self.handover.close()
            self._theirs.close()
            self._log.close()
            self.host.close()
            fds.close_all([self.journal, self.written])
        super().close()

    def __enter__(self) -> Self:
        return self
