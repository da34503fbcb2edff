"""``python -m launcher.uplink FD``: the process at the far end of a network interface's packets.

It moves packets between the device, which may be killed and replaced meanwhile, and the network. FD
is the handover socket to the launcher. Two threads, one each way, that wait in their calls: who is
slow holds up whoever sends to him, and nobody else.

**user** is passt, which speaks TCP, UDP and ICMP with the host's own sockets, and jails itself: a
user namespace, an empty root, a list of system calls. What it does not give itself, it is given
here: of root, a user that nobody is but this process, too; limits; and death with this
process, whatever it does. It takes packets from a stream: a packet's size in 4 bytes,
big-endian, then the packet. When passt ends, so does this, and the launcher starts another.

**join** is a folder in which each machine has a socket. A packet goes to the socket of whoever has
sent from that address, and to all of them where nobody has: what a switch does, without one. A
machine that is gone leaves a socket that refuses, and whoever notices removes it. What else is in
the folder is left alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import resource
import signal
import socket
import stat
import struct
import sys
import termios
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from protocol import codec, fds, jail, log
from protocol.errors import HostError
from protocol.log import Level
from protocol.specs import UplinkSpec

_logger = logging.getLogger("uplink")

# The largest packet: an Ethernet header with a VLAN tag, and the largest packet of IP.
MOST = 18 + 65535
_LEAST = 14
_ADDRESS = 6

# What a machine's socket is called (launcher.networks).
_MEMBER = re.compile("[0-9a-f]{12}")

_SIZE = struct.Struct(">I")
# Bytes of a stream that are read at once (arbitrary).
_READ = 256 * 1024

# Addresses that are remembered; with more the memory starts afresh (arbitrary).
_MOST_KNOWN = 4096
# Microseconds that a machine may take to make room for a packet (arbitrary): one that has not, is
# not waited for again until it has taken one.
_PATIENCE = 20_000

_EXIT_ENDED = 1

# What passt may have: some 8000 connections, which take it two files each; of memory it has 74 MiB
# when it starts (measured; the rest arbitrary). It writes no file and starts nobody.
_LIMITS = {
    resource.RLIMIT_NOFILE: 16384,
    resource.RLIMIT_NPROC: 0,
    resource.RLIMIT_FSIZE: 0,
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_MEMLOCK: 0,
    resource.RLIMIT_MSGQUEUE: 0,
    resource.RLIMIT_DATA: 512 << 20,
    resource.RLIMIT_AS: 512 << 20,
}
# The first port that anybody may listen at, unless somebody has set another.
_FIRST_FREE_PORT = 1024

Run = Callable[[], object]


def main() -> NoReturn:
    """Be what comes over the handover socket, until the launcher or the network ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    launcher = socket.socket(fileno=int(sys.argv[1]))
    told = fds.receive(launcher)
    if told is None:
        os._exit(0)
    log.set_up(Level.WARN)
    try:
        spec = codec.from_plain(UplinkSpec, codec.unpack(told.payload))
        packets = socket.socket(fileno=told.fds["packets"])
        if spec.kind == "user":
            ways = user(packets, spec)
            jail.give_up_privileges()
        else:
            ways = _join(packets, told.fds)
        jail.die_with_parent(launcher)
        fds.send(launcher, b"", {})
        others = [threading.Thread(target=_until_end, args=[way], daemon=True) for way in ways[1:]]
        for other in others:
            other.start()
        _until_end(ways[0])
    except (HostError, jail.Orphaned) as error:
        _logger.error("%s", error)
    os._exit(_EXIT_ENDED)


def _until_end(way: Run) -> None:
    # Whichever way ends, there is no network any more.
    try:
        way()
    except Exception as error:
        _logger.error("%s: %s", type(error).__name__, error)
    os._exit(_EXIT_ENDED)


# ── user ──────────────────────────────────────────────────────────────────────────────────


def user(packets: socket.socket, spec: UplinkSpec) -> Sequence[Run]:
    """Both ways between ``packets`` and a passt that is started; HostError."""
    ours, theirs = socket.socketpair()
    said, saying = os.pipe2(os.O_CLOEXEC)
    uplink = os.getpid()
    is_low = any(one.host_port < _FIRST_FREE_PORT for one in spec.forwards)
    # One user for both: who is another's is not signalled when this process dies.
    jail.leave_root(jail.LOW_PORTS if is_low else 0)
    with theirs:
        try:
            pid = os.fork()
            if pid == 0:
                _become_passt(theirs.fileno(), saying, spec, uplink)
        except OSError as error:
            raise HostError(f"cannot fork: {error.strerror}") from error
        finally:
            os.close(saying)
    return [
        lambda: _from_passt(ours, packets, pid, said),
        lambda: _to_stream(packets, ours),
    ]


def _become_passt(stream: int, saying: int, spec: UplinkSpec, uplink: int) -> NoReturn:
    # Does not return, whatever happens: above are the uplink's frames.
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(saying, 1)
        os.dup2(saying, 2)
        os.set_inheritable(stream, True)
        jail.limit(_LIMITS)
        # The user namespace that it makes is below its own, so that the kernel does not forget.
        jail.die_with(uplink)
        # It has the launcher's environment, as far as that is passed on (launcher.spawn).
        os.execv(spec.program, [spec.program, *_options(stream, spec)])
    except Exception as error:
        why = error.strerror if isinstance(error, OSError) else error
        os.write(2, f"cannot start {spec.program}: {why}".encode())
    finally:
        os._exit(_EXIT_ENDED)


def _options(stream: int, spec: UplinkSpec) -> list[str]:
    # The guest does not reach the host's loopback by the gateway's address; --quiet would not say
    # why it ends.
    options = ["--foreground", "--stderr", "--no-map-gw", "--fd", str(stream)]
    if spec.mtu:
        options += ["--mtu", str(spec.mtu)]
    for protocol, flag in (("tcp", "--tcp-ports"), ("udp", "--udp-ports")):
        found = [
            f"{one.address}/{one.host_port}:{one.guest_port}"
            for one in spec.forwards
            if one.protocol == protocol
        ]
        for each in found or ["none"]:
            options += [flag, each]
    return options


def _to_stream(packets: socket.socket, stream: socket.socket) -> None:
    buffer = memoryview(bytearray(_SIZE.size + MOST))
    packet = buffer[_SIZE.size :]
    while size := packets.recv_into(packet):
        if leads_to_the_loopback(packet[:size]):
            continue
        _SIZE.pack_into(buffer, 0, size)
        stream.sendall(buffer[: _SIZE.size + size])


def leads_to_the_loopback(packet: memoryview) -> bool:
    """Whether who connects to where ``packet`` goes reaches this host's loopback (RFC 1122,
    3.2.1.3; RFC 4291, 2.5): passt connects to whatever a guest says."""
    kind = bytes(packet[12:14])
    if kind == b"\x08\0":
        return bytes(packet[30:31]) in (b"\0", b"\x7f")
    # None, itself, and all of IPv4.
    return kind == b"\x86\xdd" and bytes(packet[38:48]) == bytes(10)


def _from_passt(stream: socket.socket, packets: socket.socket, pid: int, said: int) -> NoReturn:
    _from_stream(stream, packets)
    os.waitpid(pid, 0)
    raise HostError(f"passt has ended: {_last_words(said)}")


def _from_stream(stream: socket.socket, packets: socket.socket) -> None:
    buffer = memoryview(bytearray(_READ))
    filled = 0
    while count := stream.recv_into(buffer[filled:]):
        filled += count
        start = 0
        while filled - start >= _SIZE.size:
            (size,) = _SIZE.unpack_from(buffer, start)
            if not _LEAST <= size <= MOST:
                raise HostError(f"passt sends a packet of {size} bytes")
            if filled - start < _SIZE.size + size:
                break
            packets.send(buffer[start + _SIZE.size : start + _SIZE.size + size])
            start += _SIZE.size + size
        rest = bytes(buffer[start:filled])
        buffer[: len(rest)] = rest
        filled = len(rest)


def _last_words(said: int) -> str:
    os.set_blocking(said, False)
    with contextlib.suppress(BlockingIOError):
        lines = os.read(said, _READ).decode(errors="replace").splitlines()
        # It minds that there is no syslog.
        said_last = [line for line in lines if line.strip() and "syslog" not in line]
        return said_last[-1] if said_last else "it said nothing"
    return "it said nothing"


# ── join ──────────────────────────────────────────────────────────────────────────────────


def _join(packets: socket.socket, given: Mapping[str, int]) -> Sequence[Run]:
    folder, member = given["folder"], socket.socket(fileno=given["member"])
    os.fchdir(folder)
    name = os.path.basename(member.getsockname())
    jail.give_up_privileges()
    jail.Cell().restrict([(folder, jail.READ | jail.REMOVE_FILE)])
    ethernet = Ethernet(member, name)
    return [lambda: ethernet.to_others(packets), lambda: ethernet.from_others(packets)]


class Ethernet:
    """All that have a socket in the current folder, but for ourselves: ``member``, of that
    ``name``."""

    def __init__(self, member: socket.socket, name: str) -> None:
        self._member = member
        self._name = name
        self.sender = self._new_sender()
        self._known: dict[bytes, str] = {}
        self._slow: set[str] = set()
        self._may_wait = True  # with this packet

    def to_others(self, packets: socket.socket) -> None:
        """Send what comes from ``packets``, until that ends."""
        buffer = memoryview(bytearray(MOST))
        while size := packets.recv_into(buffer):
            packet = buffer[:size]
            self._may_wait = True
            to = bytes(packet[:_ADDRESS])
            other = self._known.get(to)
            if other is not None:
                if not self._send(packet, other):
                    self._known.pop(to, None)
                continue
            for name in filter(_MEMBER.fullmatch, os.listdir()):
                if name != self._name:
                    self._send(packet, name)

    def from_others(self, packets: socket.socket) -> None:
        """Pass on to ``packets`` what comes, for ever."""
        buffer = memoryview(bytearray(MOST))
        while True:
            size, sender = self._member.recvfrom_into(buffer)
            # A socket that has no name is no machine's; an abstract one is bytes.
            name = os.path.basename(os.fsdecode(sender or ""))
            if size < _LEAST or not _MEMBER.fullmatch(name):
                continue
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[bytes(buffer[_ADDRESS : 2 * _ADDRESS])] = name
            packets.send(buffer[:size])

    def _send(self, packet: memoryview, name: str) -> bool:
        # Whether there is such a machine.
        waits = self._may_wait and name not in self._slow
        try:
            self.sender.sendto(packet, 0 if waits else socket.MSG_DONTWAIT, name)
            self._slow.discard(name)
        except BlockingIOError:
            self._may_wait = False
            if self._is_clogged():
                self.sender.close()
                self.sender = self._new_sender()
                return self._send(packet, name)
            self._slow.add(name)
        except (ConnectionRefusedError, FileNotFoundError):
            # Bound before it was there to be found, it would not refuse if it lived. What is no
            # socket refuses, too.
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.lstat(name).st_mode):
                    os.unlink(name)
            self._slow.discard(name)
            return False
        except OSError:
            return False  # no socket; or one of another kind
        return True

    def _new_sender(self) -> socket.socket:
        # Of an abstract name, by whose last part we are known as by our path.
        sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sender.bind(f"\0{os.urandom(_ADDRESS).hex()}/{self._name}")
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, _PATIENCE))
        return sender

    def _is_clogged(self) -> bool:
        # What nobody has taken yet counts against its sender, who then can send to nobody else.
        # Its socket is left to those packets.
        unread = fcntl.ioctl(self.sender, termios.TIOCOUTQ, bytes(4))
        most = self.sender.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        return int.from_bytes(unread, sys.byteorder) >= most


if __name__ == "__main__":
    main()
