"""Devices that do what no device of ours should, and devices that show what the runtime does."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from devices.runtime.device import Device, Host, Runtime, virtqueue
from protocol.ring import Chain
from protocol.virtio import DeviceId


@dataclass(frozen=True, slots=True)
class Config:
    """Which mischief."""

    deed: str = ""


def _refusal() -> int | None:
    # The errno of a file that may not be opened.
    try:
        os.close(os.open("/", os.O_RDONLY))
    except OSError as error:
        return error.errno
    return None


_ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_MAP_GROWSDOWN = 0x100  # <linux/mman.h>


class Rogue(Device[Config]):
    """Does something forbidden, or wrong, at the first chain."""

    device_id = DeviceId.NULL

    @virtqueue(0, size=16)
    def requestq(self, chain: Chain) -> int:
        """Do it."""
        deeds = {
            "open": lambda: os.open("/etc/hostname", os.O_RDONLY),
            "socket": lambda: __import__("socket").socket(),
            "execute": lambda: os.execv("/bin/true", ["true"]),
            "fork": os.fork,
            "thread": lambda: threading.Thread(target=print).start(),
            "kill": lambda: os.kill(1, 0),
            "executable": lambda: mmap.mmap(-1, 4096, mmap.MAP_PRIVATE, mmap.PROT_EXEC),
            "stack": lambda: mmap.mmap(-1, 4096, _ANONYMOUS | _MAP_GROWSDOWN),
            "shared-memory": lambda: mmap.mmap(-1, 4096, mmap.MAP_SHARED),
            "give-away": lambda: ctypes.CDLL(None).sendmsg(3, None, 0),
            "raise": lambda: [][1],
            "write-too-much": lambda: chain.writable.size + 1,
            "abort": os.abort,
            "ask": lambda: chain.writable.write(f"{_refusal()} {_refusal()}".encode()),
            "uring": lambda: ctypes.CDLL(None).syscall(425, 8, ctypes.create_string_buffer(120)),
        }
        return deeds[self.config.deed]() or 0


class Forker(Device[Config]):
    """Leaves a process behind before it is sealed."""

    device_id = DeviceId.NULL

    def __init__(self, config: Config, fds: Mapping[str, int], runtime: Runtime) -> None:
        super().__init__(config, fds, runtime)
        if not os.fork():
            os._exit(0)

    @virtqueue(0, size=16)
    def requestq(self, chain: Chain) -> int:
        """Never called."""
        return 0


class Opener(Device[Config]):
    """Opens a file of its own before it is sealed: where ``deed`` says, ``init`` or ``hello``."""

    device_id = DeviceId.NULL

    def __init__(self, config: Config, fds: Mapping[str, int], runtime: Runtime) -> None:
        super().__init__(config, fds, runtime)
        self._open_at("init")

    def config_space(self) -> bytes:
        """Empty; asked for in the greeting, the last of the device's code before the seal."""
        self._open_at("hello")
        return b""

    @virtqueue(0, size=16)
    def requestq(self, chain: Chain) -> int:
        """Never called."""
        return 0

    def _open_at(self, moment: str) -> None:
        if self.config.deed == moment:
            os.memfd_create("own")


class Keeper(Device[Config]):
    """Keeps every chain, and gives all back at once when the driver writes its configuration:
    in order, in reverse order (``reverse``), or also those from before a reset (``late``)."""

    device_id = DeviceId.NULL

    def __init__(self, config: Config, fds: Mapping[str, int], runtime: Runtime) -> None:
        super().__init__(config, fds, runtime)
        self._all: list[Chain] = []

    def config_space(self) -> bytes:
        """How many chains it has seen."""
        return bytes([len(self._all)])

    def write_config(self, offset: int, data: bytes) -> None:
        """Complete them."""
        oldest = self.oldest(0)
        if self.config.deed == "late":
            assert oldest is None
        else:
            assert oldest is self._all[0]
        for chain in self._all[:: -1 if self.config.deed == "reverse" else 1]:
            self.complete(0, chain, chain.writable.write(b"kept"))
        assert self.oldest(0) is None

    @virtqueue(0, size=16)
    def requestq(self, chain: Chain) -> None:
        """Keep it."""
        self._all.append(chain)
        self.config_changed()


class Teller(Device[Config]):
    """Answers with the names of all modules of ours that its process has loaded."""

    device_id = DeviceId.NULL

    @virtqueue(0, size=16)
    def requestq(self, chain: Chain) -> int:
        """Tell."""
        names = [name for name in sys.modules if name.split(".")[0] in self.config.deed.split(",")]
        return chain.writable.write("\n".join(sorted(names)).encode())


class Saver(Device[Config]):
    """Leaves ``deed`` to its successor, and shows in its configuration what it was left."""

    device_id = DeviceId.NULL

    def __init__(self, config: Config, fds: Mapping[str, int], runtime: Runtime) -> None:
        super().__init__(config, fds, runtime)
        self._left = b""

    def config_space(self) -> bytes:
        """What it was left."""
        return self._left

    def save(self) -> bytes:
        """Version 1, and the deed."""
        return b"\x01" + self.config.deed.encode()

    def restore(self, state: bytes) -> None:
        """Take it."""
        if state[:1] != b"\x01":
            raise ValueError("of another version")
        self._left = state[1:]

    @virtqueue(0, size=16)
    def requestq(self, chain: Chain) -> int:
        """Answer with what it was left."""
        return chain.writable.write(self._left)


class Greedy(Device[Config]):
    """Takes a GiB of memory that it has reserved before anything limited it: the first one that
    serves, and none after that."""

    device_id = DeviceId.NULL

    @classmethod
    def open(cls, config: Config, host: Host) -> dict[str, int]:
        """What tells the first from others."""
        fd = os.memfd_create("served")
        os.write(fd, bytes(1))
        return {"served": fd}

    def __init__(self, config: Config, fds: Mapping[str, int], runtime: Runtime) -> None:
        super().__init__(config, fds, runtime)
        if os.pread(fds["served"], 1, 0) == bytes(1):
            os.pwrite(fds["served"], b"1", 0)
            self._reserved = mmap.mmap(-1, 1 << 30, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self.soon(self._eat)

    def _eat(self) -> None:
        for at in range(0, len(self._reserved), mmap.PAGESIZE):
            self._reserved[at] = 1

    @virtqueue(0, size=16)
    def requestq(self, chain: Chain) -> int:
        """Never called."""
        return 0


class Manifold(Device[Config]):
    """Starts 100 threads before it is sealed, as far as it gets, and prints how many it has had."""

    device_id = DeviceId.NULL

    def __init__(self, config: Config, fds: Mapping[str, int], runtime: Runtime) -> None:
        super().__init__(config, fds, runtime)
        over, started = threading.Event(), []
        with contextlib.suppress(RuntimeError):
            while len(started) < 100:
                thread = threading.Thread(target=over.wait)
                thread.start()
                started.append(thread)
        over.set()
        for thread in started:
            thread.join()
        print(f"{len(started)} threads", flush=True)

    @virtqueue(0, size=16)
    def requestq(self, chain: Chain) -> int:
        """Never called."""
        return 0
