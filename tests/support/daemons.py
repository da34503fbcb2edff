"""Back-ends that nobody here wrote, and one that does as it is told."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self

from devices.runtime import disk
from protocol import fds, journal
from protocol.errors import ProtocolError
from protocol.memory import PAGE_SIZE, create_memfd
from protocol.vhost_user import (
    F_PROTOCOL_FEATURES,
    FROM_FRONT_END,
    U64,
    ConfigSpace,
    Connection,
    Inflight,
    Message,
    ProtocolFeature,
    Request,
    VringState,
)
from protocol.virtio import Feature, bit

DEADLINE = 20.0

STORAGE_DAEMON = "qemu-storage-daemon"
VIRTIOFSD = "/usr/lib/qemu/virtiofsd"

_LISTENING = "00010000"  # among the flags of /proc/net/unix: __SO_ACCEPTCON


def lacks(program: str) -> str:
    """Why ``program`` cannot be had; empty if it can."""
    return "" if shutil.which(program) else f"needs {program}, of `make setup`"


class Daemon:
    """``command``, which listens at ``path``; killed at the end."""

    def __init__(self, path: Path, *command: str) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        until = time.monotonic() + DEADLINE
        while not is_listening(path):
            if self.process.poll() is not None or time.monotonic() > until:
                self.kill()
                said = self.process.stdout.read() if self.process.stdout else b""
                raise AssertionError(f"{command[0]} does not listen: {said!r}")
            time.sleep(0.005)

    def kill(self) -> None:
        """SIGKILL; it is gone when this returns."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def send(self, number: signal.Signals) -> None:
        """A signal."""
        self.process.send_signal(number)

    def close(self) -> None:
        """Kill it, and let go of what it said."""
        self.kill()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def is_listening(path: Path) -> bool:
    """Whether somebody listens at ``path``. Nobody is asked, who may serve one only."""
    lines = (line.split() for line in Path("/proc/net/unix").read_text().splitlines())
    return any(words[3] == _LISTENING and words[-1] == str(path) for words in lines)


def storage_daemon(path: Path, image: Path, *, queues: int = 1) -> Daemon:
    """qemu-storage-daemon with ``image`` at ``path``."""
    return Daemon(
        path,
        STORAGE_DAEMON,
        *("--blockdev", f"driver=file,node-name=file,filename={image}"),
        *("--blockdev", "driver=raw,node-name=disk,file=file"),
        "--export",
        f"type=vhost-user-blk,id=disk,node-name=disk,addr.type=unix,addr.path={path},"
        f"writable=on,num-queues={queues}",
    )


def virtiofsd(path: Path, folder: Path) -> Daemon:
    """virtiofsd that shares ``folder`` at ``path``."""
    options = ("-o", f"source={folder}", "-o", "sandbox=chroot", "-o", "cache=none")
    return Daemon(path, VIRTIOFSD, f"--socket-path={path}", *options)


Answer = Callable[[Message], bytes | None]
"""The payload of a reply, or None: there is none; OSError to hang up."""

OFFERED = (
    bit(Feature.VERSION_1)
    | bit(F_PROTOCOL_FEATURES)
    | bit(disk.Feature.SEG_MAX)
    | bit(disk.Feature.FLUSH)
)
PROTOCOL = sum(
    bit(feature)
    for feature in (
        ProtocolFeature.MQ,
        ProtocolFeature.REPLY_ACK,
        ProtocolFeature.CONFIG,
        ProtocolFeature.BACKEND_REQ,
    )
)
DISK = disk.Space(2048, 0, 126, 512, 0, 1, 1, 1, 1, 1, 1, 1).pack()


class Puppet:
    """A disk at ``path`` that says what it is told to, by request, and does nothing. What was
    ``asked`` of it, and what came with that, it keeps: ``given``, by request."""

    def __init__(self, path: Path, answers: Mapping[Request, Answer] | None = None) -> None:
        self.asked: list[Request] = []
        self.given: dict[Request, list[int]] = {}
        self.lends: dict[Request, list[int]] = {}
        """Descriptors that go with a reply, each time; closed at the end."""
        self.answers: dict[Request, Answer] = {
            Request.GET_FEATURES: lambda _: U64(OFFERED).pack(),
            Request.GET_PROTOCOL_FEATURES: lambda _: U64(PROTOCOL).pack(),
            Request.GET_QUEUE_NUM: lambda _: U64(1).pack(),
            Request.GET_CONFIG: lambda _: ConfigSpace(0, 0, DISK).pack(),
            Request.GET_INFLIGHT_FD: self._get_inflight_fd,
            Request.GET_VRING_BASE: lambda _: VringState(0, 0).pack(),
            **(answers or {}),
        }
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(4)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self._stream: socket.socket | None = None

    def _serve(self) -> None:
        while True:
            try:
                self._stream, _ = self._listener.accept()
            except OSError:
                return
            connection = Connection(self._stream, FROM_FRONT_END)
            try:
                while True:
                    self._answer(connection, connection.wait(DEADLINE))
            except (OSError, ProtocolError):
                connection.close()

    def _answer(self, connection: Connection, message: Message) -> None:
        request = message.request
        self.asked.append(request)
        self.given.setdefault(request, []).extend(message.descriptors)
        answer = self.answers.get(request)
        reply = answer(message) if answer else None
        if answer is None and message.needs_reply:
            reply = U64(0).pack()
        if reply is not None:
            connection.send(request, reply, self.lends.get(request, ()), is_reply=True)

    def _get_inflight_fd(self, message: Message) -> bytes:
        # As libvhost-user makes one.
        told = Inflight.unpack(message.payload)
        size = journal.size_of((told.queue_size,) * told.num_queues) - PAGE_SIZE
        if message.request not in self.lends:
            self.lends[message.request] = [create_memfd("puppet", size)]
        return replace(told, mmap_size=size).pack()

    def say(self, data: bytes) -> None:
        """Send that, unasked."""
        assert self._stream is not None
        self._stream.sendall(data)

    def close(self) -> None:
        """Hang up on everybody."""
        for stream in (self._listener, self._stream):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for given in (*self.given.values(), *self.lends.values()):
            fds.close_all(given)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
