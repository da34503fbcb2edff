"""Real machines through launcher.api: held, stopped, attached to and broken, on each backend.

The guest is flat 64-bit code that answers the serial port: a letter comes back, and after a "q" it
powers off. Its answer is how a test knows that it runs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher import rundir
from launcher.api import VM
from protocol import control as wire
from protocol.service import Client as Connection
from tests.support.bare import BACKENDS, assembled, require_backend, require_kvm
from tests.support.guest import ECHO as ECHO_MODE
from tests.support.guest import demo
from tests.support.listings import ECHO, UNTIL_THE_POWER_BUTTON

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("runtime")]

DEADLINE = 30.0
PROJECT = Path(__file__).parents[2]

RESET_AFTER_A_LETTER = """
    66 ba f8 03  # mov dx, 0x3f8
    b0 3e        # mov al, '>'
    ee           # out dx, al
    b2 fd        # mov dl, 0xfd
    ec           # in al, dx         <--+
    a8 01        # test al, 1           |   received data?
    74 fb        # jz ------------------+
    66 ba 08 06  # mov dx, 0x608     RESET_REG
    b0 01        # mov al, 1
    ee           # out dx, al
    eb fe        # jmp .
"""
ARM64_SPIN = bytes.fromhex("1f2003d5 ffffff17")  # nop; b . - 4


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., VM]]:
    with contextlib.ExitStack() as machines:

        def started(code: bytes, **options: object) -> VM:
            image = tmp_path / "guest.raw"
            image.write_bytes(code)
            base = {"binary": image, "entry": "0x100000", "mem": "64M", "timeout": 90}
            machine = machines.enter_context(VM(**{**base, **options}))  # type: ignore[arg-type]
            machine.wait_ready()
            return machine

        yield started


class Typist:
    """Attached to a stream; :meth:`says` waits for what the guest says."""

    def __init__(self, machine: VM, stream: str = "serial") -> None:
        self.socket = machine.attach(stream)
        self.socket.settimeout(DEADLINE)
        self.got = b""

    def says(self, words: bytes) -> None:
        while words not in self.got:
            data = self.socket.recv(4096)
            assert data, f"the stream ended after {self.got!r}"
            self.got += data

    def type(self, keys: bytes) -> None:
        self.socket.sendall(keys)

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def echo(start: Callable[..., VM], backend: str) -> Iterator[tuple[VM, Typist]]:
    machine = start(assembled(ECHO), hypervisor=backend, devices=["rng"])
    typist = Typist(machine)
    typist.says(b">")
    yield machine, typist
    typist.close()


def test_paused_guest_does_nothing_until_it_is_resumed(echo: tuple[VM, Typist]) -> None:
    machine, typist = echo
    returns: list[int] = []
    for _ in range(3):
        machine.pause()
        machine.pause()
        typist.type(b"a")
        before = machine.stats().run_returns
        # Time for a guest that runs to spin some thousand times.
        typist.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            typist.says(b"a")
        returns.append(machine.stats().run_returns - before)

        machine.resume()
        machine.resume()
        typist.socket.settimeout(DEADLINE)
        typist.says(b"a")
        typist.got = b""

    assert returns == [0, 0, 0]
    typist.type(b"q")
    assert machine.wait(DEADLINE) == 0


def test_counters_of_a_device_that_hangs_hold_up_nobody(
    start: Callable[..., VM], backend: str
) -> None:
    machine = start(assembled(ECHO), hypervisor=backend, devices=["rng"], hang_after=0)
    rng = next(process.pid for process in machine.describe().processes if process.name == "rng0")
    os.kill(rng, signal.SIGSTOP)
    client = Connection(os.path.join(rundir.path_of(machine.name), rundir.CONTROL))
    client.send(wire.encode(wire.Measure(), 1))
    client.send(wire.encode(wire.Pause(), 2))

    paused = answer_of(client)
    os.kill(rng, signal.SIGCONT)
    measured = answer_of(client)
    client.close()

    assert (paused.sequence, paused.message) == (2, wire.Done())
    assert (measured.sequence, [d.name for d in measured.message.devices]) == (1, ["rng0"])
    machine.stop(force=True)


def answer_of(client: Connection) -> Any:
    frame = client.receive(DEADLINE)
    assert frame is not None
    return wire.decode(frame, wire.FROM_LAUNCHER)


@pytest.mark.kvm
def test_every_cpu_is_held_waiting_ones_too(start: Callable[..., VM]) -> None:
    require_kvm()
    machine = start(assembled(ECHO), hypervisor="kvm", cpus=3)
    typist = Typist(machine)
    typist.says(b">")

    machine.pause()
    before = machine.stats().run_returns
    assert machine.stats().run_returns == before
    machine.resume()
    typist.type(b"q")

    assert machine.wait(DEADLINE) == 0
    typist.close()


def test_stop_by_the_power_button(start: Callable[..., VM], backend: str) -> None:
    machine = start(assembled(UNTIL_THE_POWER_BUTTON), hypervisor=backend)

    assert machine.stop(timeout=60) == "power-off"
    assert machine.wait() == 0


def test_paused_guest_is_resumed_to_hear_the_power_button(
    start: Callable[..., VM], backend: str
) -> None:
    machine = start(assembled(UNTIL_THE_POWER_BUTTON), hypervisor=backend)
    machine.pause()

    assert machine.stop(timeout=60) == "power-off"


def test_stop_of_a_guest_that_does_not_listen_and_is_paused(echo: tuple[VM, Typist]) -> None:
    machine, _ = echo
    machine.pause()

    assert machine.stop(force=True) == "stopped"
    assert machine.wait() == 0


def test_arm64_has_no_button_and_is_stopped_by_force_which_is_said(
    start: Callable[..., VM],
) -> None:
    require_backend("software")
    machine = start(ARM64_SPIN, entry="0x10000", arch="arm64", name="arm")

    stopped = subprocess.run(
        [sys.executable, "-m", "launcher", "stop", "arm"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert stopped.stdout == (
        "arm has ended: stopped, by force: this machine has no power button\n"
    )
    assert machine.wait(DEADLINE) == 0


def test_killed_device_is_an_event_with_its_pid(echo: tuple[VM, Typist]) -> None:
    machine, _ = echo
    events = machine.events()
    started = {event.device: event for event in (next(events), next(events))}  # type: ignore[union-attr]
    assert next(events).kind == "ready"  # type: ignore[union-attr]

    pid = machine.kill("rng0")

    died = next(events)
    assert isinstance(died, wire.Event)
    assert (died.kind, died.device, died.pid) == ("died", "rng0", pid)
    assert pid == started["rng0"].pid  # type: ignore[union-attr]
    recovered = next(events)
    assert isinstance(recovered, wire.Event)
    assert (recovered.kind, recovered.device, recovered.generation) == ("recovered", "rng0", 2)
    assert recovered.took
    assert {p.pid for p in machine.describe().processes if p.name == "rng0"} == {recovered.pid}


@pytest.mark.parametrize("backend", BACKENDS[:1], indirect=True)
def test_virtio_console_can_be_attached_to(start: Callable[..., VM], backend: str) -> None:
    machine = start(demo(ECHO_MODE), hypervisor=backend, console="terminal", serial="none")
    assert set(machine.describe().streams) == {"serial", "console0"}
    one, other = Typist(machine, "console0"), Typist(machine, "console0")

    one.type(b"hello")
    one.says(b"hello")
    other.says(b"hello")
    other.type(b"q")

    assert machine.wait(DEADLINE) == 0
    one.close()
    other.close()


def test_crowd_of_connections_and_a_flood_leave_the_machine_alone(
    echo: tuple[VM, Typist],
) -> None:
    machine, typist = echo
    path = os.path.join(os.environ["XDG_RUNTIME_DIR"], "vibevmm", machine.name, "control")
    flooder, crowd = Connection(path), []
    for number in range(1, 1000):
        flooder.send(wire.encode(wire.Describe(), number))
        flooder.send(b"garbage")
    with contextlib.suppress(OSError):  # the door is shut in the end
        for _ in range(500):
            crowd.append(socket.socket(socket.AF_UNIX))
            crowd[-1].connect(path)

    typist.type(b"a")
    typist.says(b"a")
    for one in crowd:
        one.close()
    flooder.close()
    machine.pause()
    machine.resume()
    typist.type(b"q")

    assert machine.wait(DEADLINE) == 0


def test_launcher_that_was_killed_is_gone_for_its_clients(echo: tuple[VM, Typist]) -> None:
    machine, _ = echo
    events = machine.events()
    assert next(events).number == 1  # type: ignore[union-attr]
    os.kill(machine.describe().pid, signal.SIGKILL)

    assert machine.wait(DEADLINE) == -signal.SIGKILL
    assert [event.kind for event in events] == ["started", "ready"]  # type: ignore[union-attr]
    assert machine.stop() == "gone"


def test_each_process_has_a_log_in_the_run_directory(
    start: Callable[..., VM], backend: str
) -> None:
    machine = start(assembled(ECHO), hypervisor=backend, devices=["rng"], log="info")
    directory = Path(os.environ["XDG_RUNTIME_DIR"], "vibevmm", machine.name)

    assert "rng0 sealed" in (directory / "vmm.log").read_text()
    machine.stop(force=True)
    assert not directory.exists()


def test_reset_is_an_event_and_the_machine_is_paused_and_stopped_as_before(
    start: Callable[..., VM], backend: str
) -> None:
    machine = start(assembled(RESET_AFTER_A_LETTER), hypervisor=backend, devices=["rng"])
    typist = Typist(machine, "serial")
    events = machine.events()
    pids = {event.device: event.pid for event in (next(events), next(events))}  # type: ignore[union-attr]
    assert next(events).kind == "ready"  # type: ignore[union-attr]

    typist.says(b">")
    typist.type(b"a")
    typist.says(b">>")

    rebooted = next(events)
    assert isinstance(rebooted, wire.Event)
    assert rebooted.kind == "rebooted"
    assert rebooted.took is not None
    assert {p.name: p.pid for p in machine.describe().processes if p.name in pids} == pids
    machine.pause()
    machine.resume()
    assert machine.stop(force=True) == "stopped"
    typist.close()
