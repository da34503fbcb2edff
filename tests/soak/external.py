"""The bare guest on a disk that is another program's: qemu-storage-daemon's, which is killed, and
run again, all the time."""

from __future__ import annotations

import contextlib
import random
import threading
from pathlib import Path
from typing import Any

from launcher.api import VM
from tests.soak.bare import Bare
from tests.support.daemons import Daemon, storage_daemon

# Mean seconds between two kills (arbitrary: about as long as it takes to come back).
_BETWEEN = 0.3


class External(Bare):
    """The same guest; its daemon is killed ``kills`` times until it is told to end."""

    # Of the process that stands for it, in order too, and of those that come while it is not there.
    expected = "status [03]|nobody listens|No such file|whoever listens there is busy"

    def __init__(self, seed: int, hypervisor: str, *, isolation: str = "jail") -> None:
        super().__init__(seed, hypervisor, isolation=isolation)
        self._dice = random.Random(seed)
        self._is_ending = threading.Event()
        self._killer = threading.Thread(target=self._kill, daemon=True)
        self._daemon: Daemon | None = None
        self.kills = 0

    def options(self, folder: Path) -> dict[str, Any]:
        """See harness.Guest."""
        found = super().options(folder)
        self._path, self._image = folder / "blk", folder / "disk.img"
        self._daemon = storage_daemon(self._path, self._image)
        found["devices"][0] = f"vhost-user,type=blk,socket={self._path},id=blk0"
        return found

    def begin(self, vm: VM) -> None:
        """See harness.Guest."""
        super().begin(vm)
        self._killer.start()

    def end(self, vm: VM) -> None:
        """See harness.Guest."""
        self._stop()
        super().end(vm)

    def close(self) -> None:
        """See harness.Guest."""
        self._stop()
        if self._daemon is not None:
            self._daemon.close()
        super().close()

    def _stop(self) -> None:
        self._is_ending.set()
        with contextlib.suppress(RuntimeError):  # it never began
            self._killer.join()

    def _kill(self) -> None:
        while not self._is_ending.wait(self._dice.expovariate(1 / _BETWEEN)):
            assert self._daemon is not None
            self._daemon.close()
            self.kills += 1
            self._is_ending.wait(self._dice.random() * 0.05)
            self._daemon = storage_daemon(self._path, self._image)
