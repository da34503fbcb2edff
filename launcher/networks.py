"""What the network interfaces of a machine are connected to, for as long as it runs.

The device has one descriptor, of which each read and each write is a packet. A tap is that already.
Where there is none, it is one end of a pair of sockets, and at the other is a process of ours, the
*uplink* (:mod:`launcher.uplink`). Both ends stay open here, so that neither the death of the device
nor that of the uplink is noticed by the other but as a pause::

    device ── packets ──► tap
    device ── packets ──► uplink ──► passt                        user
                                 └─► a socket of each machine     join=FOLDER

The link is up while the user has not taken it down, and there is an uplink that works.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import re
import shutil
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, cast

from devices.runtime import tap
from launcher.loop import Loop
from launcher.policy import BackOff
from launcher.spawn import Child, start
from protocol import codec, fds, link, stream
from protocol.errors import BadInput
from protocol.specs import Forward, UplinkSpec

_MODULE = "launcher.uplink"

# Where a machine is reached from outside, unless somebody says otherwise.
_LOOPBACK = "127.0.0.1"
_FORWARD = re.compile(r"(tcp|udp):(?:([0-9.]+|\[[0-9a-fA-F:.]+\]):)?([0-9]{1,5}):([0-9]{1,5})")
_LAST_PORT = 0xFFFF

# Bytes of a member's name in the folder of an Ethernet, in hexadecimal, by which it is known there:
# by chance, that no two are the same.
_NAME_SIZE = 6

# Seconds between two looks whether what a dead uplink has left is dead, too (arbitrary).
_LOOK = 0.2


class LinkEnd:
    """Our end of the link of an interface; ``fds`` are the device's, ours to close as well."""

    def __init__(self, name: str) -> None:
        self.fds = {"link": link.create(f"vibevmm-{name}-link")}
        self._wake, self.fds["wake"] = stream.wake_pair()
        self._link = link.Link(self.fds["link"])
        self._is_wanted = self._has_uplink = True

    def set(self, *, wanted: bool | None = None, uplink: bool | None = None) -> None:
        """Whether the user wants it up, and whether there is an uplink that works."""
        self._is_wanted = self._is_wanted if wanted is None else wanted
        self._has_uplink = self._has_uplink if uplink is None else uplink
        self._link.is_up = self._is_wanted and self._has_uplink
        stream.drain(self._wake)  # what the device may have written there is nothing to us
        stream.wake(self._wake)

    def close(self) -> None:
        """Close both ends."""
        self._link.close()
        fds.close_all([self._wake, *self.fds.values()])


@dataclass(slots=True)
class Network:
    """Of one device: how it was asked for, what it has, and what the uplink is given, if any."""

    asked: tuple[str, str]
    link: LinkEnd
    packets: int
    spec: UplinkSpec | None = None
    uplink: dict[str, int] = field(default_factory=dict)

    def close(self) -> None:
        """Close everything."""
        self.link.close()
        fds.close_all([self.packets, *self.uplink.values()])


class Networks:
    """Of a machine's devices, by name. What is made in the file system is told to ``clean_up``, to
    be removed in the end."""

    def __init__(self, clean_up: Callable[[str], object]) -> None:
        self._clean_up = clean_up
        self._folders: list[str] = []
        self.by_device: dict[str, Network] = {}

    def descriptors(self, device: str, kind: str, where: str, mtu: int) -> dict[str, int]:
        """See devices.runtime.device.Host.network."""
        known = self.by_device.get(device)
        if known is None:
            known = self.by_device[device] = self._connect(device, kind, where, mtu)
        elif known.asked != (kind, where):
            raise BadInput(_key(kind), "an interface that runs stays connected to what it is")
        found = {"packets": known.packets, **known.link.fds}
        return {name: os.dup(fd) for name, fd in found.items()}

    def _connect(self, device: str, kind: str, where: str, mtu: int) -> Network:
        asked = kind, where
        if kind == "tap":
            opened = _open_tap(where, mtu)
            return Network(asked, LinkEnd(device), opened)
        if kind == "user":
            forwards = read_forwards(where)
            spec, handed = UplinkSpec("user", mtu, find_passt(), forwards), dict[str, int]()
            check_ports(forwards)
        else:
            spec, handed = UplinkSpec("join", mtu), self._join(where)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        handed["packets"] = theirs.detach()
        return Network(asked, LinkEnd(device), ours.detach(), spec, handed)

    def _join(self, path: str) -> dict[str, int]:
        # A socket of our own in the folder, bound here: there from the start, and if we are killed
        # the VMM removes it.
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
                self._folders.append(path)
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise BadInput("join", f"{path}: {why}") from error
        name = os.urandom(_NAME_SIZE).hex()
        member = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            # A path of any length; the others know us by its last part.
            member.bind(f"/proc/self/fd/{folder}/{name}")
            self._clean_up(os.path.join(path, name))
        except OSError as error:
            os.close(folder)
            member.close()
            raise BadInput("join", f"{path}: {error.strerror}") from error
        except BadInput:
            os.close(folder)
            member.close()
            raise
        return {"folder": folder, "member": member.detach()}

    def close(self) -> None:
        """Close everything. Folders that were made here are removed once nobody is in there."""
        for network in self.by_device.values():
            network.close()
        self.by_device.clear()

    def remove_folders(self) -> None:
        """Those that were made here, and that nobody else is in, now that we are not."""
        for folder in self._folders:
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        self._folders.clear()


def _key(kind: str) -> str:
    return "forward" if kind == "user" else kind


def _open_tap(name: str, mtu: int) -> int:
    was_there = _is_there(name)
    try:
        opened = tap.open_tap(name)
    except OSError as error:
        raise BadInput("tap", f"{name}: {_why(error, was_there)}") from error
    try:
        if not was_there:
            tap.up(name, mtu)
    except OSError as error:
        os.close(opened)
        raise BadInput(
            "tap", f"{name} was made, and cannot be brought up: {error.strerror}"
        ) from error
    return opened


def _is_there(name: str) -> bool:
    # By the kernel: /sys may be of another network.
    with contextlib.suppress(OSError):
        return socket.if_nametoindex(name) > 0
    return False


def _why(error: OSError, was_there: bool) -> str:
    if error.filename or error.errno in (errno.ENOENT, errno.ENODEV, errno.EACCES):
        return f"/dev/net/tun: {error.strerror}"
    if error.errno == errno.EBUSY:
        return "is in use: by another process, or twice in this run"
    if error.errno == errno.EPERM and not was_there:
        return (
            "there is no such interface, and making one takes root; as root: "
            "ip tuntap add NAME mode tap user USER"
        )
    if error.errno == errno.EPERM:
        return "this tap belongs to somebody else; as root: ip tuntap add NAME mode tap user USER"
    if error.errno == errno.EINVAL and was_there:
        return "this interface is no tap, or one with several queues"
    return error.strerror or str(error)


# ── user ──────────────────────────────────────────────────────────────────────────────────


def read_forwards(text: str) -> tuple[Forward, ...]:
    """What ``tcp:8080:80+udp:127.0.0.1:53:53`` says; BadInput."""
    return tuple(_forward(part) for part in text.split("+")) if text else ()


def _forward(text: str) -> Forward:
    found = _FORWARD.fullmatch(text)
    with contextlib.suppress(ValueError):
        if found is not None:
            protocol, address, *ports = found.groups(_LOOPBACK)
            listened = str(ipaddress.ip_address(address.strip("[]")))
            host, guest = map(int, ports)
            if 0 < host <= _LAST_PORT and 0 < guest <= _LAST_PORT:
                return Forward(cast(Literal["tcp", "udp"], protocol), listened, host, guest)
    raise BadInput("forward", f"{text!r} is not tcp:8080:80 or tcp:127.0.0.1:8080:80, or udp")


def find_passt() -> str:
    """Where it is; BadInput."""
    if (found := shutil.which("passt")) is None:
        raise BadInput("user", "passt is not installed; Debian: apt-get install passt")
    return os.path.abspath(found)


def check_ports(forwards: tuple[Forward, ...]) -> None:
    """BadInput if one that is to be listened at cannot be."""
    for one in forwards:
        family = socket.AF_INET6 if ":" in one.address else socket.AF_INET
        kind = socket.SOCK_STREAM if one.protocol == "tcp" else socket.SOCK_DGRAM
        try:
            with socket.socket(family, kind) as probe:
                if one.protocol == "tcp":
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((one.address, one.host_port))
        except OSError as error:
            what = f"{one.protocol}:{one.address}:{one.host_port}"
            raise BadInput("forward", f"{what}: {error.strerror}") from error


# ── uplinks ───────────────────────────────────────────────────────────────────────────────


class Uplinks:
    """The processes of those of ``networks`` that have one. Each is told to ``welcome``; who dies
    is followed by another, and meanwhile there is no link."""

    def __init__(
        self,
        networks: Mapping[str, Network],
        loop: Loop,
        welcome: Callable[[Child], object],
    ) -> None:
        self._networks = networks
        self._loop = loop
        self._welcome = welcome
        self._children: dict[Child, str] = {}
        self._back_offs: dict[str, BackOff] = {}
        self._is_ended = False

    def begin(self) -> None:
        """Start them all; HostError."""
        for device, network in self._networks.items():
            if network.spec is not None:
                self._back_offs[device] = BackOff()
                self._start(device, network)

    def end(self) -> None:
        """Start none any more, and end those that there are."""
        self._is_ended = True
        for child in self._children:
            child.kill()

    def _start(self, device: str, network: Network) -> None:
        if self._is_ended:
            return
        assert network.spec is not None
        child = start(f"{device}.{network.spec.kind}", _MODULE)  # no device's name has a dot
        self._children[child] = device
        self._welcome(child)
        spec = codec.pack(codec.to_plain(network.spec))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its death is noticed
            fds.send(child.handover, spec, network.uplink)
        self._loop.on_readable(child.handover.fileno(), partial(self._works, child))

    def _works(self, child: Child) -> None:
        # Or is dead, of which its pidfd tells.
        self._loop.on_readable(child.handover.fileno(), None)
        if fds.receive(child.handover) is not None:
            device = self._children[child]
            self._back_offs[device].served()
            self._networks[device].link.set(uplink=True)

    def died(self, child: Child) -> bool:
        """``child`` is dead: whether it was one of them."""
        if (device := self._children.pop(child, None)) is None:
            return False
        self._loop.on_readable(child.handover.fileno(), None)
        network = self._networks[device]
        network.link.set(uplink=False)
        delay = self._back_offs[device].delay()
        self._loop.after(delay, partial(self._start, device, network))
        self._reap(child.pid)
        return True

    def _reap(self, group: int) -> None:
        # What an uplink has started ends a little later than it, and is ours then.
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-group, os.WNOHANG)[0]:
                pass
            self._loop.after(_LOOK, partial(self._reap, group))
