"""DPDK's testpmd, which drives a network interface over vhost-user, or serves one.

Its packages are unpacked in ``.cache``, not installed: that would bring some two hundred.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Self

from protocol.errors import HostError
from tests.support.netns import Namespace
from tests.support.packages import CACHE, depends, host_architecture, unpack_all

_PLUGINS = ("bus_vdev", "mempool_ring", "net_tap", "net_vhost", "net_virtio")
_PROMPT = "testpmd> "


@cache
def tree() -> Path:
    """The folder of its packages. Raises HostError when they cannot be had."""
    root = CACHE / "testpmd"
    if not root.is_dir():
        needed = re.findall(r"Depends: ([^<\s]+)", depends("dpdk-dev", host_architecture()))
        names = set(needed) - {"libdpdk-dev", "python3", "libc6"}
        release = re.search(r"librte-eal(\d+)", " ".join(names))
        assert release is not None, needed
        names |= {f"librte-{part.replace('_', '-')}{release[1]}" for part in _PLUGINS}
        names |= {"dpdk-dev", "libnl-3-200", "libnl-route-3-200"}
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root.parent) as scratch:
            unpack_all(sorted(names), host_architecture(), Path(scratch)).rename(root)
    return root


class Testpmd:
    """One of them in ``namespace``, all on one ``cpu``, which forwards nothing yet. Raises
    HostError if it ends."""

    __test__ = False

    def __init__(self, namespace: Namespace, cpu: int, mode: str, *devices: str) -> None:
        root = tree()
        libraries = next((root / "usr/lib").glob("*-linux-gnu"))
        # Its own way to load plugins minds who may write to a folder above.
        plugins = [str(next(libraries.glob(f"librte_{part}.so.*"))) for part in _PLUGINS]
        # To a pipe it would say nothing until it has a page full of it.
        self._said, its = os.openpty()
        self.process = namespace.popen(
            str(root / "usr/bin/dpdk-testpmd"),
            *(f"--lcores=0@{cpu},1@{cpu}", "--no-huge", "-m", "256", "--no-pci"),
            *("--no-shconf", "--no-telemetry"),
            *(f"--vdev={device}" for device in devices),
            *("--", "--interactive", f"--forward-mode={mode}", "--total-num-mbufs=4096"),
            "--no-flush-rx",
            env=os.environ | {"LD_LIBRARY_PATH": str(libraries), "LD_PRELOAD": " ".join(plugins)},
            stdin=subprocess.PIPE,
            stdout=its,
            stderr=its,
            bufsize=0,
        )
        os.close(its)
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def ask(self, *commands: str) -> str:
        """What it answers to each of the commands, in one."""
        return "".join(self._ask(command) for command in commands)

    def received(self) -> int:
        """Packets that it has received on its first port."""
        found = re.search(r"RX-packets: (\d+)", self.ask("show port stats 0"))
        assert found is not None
        return int(found[1])

    def _ask(self, command: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(command.encode() + b"\n")
        return self._answer()

    def _answer(self) -> str:
        said = b""
        while not said.endswith(_PROMPT.encode()):
            try:
                said += os.read(self._said, 1 << 16)
            except OSError as error:  # EIO: nobody is there who could say more
                raise HostError(f"testpmd ended: {said.decode(errors='replace')}") from error
        return said.decode(errors="replace")

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        os.close(self._said)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
