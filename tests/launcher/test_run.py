"""Runs with children that pretend (tests/support/fake_vmm.py): what is started always ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launcher import cli, limits, networks, nursery, plan, run, session
from launcher.spawn import Child
from protocol import fds
from protocol.jail.cgroup import CONTROLLERS
from tests.support import fake_launcher
from tests.support.cgroups import Cgroups
from vmm import memory_map
from vmm.hypervisor import detect

PROJECT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _pretend(monkeypatch: pytest.MonkeyPatch, runtime: Path) -> None:
    for name in ("_VMM_MODULE", "ZYGOTE_MODULE", "check_kvm"):
        monkeypatch.setattr(run, name, getattr(run, name))
    fake_launcher.pretend()


def vibevmm(binary: str, behaviour: str, *options: str) -> int:
    """Run it with a VMM of this ``behaviour``; the exit status."""
    return cli.main(
        ["run", "--binary", binary, "--entry", "0x10000", "--name", behaviour, *options]
    )


def test_kvm_that_is_taken_for_want_of_the_engine_is_said_with_what_would_bring_it(
    binary: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(detect, "kvm_opens", lambda: False)
    monkeypatch.setattr(detect, "has_engine", lambda: False)

    assert vibevmm(binary, "poweroff") == 0

    assert "vibevmm: KVM: nothing else is here; the software CPU needs" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("behaviour", "status", "words"),
    [
        ("poweroff", 0, ""),
        ("reset", 0, ""),
        ("panic", 1, "the guest panicked"),
        ("died", 1, "triple fault"),
        ("hosterror", 3, "KVM said no"),
        ("crash", 3, "vmm was killed by SIGKILL"),
        ("stillborn", 3, "there is something wrong with me"),
    ],
)
def test_exit_status_says_how_the_guest_ended(
    behaviour: str,
    status: int,
    words: str,
    binary: str,
    runtime: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert vibevmm(binary, behaviour, "--device", "rng") == status

    assert words in capfd.readouterr().err
    assert list((runtime / "vibevmm").iterdir()) == []


def test_timeout_ends_the_run_with_status_4(binary: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert vibevmm(binary, "idle", "--timeout", "0.3") == 4

    assert "--timeout" in capfd.readouterr().err


@pytest.mark.parametrize("behaviour", ["device", "idle"])
def test_dead_device_ends_the_run_and_is_named_whoever_notices_first(
    behaviour: str, binary: str, capfd: pytest.CaptureFixture[str]
) -> None:
    doomed = "rng,id=doomed,on-death=stop-vm"

    assert vibevmm(binary, behaviour, "--device", doomed, "--device", "rng") == 3

    message = capfd.readouterr().err
    assert "doomed was killed by SIGSYS" in message
    assert "E about to call what is forbidden" in message


def test_device_that_dies_before_it_is_known_that_the_guest_runs_is_followed(
    binary: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sender = Sender(tmp_path / "log", ("doomed was killed by SIGSYS", signal.SIGTERM))

    assert vibevmm(binary, "slow", "--device", "rng,id=doomed", *sender.options) == 0

    sender.join()


def test_guest_output_arrives_whole_and_in_order(
    binary: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert vibevmm(binary, "flood") == 0

    assert capfd.readouterr().out == "0123456789abcdef" * 256 * 64


def test_serial_port_can_go_to_a_file(
    binary: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "serial.txt"

    assert vibevmm(binary, "flood", "--serial", f"file={path}") == 0

    assert path.stat().st_size == 64 * 4096
    assert capfd.readouterr().out == ""


def test_logs_of_children_are_harmless_and_say_who_spoke(
    binary: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log.txt"

    assert vibevmm(binary, "chat", "--log-file", str(path), "--log", "info") == 0

    assert "vmm info all is \\x1b[31mwell\\x07" in path.read_text()
    assert capfd.readouterr().err == ""


def test_statistics_are_printed_at_the_end(binary: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert vibevmm(binary, "poweroff", "--stats") == 0

    printed = capfd.readouterr().err
    assert "3 returns of KVM_RUN" in printed
    assert "66.7%" in printed
    assert "chains 7" in printed


def test_statistics_go_to_a_file_with_the_phases_of_the_start(binary: str, tmp_path: Path) -> None:
    path = tmp_path / "stats.json"

    assert vibevmm(binary, "poweroff", "--stats", str(path)) == 0

    found = json.loads(path.read_text())
    assert found["run_returns"] == 3
    assert found["ended"] == "power-off"
    assert found["exits"][0]["address"] == 0x3F8
    assert {"planned", "spawned", "ready", "in the VMM: machine built"} <= found[
        "startup_ms"
    ].keys()


def test_trace_has_what_the_launcher_and_the_vmm_said(binary: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"

    assert vibevmm(binary, "poweroff", "--trace", str(path)) == 0

    assert "> Attach()" in path.read_text()
    assert "< Ended(reason='power-off'" in path.read_text()


def test_what_the_vmm_says_is_harmless_and_is_not_taken_for_ours(
    binary: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert vibevmm(binary, "rude") == 1

    printed = capfd.readouterr().err
    lines = printed.splitlines()
    assert lines[:2] == [
        r"vibevmm: the VMM refused: \x1b[2Jno",
        " vibevmm: refused forgery",
    ]
    assert lines[2:4] == [r"vibevmm: \x1b]0;title\x07", " rip=0x10"]
    assert lines[4].startswith(r" vibevmm: forgery\rxxx")
    assert len(lines) == 5
    assert len(printed) < 3000


@pytest.mark.parametrize(("behaviour", "status"), [("poweroff", 3), ("panic", 1)])
@pytest.mark.parametrize("option", ["--stats", "--trace"])
def test_full_disk_is_reported_and_the_guests_end_is_still_told(
    behaviour: str, status: int, option: str, binary: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert vibevmm(binary, behaviour, option, "/dev/full") == status

    printed = capfd.readouterr().err
    assert f"vibevmm: {option}: /dev/full: No space left on device" in printed
    assert ("panicked" in printed) == (behaviour == "panic")


def test_refused_run_leaves_the_files_of_the_one_that_runs(
    binary: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from launcher.rundir import RunDirectory

    (tmp_path / "log").write_text("of the first")
    options = ("--log-file", str(tmp_path / "log"), "--trace", str(tmp_path / "trace"))

    with RunDirectory("poweroff"):
        assert vibevmm(binary, "poweroff", *options) == 2

    assert "is running" in capfd.readouterr().err
    assert (tmp_path / "log").read_text() == "of the first"
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT])
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_signal_while_planning_leaves_no_socket_and_starts_nothing(
    number: signal.Signals,
    more: list[str],
    binary: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "socket"
    planned = plan.open_device

    def open_and_be_stopped(*arguments: Any) -> None:
        planned(*arguments)
        assert path.exists()
        os.kill(os.getpid(), number)

    monkeypatch.setattr(plan, "open_device", open_and_be_stopped)
    monkeypatch.setattr(run, "start", None)

    status = vibevmm(binary, "idle", "--console", f"backend=socket,path={path}", *more)

    assert status == 128 + number
    assert not path.exists()
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("limit", [6, 8, 12, 16, 20, 30])
def test_too_few_descriptors_are_said_before_anything_is_started(
    limit: int, binary: str, runtime: Path
) -> None:
    command = [sys.executable, "-m", "tests.support.fake_launcher", "run", "--binary", binary]
    options = ["--entry", "0x10000", "--name", "poweroff", "--console"]

    done = subprocess.run(
        ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", *command, *options],
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 3, done.stderr
    assert done.stderr.count("\n") == 1
    assert "ulimit -n" in done.stderr
    assert list(runtime.iterdir()) == []


def test_a_limit_of_descriptors_that_may_be_raised_is(binary: str, runtime: Path) -> None:
    command = [sys.executable, "-m", "tests.support.fake_launcher", "run", "--binary", binary]
    options = ["--entry", "0x10000", "--name", "poweroff", *["--console", "pty"] * 15]

    done = subprocess.run(
        ["sh", "-c", 'ulimit -S -n 30; exec "$@"', "sh", *command, *options],
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("devices", [0, 15])
@pytest.mark.parametrize("backend", ["terminal", "pty", "socket"])
def test_as_many_descriptors_as_are_asked_for_are_enough(
    devices: int, backend: str, binary: str, runtime: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "tests.support.fake_launcher", "run", "--binary", binary]
    options = ["--entry", "0x10000", "--name", "poweroff"]
    for number in range(devices):
        path = f",path={runtime}/{number}" if backend == "socket" else ""
        options += ["--console", backend + path]
    outputs = [f"{option}={tmp_path / option}" for option in ("--log-file", "--stats", "--trace")]

    def start(limit: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", *command, *options, *outputs],
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    needed = start("20").stderr.partition("needs ")[2].split()[0]

    done = start(needed)

    assert done.returncode == 0
    # Nothing but the names of ptys.
    assert all(": pty /dev/pts/" in line for line in done.stderr.splitlines())


@pytest.mark.slow
def test_signal_while_nobody_reads_the_last_output_ends_the_launcher(
    binary: str, runtime: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "tests.support.fake_launcher", "run", "--binary", binary]
    options = ["--entry", "0x10000", "--name", "spill", "--trace", str(tmp_path / "trace")]
    sockets = ["--console", f"backend=socket,path={tmp_path / 'socket'}"]
    with subprocess.Popen(
        [*command, *options, *sockets],
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        deadline = time.monotonic() + 20
        while not (
            (tmp_path / "trace").exists() and "power-off" in (tmp_path / "trace").read_text()
        ):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert process.poll() is None  # nobody reads it

        process.send_signal(signal.SIGTERM)

        assert process.wait(20) == 0
    assert not (tmp_path / "socket").exists()
    assert list((runtime / "vibevmm").iterdir()) == []


def test_second_machine_of_the_same_name_is_bad_input(
    binary: str, runtime: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from launcher.rundir import RunDirectory

    with RunDirectory("poweroff"):
        assert vibevmm(binary, "poweroff") == 2

    assert "--name" in capfd.readouterr().err


class Sender(threading.Thread):
    """Sends this process signals, each when the launcher's log says certain words."""

    def __init__(self, log: Path, *steps: tuple[str, signal.Signals]) -> None:
        super().__init__()
        self.options = ("--log", "launcher=debug", "--log-file", str(log))
        self._log = log
        self._steps = steps
        self.start()

    def run(self) -> None:
        deadline = time.monotonic() + 20
        for words, number in self._steps:
            while not (self._log.exists() and words in self._log.read_text()):
                if time.monotonic() > deadline:
                    return
                time.sleep(0.01)
            os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_stops_the_machine_cleanly(
    number: signal.Signals, binary: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sender = Sender(tmp_path / "log", ("started:", number))

    assert vibevmm(binary, "idle", "--device", "rng", "--stats", *sender.options) == 0

    sender.join()
    printed = capfd.readouterr().err
    assert f"stopped by {number.name}" in printed
    assert "3 returns of KVM_RUN" in printed


def test_signal_before_the_machine_runs_ends_it_too(
    binary: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sender = Sender(tmp_path / "log", ("vmm is process", signal.SIGTERM))

    assert vibevmm(binary, "idle", *sender.options) == 0

    sender.join()
    assert "stopped by SIGTERM" in capfd.readouterr().err


def test_devices_are_limited_before_they_hear_of_the_machine(
    binary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = Cgroups(*CONTROLLERS)
    monkeypatch.setattr(run.cgroup, "Tree", lambda: tree)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    sender = Sender(tmp_path / "log", ("started:", signal.SIGTERM))
    devices = ("--device", "rng", "--device", "rng,isolation=none", "--device")

    limits_of_bounce = limits.of_device(memory_map.bounce_region(1).size)
    options = (*devices, "rng,isolation=bounce", "--mem", "64M", *sender.options)
    assert vibevmm(binary, "idle", *options) == 0

    sender.join()
    machine = f"{tree.root}/vibevmm-idle-{os.getpid()}/"
    written: dict[str, list[tuple[str, str]]] = {}
    for path, text in tree.writes:
        pid, slash, name = path.removeprefix(machine).partition("/")
        if path.startswith(machine) and slash:
            written.setdefault(pid, []).append((name, text))
    standing = {pid: [*limits.STANDING.items(), ("cgroup.procs", pid)] for pid in written}
    assert {pid: found[: len(standing[pid])] for pid, found in written.items()} == standing
    # The one that is free has none; the spare, if there was time for one, learned nothing.
    rest = [dict(found[len(standing[pid]) :]) for pid, found in written.items()]
    assert rest[:2] == [limits.of_device(64 << 20), limits_of_bounce]
    assert rest[2:] in ([], [{}])
    assert tree.groups() == []


def test_an_uplink_is_limited_before_it_starts_anybody(
    binary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = Cgroups(*CONTROLLERS)
    monkeypatch.setattr(run.cgroup, "Tree", lambda: tree)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    told: list[int] = []

    def send(*arguments: Any) -> None:
        told.append(len(tree.writes))
        fds.send(*arguments)

    monkeypatch.setattr(networks, "fds", SimpleNamespace(**{**vars(fds), "send": send}))

    assert vibevmm(binary, "poweroff", "--net", f"join={tmp_path}/ether") == 0

    pid = next(pid for path, pid in tree.writes[: told[0]] if path.endswith(f"/{pid}/cgroup.procs"))
    mine = [(path, text) for path, text in tree.writes if f"/{pid}/" in path]
    assert [(os.path.basename(path), text) for path, text in mine] == [
        *limits.UPLINK.items(),
        ("cgroup.procs", pid),
    ]


def test_signal_while_devices_are_forked_leaves_none_of_them(
    binary: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sender = Sender(tmp_path / "log", ("zygote is process", signal.SIGTERM))

    # That no process is left is seen by the fixture of all these tests.
    assert vibevmm(binary, "idle", *["--device", "rng"] * 5, *sender.options) == 0

    sender.join()
    assert "stopped by SIGTERM" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_zygote_that_forks_nothing_ends_the_run(
    number: signal.Signals,
    binary: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    started = nursery.start

    def start_and_hit(name: str, module: str) -> Child:
        zygote = started(name, module)
        os.kill(zygote.pid, number)
        return zygote

    monkeypatch.setattr(nursery, "start", start_and_hit)
    if number is signal.SIGSTOP:  # nothing else tells of it
        monkeypatch.setattr(session, "_START_DEADLINE", 0.5)
    monkeypatch.setattr(session, "_EXIT_DEADLINE", 0.2)

    assert vibevmm(binary, "idle", "--device", "rng") == 3

    printed = capfd.readouterr().err
    assert ("zygote was killed by SIGKILL" in printed) == (number is signal.SIGKILL)
    assert ("the machine was not ready" in printed) == (number is signal.SIGSTOP)


def test_second_signal_ends_a_vmm_that_does_not_answer(
    binary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "STOP_DEADLINE", 3600.0)  # nothing else ends it in a test's time
    steps = (("started:", signal.SIGTERM), ("ending", signal.SIGTERM))
    sender = Sender(tmp_path / "log", *steps)

    assert vibevmm(binary, "deaf", *sender.options) == 0

    sender.join()


def test_user_signal_prints_statistics_and_the_machine_goes_on(
    binary: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    steps = (("started:", signal.SIGUSR1), ("statistics", signal.SIGTERM))
    sender = Sender(tmp_path / "log", *steps)

    assert vibevmm(binary, "idle", *sender.options) == 0

    sender.join()
    assert "3 returns of KVM_RUN" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("behaviour", "more", "status"),
    [
        ("poweroff", [], 0),
        ("poweroff", ["--dry-run"], 0),
        ("poweroff", ["--disk", "nothere"], 2),
        ("poweroff", ["--log-file", "nowhere/log"], 2),
        ("poweroff", ["--disk", "image,overlay=link"], 2),
        ("stillborn", [], 3),
    ],
    ids=["starts", "dry", "later", "log", "twice", "stillborn"],
)
def test_an_overlay_is_made_by_a_run_that_starts_and_by_no_other(
    behaviour: str,
    more: list[str],
    status: int,
    binary: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("image").write_bytes(bytes(1 << 20))
    Path("link").symlink_to("x.cow")

    assert vibevmm(binary, behaviour, "--disk", "image,overlay=x.cow", *more) == status

    assert Path("x.cow").exists() == (not more and status == 0)
