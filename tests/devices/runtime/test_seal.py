"""The seal: what is left of a device's rights, in every thread, and what happens to who tries."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from devices import blk
from devices.kinds import KINDS, find
from devices.runtime.seal import COMMON, Seal
from protocol import jail
from protocol.errors import HostError
from protocol.messages import PROTOCOL_VERSION, STATE_VERSION, Hello, Welcome
from tests.support import marksman, ringed_blk
from tests.support.device_host import ROOT, DeviceHost
from tests.support.odd_devices import Config

Boot = Callable[..., DeviceHost]

ROGUE = "tests.support.odd_devices:Rogue"
MARKSMAN = "tests.support.marksman:Marksman"
RINGED = "tests.support.ringed_blk:RingedBlk"
FORKER = "tests.support.odd_devices:Forker"
OPENER = "tests.support.odd_devices:Opener"

SYS_PRCTL = {"x86_64": 157, "aarch64": 167}[os.uname().machine]
SYS_IO_URING_SETUP = 425  # on each

# Ours and libzmq's two, and one that sends packets.
_THREADS = {"net": 4}

# The lines of /proc/PID/task/TID/status that the seal is about.
_SEALED = {
    "CapInh": "0000000000000000",
    "CapPrm": "0000000000000000",
    "CapEff": "0000000000000000",
    "CapBnd": "0000000000000000",
    "CapAmb": "0000000000000000",
    "NoNewPrivs": "1",
    "Seccomp": "2",
    "Seccomp_filters": "2",
}


def status(folder: Path) -> dict[str, str]:
    """A thread's status file as a table."""
    lines = (line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    return {name: value.strip() for name, value in lines}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_thread_of_a_sealed_device_has_lost_the_same(boot: Boot, kind: str) -> None:
    host = boot(kind)
    host.start()

    threads = [status(task) for task in Path(f"/proc/{host.process.pid}/task").iterdir()]

    assert len(threads) == _THREADS.get(kind, 3)
    for thread in threads:
        assert {name: thread[name] for name in _SEALED} == _SEALED, thread["Name"]
        assert not int(thread["SigBlk"], 16) >> (signal.SIGSYS - 1) & 1, thread["Name"]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_thread_of_a_sealed_device_is_in_the_same_namespaces_and_none_is_ours(
    boot: Boot, kind: str
) -> None:
    host = boot(kind)

    tasks = list(Path(f"/proc/{host.process.pid}/task").iterdir())

    assert len(tasks) == _THREADS.get(kind, 3)
    for name in ("user", "net", "ipc", "uts", "mnt"):
        (theirs,) = {os.readlink(task / "ns" / name) for task in tasks}
        assert theirs != os.readlink(f"/proc/self/ns/{name}"), name
    # A pid namespace is made by a midwife (tests/guest/test_jail.py).
    assert host.sealed is not None
    assert host.sealed.parts == ("user", "net", "ipc", "uts", "mount", "landlock")


@pytest.mark.parametrize(
    ("deed", "call"),
    [
        ("open", "openat"),
        ("socket", "socket"),
        ("execute", "execve"),
        ("fork", "clone"),
        ("kill", "kill"),
        ("executable", "mmap"),
        ("shared-memory", "mmap"),
        ("stack", "mmap"),
    ],
)
def test_a_device_that_does_what_it_may_not_dies_and_says_what(
    boot: Boot, deed: str, call: str
) -> None:
    host = boot("rogue", Config(deed), register=ROGUE)
    host.start()
    host.drivers[0].add([b"go"])
    host.publish()

    assert host.wait() == -signal.SIGSYS
    assert f"E forbidden system call {call} (" in host.log()


@pytest.mark.parametrize("manner", ["errno", "log"])
def test_a_device_may_be_told_that_it_may_not_and_live_on(boot: Boot, manner: str) -> None:
    host = boot("rogue", Config("ask"), register=ROGUE, start=False)
    host.hand_over(on_violation=manner)
    host.greet()
    host.start()

    for _ in range(40):
        used = host.send([], [64])
        assert used.data == f"{errno.EPERM} {errno.EPERM}".encode()

    lines = [line for line in host.log().splitlines() if "forbidden system call" in line]
    if manner == "errno":
        assert lines == []
    else:
        # Ten of the eighty, were it within two seconds: a few of each second.
        assert 1 <= len(lines) < 80
        assert re.fullmatch(r"W forbidden system call openat \(257\) at \S+\+0x[0-9a-f]+", lines[0])
        assert "odd_devices.py" in host.log()  # the stack


def test_a_device_has_no_io_uring(boot: Boot) -> None:
    host = boot("rogue", Config("uring"), register=ROGUE)
    host.start()
    host.drivers[0].add([b"go"])
    host.publish()

    assert host.wait() == -signal.SIGSYS
    assert "E forbidden system call io_uring_setup (" in host.log()


@pytest.mark.parametrize("deed", ringed_blk.DEEDS)
def test_a_disk_with_an_io_uring_may_enter_that_one_and_nothing_else(
    boot: Boot, image: Path, deed: str
) -> None:
    host = boot("ringed", blk.Config(str(image), engine="io_uring", serial=deed), register=RINGED)
    host.start()
    used = host.send([struct.pack("<IIQ", blk.Request.IN, 0, 0)], [512, 1])
    assert used.data == image.read_bytes()[:512] + bytes([blk.Status.OK])
    assert host.counters()["reads"] == 1

    host.drivers[0].add([struct.pack("<IIQ", blk.Request.GET_ID, 0, 0)], [20, 1])
    host.publish()

    assert host.wait() == -signal.SIGSYS
    call, _ = ringed_blk.DEEDS[deed]
    assert f"E forbidden system call {call} (" in host.log()


def test_an_io_uring_may_have_threads_of_the_kernel_s(boot: Boot, image: Path) -> None:
    # Without, what cannot be done at once fails after 100 ms, and is done by Python.
    host = boot("blk", blk.Config(str(image), engine="io_uring"))

    lines = Path(f"/proc/{host.process.pid}/limits").read_text().splitlines()
    (processes,) = (line for line in lines if line.startswith("Max processes"))

    assert processes.split()[2] != "0"


def test_a_sealed_device_can_have_no_more_than_it_has(boot: Boot) -> None:
    host = boot("null")

    lines = Path(f"/proc/{host.process.pid}/limits").read_text().splitlines()
    limits = {line[:26].strip(): line[26:].split()[:2] for line in lines[1:]}

    opened = [int(name) for name in os.listdir(f"/proc/{host.process.pid}/fd")]
    assert limits["Max open files"] == [str(max(opened) + 1)] * 2
    for name in ("Max processes", "Max core file size", "Max locked memory", "Max msgqueue size"):
        assert limits[name] == ["0", "0"], name
    assert limits["Max data size"][1] != "unlimited"
    # Guest memory is mapped in it, whatever its size.
    mapped = int(status(Path(f"/proc/{host.process.pid}"))["VmSize"].removesuffix(" kB")) << 10
    assert mapped < int(limits["Max address space"][1]) <= mapped + (64 << 20)
    assert limits["Max stack size"] == [str(8 << 20)] * 2
    assert limits["Max file size"][1] != "unlimited"


def test_a_device_cannot_have_the_kernel_signal_another_process_for_it(boot: Boot) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as victim:
        host = boot("marksman", marksman.Config("signal", str(victim.pid)), register=MARKSMAN)
        host.start()
        host.drivers[0].add([b"go"])
        host.publish()

        assert host.wait() == -signal.SIGSYS
        assert victim.communicate(b"\n") == (None, None)

    assert victim.returncode == 0
    assert "E forbidden system call fcntl (" in host.log()


def test_a_device_sends_to_nobody_but_who_is_connected(boot: Boot, tmp_path: Path) -> None:
    address = str(tmp_path / "address")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(address)
        host = boot("marksman", marksman.Config("address", address), register=MARKSMAN)
        host.start()
        host.drivers[0].add([b"go"])
        host.publish()

        assert host.wait() == -signal.SIGSYS
    assert "E forbidden system call sendto (" in host.log()


def test_a_device_that_forks_before_its_seal_cannot(boot: Boot) -> None:
    host = boot("forker", register=FORKER, start=False)
    host.hand_over()

    assert host.wait() == 1
    assert "E bug: PermissionError" in host.log()


@pytest.mark.parametrize(
    ("attempt", "complaint"),
    [
        ("os.fork() or os._exit(0)", "PermissionError"),
        ("os.posix_spawn('/bin/true', ['true'], {})", "PermissionError"),
        ("subprocess.run(['/bin/true'])", "PermissionError"),
        ("os.execv('/bin/true', ['true'])", "PermissionError"),
        ("socket.socket(socket.AF_INET)", "PermissionError"),
        ("socket.socket(socket.AF_VSOCK)", "PermissionError"),
        ("socket.socket(socket.AF_NETLINK)", "PermissionError"),
        ("socket.socket(socket.AF_UNIX); print('a socket')", "a socket"),
        ("call(*KEYCTL_READ_SESSION, None, 0, 0)", "PermissionError"),
        ("call(*PRCTL, PR_SET_PDEATHSIG, 0, 0, 0, 0)", "PermissionError"),
        ("call(*PRCTL, 1 << 32 | PR_SET_PDEATHSIG, 0, 0, 0, 0)", "PermissionError"),
        ("call(*PRCTL, PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)", ""),
        ("threading.Thread(target=print, args=('a thread',)).start()", "a thread"),
    ],
)
def test_who_has_given_its_privileges_up_can_do_little_even_before_the_seal(
    attempt: str, complaint: str
) -> None:
    program = f"""
import ctypes, os, signal, socket, subprocess, threading
from devices.hostile import KEYCTL_READ_SESSION
from protocol import jail
PRCTL, PR_SET_PDEATHSIG = [{SYS_PRCTL}], 1
def call(*words):
    words = (ctypes.c_long(word or 0) for word in words)
    if ctypes.CDLL(None, use_errno=True).syscall(*words):
        raise OSError(ctypes.get_errno(), "")
jail.give_up_privileges()
try:
    {attempt}
except OSError as error:
    print(type(error).__name__)
"""
    assert run(program, expect=0).strip() == complaint


@pytest.mark.parametrize("urings", [False, True])
def test_who_says_that_it_makes_an_io_uring_can_and_nobody_else(urings: bool) -> None:
    program = f"""
import ctypes, errno
from protocol import jail
libc = ctypes.CDLL(None, use_errno=True)
def attempt():
    libc.syscall({SYS_IO_URING_SETUP}, 1, None)
    return ctypes.get_errno()
before = attempt()
jail.give_up_privileges(urings={urings})
print(attempt() == (before if {urings} else errno.EPERM))
"""
    assert run(program, expect=0) == "True\n"


def test_one_that_takes_files_maps_them_beside_each_other_and_however_large_they_are() -> None:
    program = """
import os
from devices.runtime.seal import Seal
from protocol.memory import GuestMemory, Region, create_memfd
size = 1 << 28
fd = create_memfd("vibevmm-test", 2 * size)
Seal(None).close((), files_grow=True, receives=1)
memory = GuestMemory.of_files([(fd, Region(at, size, at)) for at in (0, size)])
memory.write(size, b"x")
print(memory.read(size, 1), flush=True)
os._exit(0)
"""
    assert run(program, expect=0) == "b'x'\n"


# <linux/mman.h>: MREMAP_MAYMOVE; MAP_PRIVATE | MAP_ANONYMOUS, and MAP_NORESERVE.
@pytest.mark.parametrize(
    "attempt",
    [
        "libc.mremap(stack, 4096, 1 << 26, 1)",
        "libc.mmap(1 << 30, 4096, 1, 0x22, -1, 0)",
        "libc.mmap(None, 1 << 28, 1, 0x4022, -1, 0)",
    ],
    ids=["stretches its stack", "chooses its addresses", "takes many of them"],
)
def test_a_sealed_process_gets_no_memory_that_no_limit_counts(attempt: str) -> None:
    program = f"""
import ctypes, os
from devices.runtime.seal import Seal
libc = ctypes.CDLL(None, use_errno=True)
for call in libc.mmap, libc.mremap:
    call.restype = ctypes.c_void_p
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
with open("/proc/self/maps") as maps:
    stack = next(int(line.split("-")[0], 16) for line in maps if "[stack]" in line)
    Seal(None).close((), files_grow=True)
    {attempt}
    print(os.strerror(ctypes.get_errno()), flush=True)
    os._exit(0)
"""
    assert run(program, expect=0) == os.strerror(errno.ENOMEM) + "\n"


def test_a_device_that_starts_a_thread_cannot_and_says_so(boot: Boot) -> None:
    host = boot("rogue", Config("thread"), register=ROGUE)
    host.start()
    host.drivers[0].add([b"go"])
    host.publish()

    assert host.wait() == 1
    assert "E bug: RuntimeError: can't start new thread" in host.log()


def test_an_abort_is_an_abort_and_not_a_forbidden_call(boot: Boot) -> None:
    host = boot("rogue", Config("abort"), register=ROGUE)
    host.start()
    host.drivers[0].add([b"go"])
    host.publish()

    assert host.wait() == -signal.SIGABRT
    assert "forbidden" not in host.log()


def test_a_thread_of_libzmq_can_say_what_it_was_forbidden() -> None:
    # libzmq blocks all signals in its threads; a thread of the same kind, which then opens a
    # file, must die with a message all the same.
    program = """
import os, signal, threading
from devices.runtime.seal import Seal
go, ready = threading.Event(), threading.Event()
def body():
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    ready.set()
    go.wait()
    os.open("/", os.O_RDONLY)
threading.Thread(target=body, daemon=True).start()
ready.wait()
Seal(None).close({"nanosleep", "clock_nanosleep"}, files_grow=True)
go.set()
threading.Event().wait()
"""
    log = run(program, expect=-signal.SIGSYS)

    assert re.fullmatch(
        r"E forbidden system call openat \(257\) at libc\.so\.6\+0x[0-9a-f]+\n"
        r"Stack \(most recent call first\):\n  File \"<string>\", line 9 in body\n(.*\n)*",
        log,
    ), log


def test_the_fewest_calls_are_common() -> None:
    # What would let a device reach beyond what it was handed.
    reaching = {
        "open", "openat", "openat2", "open_by_handle_at", "socket", "connect", "bind", "accept",
        "sendmsg", "recvmsg", "execve", "execveat", "fork", "vfork", "clone", "clone3", "ptrace",
        "kill", "tkill", "pidfd_open", "pidfd_getfd", "process_vm_readv", "process_vm_writev",
        "ioctl", "prctl", "seccomp", "io_uring_setup", "io_uring_enter", "memfd_create", "bpf",
        "userfaultfd", "mount", "unshare", "setns", "dup", "dup2", "dup3",
        # What would let it reach another process by an argument, or have the kernel do it.
        "fcntl", "sendto", "sendmmsg", "recvmmsg", "setsockopt", "rt_sigqueueinfo",
        "rt_tgsigqueueinfo", "pidfd_send_signal", "timer_create", "mq_notify", "prlimit64",
        "setrlimit", "setpriority", "ioprio_set", "sched_setaffinity", "sched_setscheduler",
        "sched_setattr", "process_madvise", "migrate_pages", "move_pages", "kcmp", "keyctl",
        "get_robust_list", "perf_event_open", "vmsplice", "tgkill", "mmap", "mprotect",
        "pkey_mprotect", "remap_file_pages", "mremap",
    }  # fmt: skip
    for kind in KINDS:
        assert not reaching & (COMMON | find(kind).jail.syscalls), kind


def test_a_name_that_is_no_system_call_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="'frobnicate' is not a system call"):
        jail.numbers({"frobnicate"})


def test_a_process_with_threads_gives_nothing_up() -> None:
    program = """
import threading
from devices.runtime.seal import Seal
threading.Thread(target=threading.Event().wait, daemon=True).start()
try:
    Seal(None).enter("", None)
except RuntimeError as error:
    print(error)
"""
    assert "2 threads" in run(program, expect=0)


def test_who_lost_its_parent_does_not_go_on() -> None:
    program = """
import socket
from protocol import jail
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
jail.die_with_parent(ours)
theirs.close()
try:
    jail.die_with_parent(ours)
except jail.Orphaned as error:
    print(error)
"""
    assert "is gone" in run(program, expect=0)


def test_the_death_of_the_parent_is_the_death_of_the_device() -> None:
    # A parent that starts a sleeper, sees it sealed to its own life, and dies by SIGKILL.
    program = """
import os, signal, socket
from protocol import jail
reading, writing = os.pipe()
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
me = os.getpid()
if os.fork() == 0:
    jail.die_with_parent(ours)
    os.write(writing, b"x")
    signal.pause()
os.read(reading, 1)
os.kill(me, signal.SIGKILL)
"""
    # The sleeper holds the log pipe: reading it to its end is waiting for its death.
    assert run(program, expect=-signal.SIGKILL) == ""


def test_a_descriptor_that_nobody_handed_over_is_refused_by_name(boot: Boot) -> None:
    reading, writing = os.pipe()
    try:
        host = boot("null", inherit=(reading,), start=False)
        host.hand_over()
        assert host.wait() == HostError.exit_status
    finally:
        os.close(reading)
        os.close(writing)

    assert "(pipe:[" in host.log()
    assert "is open, and nobody handed it over" in host.log()


@pytest.mark.parametrize("moment", ["init", "hello"])
def test_what_a_device_opens_for_itself_before_the_seal_is_refused_by_name(
    boot: Boot, moment: str
) -> None:
    host = boot("opener", Config(moment), register=OPENER, start=False)
    host.hand_over()
    host.expect(Hello)
    host.channel.send(Welcome(PROTOCOL_VERSION, STATE_VERSION))

    assert host.wait() == HostError.exit_status
    complaint = r"E descriptor \d+ \(/memfd:own \(deleted\)\) is open, and nobody"
    assert re.search(complaint, host.log()), host.log()


def test_a_device_that_opens_nothing_for_itself_is_sealed(boot: Boot) -> None:
    assert boot("opener", Config("nothing"), register=OPENER).sealed is not None


def test_the_audit_lets_one_socket_of_the_channel_pass_and_no_second() -> None:
    seal = Seal(None)
    held = {*seal.open_descriptors(), seal._proc}
    one, two = socket.socketpair()
    with one, two:
        with pytest.raises(HostError, match=r"descriptor \d+ \(socket:"):
            seal.audit(held, channels=1)
        with pytest.raises(HostError):
            seal.audit(held | {one.fileno()}, channels=0)
        seal.audit(held | {one.fileno()}, channels=1)
    os.close(seal._proc)


def test_errno_of_a_refused_seal_is_told() -> None:
    with pytest.raises(HostError, match=f"a step: {os.strerror(errno.EPERM)}"):
        jail._check("a step", -errno.EPERM)


def run(program: str, expect: int) -> str:
    """Run Python code in a process of its own; what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == expect, done.stdout
    return done.stdout
