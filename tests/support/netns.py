"""Network namespaces for tests: a host with nothing but its loopback, seen from one thread.

What is opened on that thread, and whoever is started from it, is in there; the rest of the tests is
not. It goes with the last that is in it.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

import pytest
from protocol.jail._jail import lib

from tests.support.device_host import FakeHost

P = ParamSpec("P")
T = TypeVar("T")

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/net/tun"),
    reason="only root makes network namespaces and taps, with /dev/net/tun",
)

ETH_P_ALL = 3


class Namespace:
    """One of them, whose loopback is up."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, initializer=lambda: lib.jail_unshare(lib.JAIL_NEW_NET))
        self.ip("link set lo up")

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What ``function`` returns, called in there."""
        return self._thread.submit(function, *args, **kwargs).result()

    def run(self, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program in there, and check that it succeeds."""
        return self.call(
            subprocess.run, command, check=True, stdout=subprocess.PIPE, **{"text": True, **options}
        )

    def popen(self, *command: str, **options: Any) -> subprocess.Popen[Any]:
        """Start a program in there."""
        return self.call(subprocess.Popen, command, **options)

    def ip(self, words: str) -> None:
        """ip(8)."""
        self.run("ip", *words.split())

    def wire(self, interface: str) -> socket.socket:
        """A socket for the packets of ``interface``, the caller's to close: what it sends and what
        comes in there."""

        def opened() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            made.bind((interface, ETH_P_ALL))
            made.settimeout(20)
            return made

        return self.call(opened)

    def close(self) -> None:
        """Leave it."""
        self._thread.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class NamespaceHost(FakeHost):
    """What a launcher in there offers to a device."""

    def __init__(self, namespace: Namespace) -> None:
        super().__init__()
        self._namespace = namespace

    def network(self, kind: str, where: str, mtu: int) -> dict[str, int]:
        return self._namespace.call(super().network, kind, where, mtu)
