"""The demo guest with devices in processes of their own, as a user runs it."""

from __future__ import annotations

import os
import re
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.bare import require_kvm
from tests.support.guest import DEMO, ECHO, STREAM, build, demo
from tests.support.vibevmm import raw, run, started

pytestmark = pytest.mark.kvm


@pytest.fixture(autouse=True)
def _kernels() -> None:
    require_kvm()
    build()


def returns_but_for_the_serial_port(stats: dict[str, Any]) -> int:
    """Of KVM_RUN; what the guest prints has a number in it, and so another length."""
    printed = sum(row["count"] for row in stats["exits"] if row["device"] == "serial")
    return stats["run_returns"] - printed


@pytest.mark.slow  # in the lab
@pytest.mark.parametrize("sleep", [False, True])
def test_every_device_serves_the_guest_from_a_process_of_its_own(
    tmp_path: Path, sleep: bool, isolation: str
) -> None:
    printed, stats = run(tmp_path, demo(DEMO, sleep=sleep), "--isolation", isolation)

    assert "blk0 wrote 64 sectors, read them back, verified" in printed
    assert "rng0 gave 2 times 32 bytes, which differ" in printed
    assert "Hello from the demo guest, over virtio-console" in printed
    names = {process["name"] for process in stats["processes"]}
    # And a spare, unless the guest was quicker than its making.
    assert names - {"spare"} == {"launcher", "vmm", "zygote", "blk0", "console0", "rng0"}
    assert len({process["pid"] for process in stats["processes"]}) == len(names)


@pytest.mark.parametrize("sleep", [False, True])
def test_a_thousand_requests_more_return_from_kvm_run_not_once_more(
    tmp_path: Path, sleep: bool, isolation: str
) -> None:
    _, few = run(tmp_path, demo(STREAM, sleep=sleep, count=1), "--isolation", isolation)
    _, many = run(tmp_path, demo(STREAM, sleep=sleep, count=1001), "--isolation", isolation)

    chains = [run["devices"][0]["counters"]["requestq.chains"] for run in (few, many)]
    assert chains[1] - chains[0] == 1000
    assert returns_but_for_the_serial_port(many) == returns_but_for_the_serial_port(few)


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process does."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def read(fd: int, size: int) -> bytes:
    """Exactly ``size`` bytes."""
    data = b""
    while len(data) < size:
        assert select.select([fd], [], [], 60)[0], f"only {len(data)} bytes came"
        data += os.read(fd, size - len(data))
    return data


def echoed(user: int) -> None:
    """Have the guest, which echoes until q, echo more than its stream holds."""
    typed = os.urandom(100_000).replace(b"q", b"Q")
    done = 0
    while done < len(typed):  # no more at once than comes back
        os.write(user, typed[done : done + 4000])
        assert read(user, len(typed[done : done + 4000])) == typed[done : done + 4000]
        done += 4000
    os.write(user, b"q")
    assert read(user, 1) == b"q"


def test_a_guest_echoes_what_is_typed_on_a_pty(tmp_path: Path, isolation: str) -> None:
    options = ["--console", "pty", "--isolation", isolation]
    with started(*raw(tmp_path, demo(ECHO, sleep=True)), *options) as running:
        running.wait_for("\n")
        path = re.search(r"console0: pty (/dev/pts/\d+)", running.screen)
        assert path is not None
        user = os.open(path[1], os.O_RDWR | os.O_NOCTTY)
        try:
            echoed(user)
        finally:
            os.close(user)

        assert running.process.wait(60) == 0


@pytest.mark.slow  # in the lab
def test_a_guest_echoes_what_a_client_sends_and_its_stream_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "console.sock"
    options = ["--console", f"socket,path={path}", "--stats"]
    with started(*raw(tmp_path, demo(ECHO, sleep=True)), *options) as running:
        client = socket.socket(socket.AF_UNIX)
        with client:
            until(lambda: client.connect_ex(str(path)) == 0)
            echoed(client.fileno())
            running.wait_for("clients 1")

    assert "input_bytes 100001, output_bytes 100001" in running.screen
    assert not path.exists()
