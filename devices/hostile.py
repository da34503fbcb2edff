"""A device that has been taken over, and tries one thing: what `vibevmm attack` is made of.

It has no word in the table of kinds: only who names this module gets it, in a machine of his own.
Each deed is a method. It returns the evidence that it has done what it wanted, or fails with the
error that kept it from that; which is written to the log, for launcher.attack to read. One that the
kernel or the VMM ends says nothing: there somebody else tells.

Whatever a deed may need is imported here, for behind the seal there are no files; and it is done
with the means of an attacker, who has the whole process: descriptors, memory, the channel.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, cast

import msgpack

from devices.runtime.device import Device, Runtime, virtqueue
from protocol import control as wire
from protocol import messages, service
from protocol.channel import LENGTH, Channel
from protocol.codec import MAX_MESSAGE
from protocol.errors import Unheard
from protocol.ring import Chain
from protocol.virtio import DeviceId

CANARY = b"VIBE-CANARY-PAGE"
"""How the page begins that no device is given; the guest's secret is behind it."""

SUCCEEDED, FAILED = "attack succeeded: ", "attack failed: "
"""What the log says of a deed that was done, or was refused; the evidence follows."""

_PAGE = 4096

# As much as no device of ours asks for, and no host notices (all arbitrary).
_MUCH_MEMORY, _MANY_DESCRIPTORS, _MANY_PROCESSES, _MANY_LINES = 1 << 30, 512, 32, 5000
_MANY_ADDRESSES = 128 << 30
_MUCH_SENT = 64 << 20
_STORM_SECONDS, _LATE_SECONDS, _FLOOD_SECONDS = 0.3, 0.3, 0.6

# <linux/ptrace.h>, <asm/unistd.h>, <linux/mman.h>, <linux/prctl.h>, <linux/keyctl.h>
_PTRACE_SEIZE = 0x4206
_IO_URING_SETUP = 425
_MAP_GROWSDOWN, _MAP_NORESERVE = 0x100, 0x4000
_PR_SET_PDEATHSIG = 1
KEYCTL_READ_SESSION = ({"x86_64": 250, "aarch64": 219}[os.uname().machine], 11, -3)
"""The system call that reads the session's keyring, without the buffer and its size."""

_libc = ctypes.CDLL(None, use_errno=True)


def _family() -> dict[str, int]:
    # The launcher's pid and those of all its children, by name: while there is a /proc. As ours is
    # the host's, its numbers are, whatever namespace we are in.
    try:
        launcher = _status("self")[1]
        found = {"launcher": launcher}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            name, parent = _status(pid)
            if parent == launcher:
                found[name] = int(pid)
    except OSError:
        return {}
    return found


def _status(pid: str) -> tuple[str, int]:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            name, _, rest = stat.read().partition("(")[2].rpartition(")")
        with open(f"/proc/{pid}/cmdline") as words:
            name = "vmm" if "vmm.entry" in words.read() else name
    except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        return "", 0
    return name, int(rest.split()[1])


_FAMILY = _family()


@dataclass(frozen=True, slots=True)
class Config:
    """What it tries, and at what."""

    attack: str
    """A name of DEEDS."""
    machine: str = ""
    """The run directory of its machine."""
    bait: str = ""
    """A directory with a ``secret`` file and a ``socket`` on which somebody listens; that has the
    same path as its name among the abstract ones."""
    port: int = 0
    """Of a TCP listener on this host."""
    victim: str = "victim"
    """The device beside it."""


class Hostile(Device[Config]):
    """Does its deed at the first chain, or before the seal, or when its configuration is written,
    and answers all others like a device that does nothing."""

    device_id = DeviceId.NULL

    def __init__(self, config: Config, fds: Mapping[str, int], runtime: Runtime) -> None:
        super().__init__(config, fds, runtime)
        self._worker = cast(Any, runtime)
        self._setups: tuple[messages.QueueSetup, ...] = ()
        self._changes = 0
        start = self._worker.start

        def spy(features: int, setups: tuple[messages.QueueSetup, ...], state: bytes = b"") -> None:
            self._setups = setups
            start(features, setups, state)

        self._worker.start = spy
        self._deed = DEEDS[config.attack]
        if config.attack.startswith("early-"):
            self._attempt(partial(self._deed, self, None))

    def config_space(self) -> bytes:
        """Two words that are always the same."""
        return self._changes.to_bytes(4, "little") * 2

    def write_config(self, offset: int, data: bytes) -> None:
        """The driver writes it once, before its chain."""
        # The first of its processes: the end of the journal's first page is nobody's, and stays for
        # those to come.
        journal = self._worker.journal._view
        if self.config.attack == "hang-on-config" and not journal[_PAGE - 1]:
            journal[_PAGE - 1] = 1
            threading.Event().wait()

    @virtqueue(0, size=64)
    def requestq(self, chain: Chain) -> int:
        """Do it."""
        if self.config.attack.startswith("early-"):
            return 0
        written = self._attempt(partial(self._deed, self, chain))
        return written if isinstance(written, int) else 0

    def fail(self, index: int, chain: Chain) -> int:
        """A successor: all quiet."""
        # At a longer answer the guest looks for longer.
        is_watched = self.config.attack == "write-late"
        return chain.writable.write(b"quiet, from here on" if is_watched else b"quiet")

    def _attempt(self, deed: Callable[[], Any]) -> Any:
        try:
            evidence = deed()
        except OSError as error:
            _say(f"{FAILED}{errno.errorcode.get(error.errno or 0, 'error')} ({error.strerror})")
        except MemoryError:
            _say(f"{FAILED}ENOMEM (no more memory)")
        except NotFound as error:
            _say(f"{FAILED}{error}")
        else:
            if isinstance(evidence, str):
                _say(f"{SUCCEEDED}{evidence}")
            return evidence
        return 0

    # ── memory ────────────────────────────────────────────────────────────────────────

    def _find(self, what: bytes) -> tuple[memoryview, int]:
        # All that is mapped of what was handed over, and where in it that is; NotFound.
        whole: memoryview = self._worker.memory.whole
        if (found := re.search(re.escape(what), whole)) is None:
            raise NotFound(f"no canary in the {len(whole)} bytes that are mapped")
        return whole, found.start()

    def read_canary(self, chain: Chain) -> str:
        """Look at every page that is mapped."""
        whole, page = self._find(CANARY)
        return whole[page + 16 : page + 28].hex()

    def write_canary(self, chain: Chain) -> str:
        """The same, and write to it."""
        whole, page = self._find(CANARY)
        whole[page + 16 : page + 32] = b"overwritten page"
        return f"16 bytes at offset {page:#x}"

    def write_late(self, chain: Chain) -> int:
        """Write for ever, until somebody ends that."""
        number = 0
        while True:
            number += 1
            chain.writable.write(b"%d" % number)

    def write_given_back(self, chain: Chain) -> int:
        """Complete a buffer, and go on writing to where it lies."""
        token = b"%016x" % time.monotonic_ns()
        written = chain.writable.write(token)
        self._go_on(*self._find(token), time.monotonic() + _LATE_SECONDS)
        return written

    def _go_on(self, whole: memoryview, place: int, until: float) -> None:
        whole[place : place + 16] = b"%016x" % time.monotonic_ns()
        if time.monotonic() < until:
            self.soon(partial(self._go_on, whole, place, until))

    def corrupt_used(self, chain: Chain) -> int:
        """Claim to have completed forty chains."""
        (setup,) = self._setups
        memory = self._worker.memory
        idx = int.from_bytes(memory.read(setup.used + 2, 2), "little")
        for entry in range(setup.size):
            element = (9999).to_bytes(4, "little") + b"\xff" * 4
            memory.write(setup.used + 4 + 8 * entry, element)
        memory.write(setup.used + 2, ((idx + 40) & 0xFFFF).to_bytes(2, "little"))
        os.write(self.fds["call"], (1).to_bytes(8, sys.byteorder))
        while True:  # what the runtime would publish now would be right
            threading.Event().wait()

    def corrupt_journal(self, chain: Chain) -> int:
        """Leave the worst to a successor."""
        whole = self._worker.journal._view
        whole[:] = b"\xff" * len(whole)
        os._exit(1)

    def shrink_memory(self, chain: Chain) -> str:
        """Whoever touches it then gets SIGBUS."""
        os.ftruncate(self.fds["memory"], 0)
        return "guest memory has no bytes"

    def take_memory(self, chain: Chain) -> str:
        """More than any device needs; it would only have to be touched."""
        mmap.mmap(-1, _MUCH_MEMORY, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
        return f"{_MUCH_MEMORY} bytes"

    def take_shared_memory(self, chain: Chain) -> str:
        """The same, of a kind that no limit on data counts."""
        mmap.mmap(-1, _MUCH_MEMORY, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS).close()
        return f"{_MUCH_MEMORY} bytes"

    def grow_stack(self, chain: Chain) -> str:
        """The same, of a kind that passes for a stack."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_GROWSDOWN
        mmap.mmap(-1, _MUCH_MEMORY, flags=flags).close()
        return f"{_MUCH_MEMORY} bytes"

    def take_page_tables(self, chain: Chain) -> str:
        """Of memory that is only read, the kernel has one page, and page tables for each look."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        mmap.mmap(-1, _MANY_ADDRESSES, flags=flags, prot=mmap.PROT_READ).close()
        return f"{_MANY_ADDRESSES} bytes of addresses"

    def map_executable(self, chain: Chain) -> str:
        """Memory in which code could be put."""
        mmap.mmap(-1, _PAGE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
        return "a page that can be written and executed"

    def read_neighbour(self, chain: Chain) -> str:
        """Whoever lives in the same process."""
        found = [each for each in gc.get_objects() if isinstance(each, Device) and each is not self]
        if not found:
            raise NotFound("no other device is in this process")
        return f"{type(found[0]).__name__}, which holds {', '.join(found[0].fds)}"

    # ── files ─────────────────────────────────────────────────────────────────────────

    def read_file(self, chain: Chain | None) -> str:
        """A secret of the user's."""
        return _content(os.path.join(self.config.bait, "secret"))

    def read_passwd(self, chain: Chain) -> str:
        """What every process may read."""
        return _content("/etc/passwd")[:20]

    def read_proc(self, chain: Chain) -> str:
        """The launcher's environment, of its user's."""
        _content(f"/proc/{_pid('launcher')}/environ")
        return "the launcher's environment"

    def open_kvm(self, chain: Chain) -> str:
        """Make virtual machines."""
        os.close(os.open("/dev/kvm", os.O_RDWR))
        return "/dev/kvm"

    def list_machine(self, chain: Chain) -> str:
        """The run directory."""
        return ", ".join(sorted(os.listdir(self.config.machine)))

    def reopen(self, chain: Chain) -> str:
        """What was handed over, again, as a file of its own."""
        fd = os.open(f"/proc/self/fd/{self.fds['memory']}", os.O_RDWR)
        os.close(fd)
        return "guest memory, opened again"

    def take_descriptors(self, chain: Chain) -> str:
        """Until there are none."""
        for _ in range(_MANY_DESCRIPTORS):
            os.dup(1)
        return f"{_MANY_DESCRIPTORS} descriptors"

    # ── sockets ───────────────────────────────────────────────────────────────────────

    def connect_tcp(self, chain: Chain | None) -> str:
        """The host's network."""
        with socket.socket() as found:
            found.settimeout(1)
            found.connect((b"127.0.0.1", self.config.port))  # a name would be looked up, in files
            return _greeted(found)

    def connect_abstract(self, chain: Chain | None) -> str:
        """A socket without a file."""
        return _met("\0" + os.path.join(self.config.bait, "socket"))

    def connect_path(self, chain: Chain) -> str:
        """A socket with one."""
        return _met(os.path.join(self.config.bait, "socket"))

    def connect_control(self, chain: Chain) -> str:
        """The control interface of its machine."""
        return _met(os.path.join(self.config.machine, "control"))

    def connect_neighbour(self, chain: Chain) -> str:
        """Another device's channel."""
        return _met(os.path.join(self.config.machine, f"{self.config.victim}.1"))

    def connect_vmm(self, chain: Chain) -> str:
        """The launcher's own."""
        return _met(os.path.join(self.config.machine, "vmm"))

    def kill_neighbour(self, chain: Chain) -> str:
        """Over the control interface: as the user could."""
        client = service.Client(os.path.join(self.config.machine, "control"))
        client.send(wire.encode(wire.Kill(self.config.victim), 1))
        if (answer := client.receive(2)) is None:
            raise NotFound("the control interface does not answer")
        return type(wire.decode(answer, wire.FROM_LAUNCHER).message).__name__

    def send_descriptor(self, chain: Chain) -> str:
        """Guest memory to somebody outside."""
        with socket.socket(socket.AF_UNIX) as outside:
            outside.connect(os.path.join(self.config.bait, "socket"))
            outside.recv(64)  # or all that is sent would be lost with it
            socket.send_fds(outside, [b"memory"], [self.fds["memory"]])
        return "guest memory, sent away"

    def receive_descriptor(self, chain: Chain) -> str:
        """A file that somebody outside has opened."""
        with socket.socket(socket.AF_UNIX) as outside:
            outside.connect(os.path.join(self.config.bait, "socket"))
            _, (fd, *_), _, _ = socket.recv_fds(outside, 64, 1)
        return os.pread(fd, 64, 0).decode()

    # ── processes ─────────────────────────────────────────────────────────────────────

    def trace_neighbour(self, chain: Chain) -> NoReturn:
        """Look into another device."""
        self._trace(self.config.victim)

    def trace_vmm(self, chain: Chain) -> NoReturn:
        """Look into the VMM."""
        self._trace("vmm")

    def _trace(self, name: str) -> NoReturn:
        pid = _pid(name)
        _check(_libc.ptrace(_PTRACE_SEIZE, pid, None, None))
        # Who is traced stops at the next signal; the end of the tracer lets go.
        _say(f"{SUCCEEDED}{name}, process {pid}")
        os._exit(0)

    def signal_neighbour(self, chain: Chain) -> str:
        """One that does nothing: that it may be sent is enough."""
        return self._signal(self.config.victim)

    def signal_vmm(self, chain: Chain) -> str:
        """The same to the VMM."""
        return self._signal("vmm")

    def signal_launcher(self, chain: Chain) -> str:
        """The same to the launcher."""
        return self._signal("launcher")

    def _signal(self, name: str) -> str:
        pid = _pid(name)
        os.kill(pid, signal.SIGCONT)
        return f"{name}, process {pid}"

    def fork_bomb(self, chain: Chain) -> str:
        """Not for ever: a handful that sleep."""
        children = []
        try:
            for _ in range(_MANY_PROCESSES):
                if not (child := os.fork()):
                    signal.pause()
                children.append(child)
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        return f"{len(children)} processes"

    def execute(self, chain: Chain) -> str:
        """Another program."""
        child = os.posix_spawn("/bin/true", ["true"], {})
        return f"/bin/true ended with {os.waitpid(child, 0)[1]}"

    def outlive(self, chain: Chain | None) -> str:
        """Not to be killed when the launcher is gone."""
        _check(_libc.prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0))
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # it was enough that it could
        return "it would not die with the launcher"

    def read_keyring(self, chain: Chain | None) -> str:
        """The keys of the session in which the launcher was started."""
        found = ctypes.create_string_buffer(4096)
        size = _check(_libc.syscall(*KEYCTL_READ_SESSION, found, len(found), 0))
        return f"a keyring of {size // 4} keys"

    def io_uring(self, chain: Chain) -> str:
        """Operations that no filter sees."""
        os.close(_check(_libc.syscall(_IO_URING_SETUP, 8, ctypes.create_string_buffer(120))))
        return "a ring"

    # ── what it says ──────────────────────────────────────────────────────────────────

    def _channel(self) -> Channel:
        return next(each for each in gc.get_objects() if isinstance(each, Channel))

    def forge_hello(self, chain: Chain) -> int:
        """Say that it is another."""
        hello = messages.Hello(
            messages.PROTOCOL_VERSION,
            messages.STATE_VERSION,
            "rng",
            DeviceId.ENTROPY,
            0,
            (64,),
            b"",
        )
        self._channel().send(hello)
        return self._linger()

    def forge_reply(self, chain: Chain) -> int:
        """Answer what nobody has asked it, but perhaps another."""
        self._channel().send(messages.Done(), 77)
        return self._linger()

    def forge_generation(self, chain: Chain) -> int:
        """Speak for the process that will be its successor, without end."""
        channel = self._channel()
        channel._generation += 1
        return self._flood(partial(channel.send, messages.ConfigChanged(b"")))

    def send_malformed(self, chain: Chain) -> int:
        """What is no message."""
        return self._send(b"\xc1 this is no message")

    def send_deep(self, chain: Chain) -> int:
        """An array in an array, fifty thousand times."""
        return self._send(b"\x91" * 50_000)

    def send_huge(self, chain: Chain) -> int:
        """One byte more than a message may have."""
        return self._send(bytes(MAX_MESSAGE + 1))

    def send_long(self, chain: Chain) -> int:
        """As many empty arrays as fit into one message."""
        return self._send(msgpack.packb([[]] * (MAX_MESSAGE - 100)))

    def send_unending(self, chain: Chain) -> int:
        """Bytes that never come to a message, whether anybody reads them or not."""
        data, given = LENGTH.pack(MAX_MESSAGE) + bytes(MAX_MESSAGE - 1), 0
        while given < _MUCH_SENT:
            given += self._write(data)
            data = b"\xc1" * MAX_MESSAGE
        return 0

    def send_crumbs(self, chain: Chain) -> int:
        """A message byte by byte, each of which wakes whoever reads it."""
        for byte in LENGTH.pack(MAX_MESSAGE) + bytes(MAX_MESSAGE - 1):
            while not self._write(bytes([byte])):
                threading.Event().wait(0.001)
        return self._linger()

    def send_endless(self, chain: Chain) -> int:
        """Events, as fast as they go."""
        return self._flood(partial(self._channel().send, messages.ConfigChanged(bytes(8))))

    def _send(self, frame: bytes) -> int:
        self._write(LENGTH.pack(len(frame)) + frame)
        return self._linger()

    def _write(self, data: bytes) -> int:
        # Past libzmq; how much of it there was room for.
        return int(max(0, _libc.send(self._socket(), data, len(data), 0)))

    def _socket(self) -> int:
        # The only one that it has: nothing can be sent there, and nowhere else.
        return next(fd for fd in range(3, 64) if _libc.send(fd, b"", 0, 0) == 0)

    def _flood(self, send: Callable[[], None]) -> int:
        until = time.monotonic() + _FLOOD_SECONDS
        while time.monotonic() < until:
            try:
                send()
            except Unheard:
                threading.Event().wait(0.001)
        return 0

    def _linger(self) -> int:
        # Until the VMM has read it; it ends who broke the protocol.
        threading.Event().wait(1)
        return 0

    def flood_log(self, chain: Chain) -> int:
        """Fill the user's disk."""
        for number in range(_MANY_LINES):
            _say(f"line {number} {'x' * 100} \x1b[2J")
        return 0

    def interrupt_storm(self, chain: Chain) -> int:
        """As fast as it can."""
        until, one = time.monotonic() + _STORM_SECONDS, (1).to_bytes(8, sys.byteorder)
        while time.monotonic() < until:
            os.write(self.fds["call"], one)
        return 0

    def change_config(self, chain: Chain) -> int:
        """A new configuration with each chain."""
        self._changes = (self._changes + 0x01010101) & 0xFFFFFFFF
        self.config_changed()
        return chain.writable.write(b"changed")

    def nothing(self, chain: Chain) -> int:
        """What a device does that only hangs elsewhere, or is harmless."""
        return 0


def _pid(name: str) -> int:
    if name not in _FAMILY:
        raise NotFound(f"no process of {name} is in sight")
    return _FAMILY[name]


class NotFound(Exception):
    """There is nothing to do it to."""


def _check(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _say(text: str) -> None:
    # Not through the logging module: the line is to be one write.
    os.write(2, f"W {text}\n".encode())


def _content(path: str) -> str:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 64).decode()
    finally:
        os.close(fd)


def _met(address: str) -> str:
    with socket.socket(socket.AF_UNIX) as found:
        found.settimeout(1)
        found.connect(address)
        return _greeted(found)


def _greeted(found: socket.socket) -> str:
    # ZeroMQ, and whoever listens to find out, says something first.
    return f"greeted with {found.recv(10).hex()}"


DEEDS: dict[str, Callable[[Hostile, Any], Any]] = {
    "read-canary": Hostile.read_canary,
    "write-canary": Hostile.write_canary,
    "write-late": Hostile.write_late,
    "write-given-back": Hostile.write_given_back,
    "corrupt-used": Hostile.corrupt_used,
    "corrupt-journal": Hostile.corrupt_journal,
    "shrink-memory": Hostile.shrink_memory,
    "exhaust-memory": Hostile.take_memory,
    "exhaust-shared-memory": Hostile.take_shared_memory,
    "grow-stack": Hostile.grow_stack,
    "exhaust-page-tables": Hostile.take_page_tables,
    "map-executable": Hostile.map_executable,
    "read-neighbour": Hostile.read_neighbour,
    "read-file": Hostile.read_file,
    "early-read-file": Hostile.read_file,
    "read-passwd": Hostile.read_passwd,
    "read-proc": Hostile.read_proc,
    "open-kvm": Hostile.open_kvm,
    "list-machine": Hostile.list_machine,
    "reopen-descriptor": Hostile.reopen,
    "exhaust-descriptors": Hostile.take_descriptors,
    "connect-tcp": Hostile.connect_tcp,
    "early-connect-tcp": Hostile.connect_tcp,
    "connect-abstract": Hostile.connect_abstract,
    "early-connect-abstract": Hostile.connect_abstract,
    "connect-path": Hostile.connect_path,
    "connect-control": Hostile.connect_control,
    "connect-neighbour": Hostile.connect_neighbour,
    "connect-vmm": Hostile.connect_vmm,
    "kill-neighbour": Hostile.kill_neighbour,
    "send-descriptor": Hostile.send_descriptor,
    "receive-descriptor": Hostile.receive_descriptor,
    "trace-neighbour": Hostile.trace_neighbour,
    "trace-vmm": Hostile.trace_vmm,
    "signal-neighbour": Hostile.signal_neighbour,
    "signal-vmm": Hostile.signal_vmm,
    "signal-launcher": Hostile.signal_launcher,
    "fork-bomb": Hostile.fork_bomb,
    "execute": Hostile.execute,
    "early-outlive": Hostile.outlive,
    "early-read-keyring": Hostile.read_keyring,
    "io-uring": Hostile.io_uring,
    "forge-hello": Hostile.forge_hello,
    "forge-reply": Hostile.forge_reply,
    "forge-generation": Hostile.forge_generation,
    "send-malformed": Hostile.send_malformed,
    "send-deep": Hostile.send_deep,
    "send-huge": Hostile.send_huge,
    "send-long": Hostile.send_long,
    "send-crumbs": Hostile.send_crumbs,
    "send-unending": Hostile.send_unending,
    "send-endless": Hostile.send_endless,
    "flood-log": Hostile.flood_log,
    "interrupt-storm": Hostile.interrupt_storm,
    "hang-on-config": Hostile.nothing,
    "change-config": Hostile.change_config,
}
"""Every deed by its name."""
