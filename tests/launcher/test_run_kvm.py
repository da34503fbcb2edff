"""Runs of the real thing on /dev/kvm: guests end with the right status, and nobody is left."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devices.runtime.disk import MAX_QUEUES
from tests.support import ordinary_user
from tests.support.bare import usable_kvm
from tests.support.leaks import children, started_as
from vmm import memory_map

PROJECT = Path(__file__).parents[2]
DEADLINE = 60.0

# cli; hlt; jmp back to hlt: a guest that waits for ever.
WAITING = bytes.fromhex("fa f4 eb fd")
# lidt [0]; int3: an interrupt table without entries makes any exception a triple fault.
DYING = bytes.fromhex("31 c0 50 50 0f 01 1c 24 cc")

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.skipif(usable_kvm() is not None, reason=f"no KVM: {usable_kvm()}"),
]


@pytest.fixture
def guest(tmp_path: Path) -> Callable[[bytes], list[str]]:
    """Options that run the given code."""

    def make(code: bytes) -> list[str]:
        path = tmp_path / "guest.raw"
        path.write_bytes(code)
        return ["--binary", str(path), "--entry", "0x10000", "--mem", "64M"]

    return make


@pytest.fixture
def start(runtime: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts vibevmm with options; ends what is left of it."""
    started: list[subprocess.Popen[str]] = []

    def launch(*options: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "launcher", "run", *options],
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield launch
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)


def started(log: Path) -> Callable[[], bool]:
    """Whether the machine whose launcher logs there has started."""
    return lambda: log.exists() and "started:" in log.read_text()


def test_hello_is_printed_and_powering_off_is_status_0(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    image = PROJECT / "tests/kernels/x86_64_hello_serial.raw"

    process = start("--binary", str(image), "--entry", "0x100000")

    out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out.strip(), err) == (0, "Hello World", "")


def test_triple_fault_is_status_1_with_a_register_dump(
    start: Callable[..., subprocess.Popen[str]], guest: Callable[[bytes], list[str]]
) -> None:
    process = start(*guest(DYING))

    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1
    assert err.startswith("vibevmm: the guest died on CPU 0: ")
    assert "rip" in err


@pytest.mark.slow  # in the lab
def test_several_devices_of_each_kind_work_in_one_machine(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    image = PROJECT / "tests/kernels/x86_64_demo.raw"
    disks = [tmp_path / "a,b.img", tmp_path / "b.img"]
    for disk in disks:
        disk.write_bytes(bytes(1 << 20))

    process = start(
        *("--binary", str(image), "--entry", "0x100000", "--device", "rng", "--device", "rng"),
        *("--disk", str(disks[0]).replace(",", ",,"), "--disk", f"{disks[1]},id=second"),
        *("--console", "terminal", "--console", "--stats"),
        # Its letters would come between those of the consoles.
        *("--serial", f"file={tmp_path / 'serial'}"),
    )

    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, err
    out += (tmp_path / "serial").read_text()
    for words in ("blk0 wrote 64", "blk1 wrote 64", "rng0 gave", "rng1 gave"):
        assert words in out
    assert out.count("Hello from the demo guest") == 2
    assert "console1 " in err
    assert "second " in err


@pytest.mark.slow  # in the lab
def test_as_many_disks_as_there_may_be_with_as_many_queues_are_one_machine(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    disks: list[str] = []
    for number in range(memory_map.MAX_VIRTIO_DEVICES):
        disk = tmp_path / f"{number}.img"
        disk.write_bytes(bytes(1 << 20))
        disks += ["--disk", f"{disk},queues={MAX_QUEUES}"]
    image = PROJECT / "tests/kernels/x86_64_hello_serial.raw"

    process = start("--binary", str(image), "--entry", "0x100000", *disks)

    out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out.strip(), err) == (0, "Hello World", "")


@pytest.mark.slow  # in the lab
@pytest.mark.parametrize("victim", ["vmm", "rng0"])
def test_killed_child_is_status_3_and_nobody_is_left(
    victim: str,
    start: Callable[..., subprocess.Popen[str]],
    guest: Callable[[bytes], list[str]],
    runtime: Path,
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    devices = ("--device", "rng,on-death=stop-vm", "--device", "null")
    process = start(*guest(WAITING), *devices, "--log", "launcher=4", "--log-file", str(log))
    wait_until(started(log), "the start")
    pids = children(process.pid)
    assert len(pids) >= 3  # and the zygote, until it has been reaped
    pid = log.read_text().partition(f"{victim} is process ")[2].split()[0]

    os.kill(int(pid), signal.SIGKILL)

    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 3
    assert f"{victim} was killed by SIGKILL" in err
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert list((runtime / "vibevmm").iterdir()) == []


def test_device_is_sealed_in_every_thread_as_a_user_starts_it(
    start: Callable[..., subprocess.Popen[str]],
    guest: Callable[[bytes], list[str]],
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    options = ("--device", "rng", "--log", "launcher=4", "--log-file", str(log))
    process = start(*guest(WAITING), *options)
    wait_until(started(log), "the start")
    pid = log.read_text().partition("rng0 is process ")[2].split()[0]

    states = [
        dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines())
        for task in Path(f"/proc/{pid}/task").iterdir()
    ]

    process.terminate()
    process.communicate(timeout=DEADLINE)
    assert len(states) == 3
    for state in states:
        assert (state["NoNewPrivs"], state["Seccomp"]) == ("1", "2")
        assert {int(state[f"Cap{kind}"], 16) for kind in ("Eff", "Prm", "Inh", "Amb")} == {0}
        assert state["PPid"] == str(process.pid)


@pytest.mark.slow  # in the lab
def test_ignored_signals_stay_ignored_and_children_are_reaped_all_the_same(
    guest: Callable[[bytes], list[str]], runtime: Path
) -> None:
    ignored = (signal.SIGCHLD, signal.SIGHUP)
    program = [sys.executable, "-m", "launcher", "run", *guest(WAITING), "--device", "rng"]
    process = subprocess.Popen(
        [*program, "--timeout", "2"],
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: [signal.signal(number, signal.SIG_IGN) for number in ignored] and None,
    )
    wait_until(lambda: (runtime / "vibevmm").is_dir(), "the start")

    process.send_signal(signal.SIGHUP)

    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 4, err


@pytest.mark.slow  # in the lab
def test_killed_launcher_takes_everybody_with_it(
    start: Callable[..., subprocess.Popen[str]],
    guest: Callable[[bytes], list[str]],
    runtime: Path,
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    options = ("--device", "rng", "--log", "launcher=4", "--log-file", str(log))
    process = start(*guest(WAITING), *options)
    wait_until(started(log), "the start")
    pids = children(process.pid)
    assert len(pids) >= 2

    process.kill()

    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "their end")
    wait_until(lambda: list((runtime / "vibevmm").iterdir()) == [], "an empty run directory")


@pytest.mark.slow  # in the lab
@pytest.mark.parametrize("moment", range(8))
def test_launcher_killed_at_any_moment_of_a_short_run_leaves_nothing(
    moment: int, runtime: Path, tmp_path: Path
) -> None:
    """From before the VMM knows of its machine to after its last word, with a guest that prints."""
    master, keyboard = os.openpty()
    image = PROJECT / "tests/kernels/x86_64_demo.raw"
    socket = tmp_path / "console"
    guest = ["--binary", str(image), "--entry", "0x100000"]
    devices = ["--device", "rng", "--console", f"backend=socket,path={socket}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "launcher", "run", *guest, *devices],
        cwd=PROJECT,
        stdin=keyboard,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    try:
        wait_until(lambda: is_raw(keyboard) or process.poll() is not None, "raw mode")
        time.sleep(moment * 0.03)  # any moment: nothing is asserted of when it is

        process.kill()

        process.wait(DEADLINE)
        wait_until(lambda: not is_raw(keyboard), "the old mode")
        wait_until(lambda: list((runtime / "vibevmm").iterdir()) == [], "an empty run directory")
        wait_until(lambda: not socket.exists(), "no socket")
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(keyboard)


@pytest.mark.slow  # in the lab
@pytest.mark.parametrize("victim", ["launcher", "vmm"])
def test_terminal_is_put_back_whoever_is_killed_the_moment_it_is_raw(
    victim: str, guest: Callable[[bytes], list[str]], runtime: Path
) -> None:
    master, keyboard = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "launcher", "run", *guest(WAITING), "--device", "rng"],
        cwd=PROJECT,
        stdin=keyboard,
        stdout=keyboard,
        stderr=keyboard,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    try:
        wait_until(lambda: is_raw(keyboard), "raw mode")
        (vmm,) = started_as("vmm.entry", process.pid)
        pids = {"launcher": process.pid, "vmm": vmm}

        os.kill(pids[victim], signal.SIGKILL)

        process.wait(DEADLINE)
        wait_until(lambda: not is_raw(keyboard), "the old mode")
        wait_until(lambda: list((runtime / "vibevmm").iterdir()) == [], "an empty run directory")
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(keyboard)


def is_raw(terminal: int) -> bool:
    """Whether its keys make no signals: what raw mode has, and no shell's."""
    return not termios.tcgetattr(terminal)[3] & termios.ISIG


def test_interrupt_while_the_guest_runs_is_an_orderly_end(
    start: Callable[..., subprocess.Popen[str]],
    guest: Callable[[bytes], list[str]],
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    options = ("--device", "rng", "--stats", "--log", "launcher=4", "--log-file", str(log))
    process = start(*guest(WAITING), *options)
    wait_until(started(log), "the start")

    process.send_signal(signal.SIGINT)

    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0
    assert "stopped by SIGINT" in err
    assert "rng0" in err


def test_guest_that_waits_for_ever_times_out(
    start: Callable[..., subprocess.Popen[str]], guest: Callable[[bytes], list[str]]
) -> None:
    process = start(*guest(WAITING), "--timeout", "1")

    assert process.wait(DEADLINE) == 4


@pytest.mark.root
def test_ordinary_user_who_may_open_kvm_runs_a_machine(tmp_path: Path) -> None:
    """Of the group that owns /dev/kvm; here a group made up for as long as the test runs."""
    image = PROJECT / "tests/kernels/x86_64_demo.raw"
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    shutil.chown(disk, ordinary_user.NOBODY)
    before = os.stat("/dev/kvm")
    ordinary_user.let_in(tmp_path)
    group = before.st_gid or 65533
    os.chown("/dev/kvm", -1, group)
    os.chmod("/dev/kvm", before.st_mode | 0o060)
    options = ["--binary", str(image), "--entry", "0x100000", "--disk", str(disk), "--console"]
    try:
        done = ordinary_user.vibevmm("run", *options, "--device", "rng", groups=[group])
    finally:
        os.chown("/dev/kvm", -1, before.st_gid)
        os.chmod("/dev/kvm", before.st_mode)

    assert done.returncode == 0, done.stderr
    assert "demo: done" in done.stdout
