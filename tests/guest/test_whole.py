"""`vibevmm` and its processes as one: what the guest asks for, and what the user does, arrive."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from protocol.virtio import Mmio
from tests.support.bare import assembled, require_kvm
from tests.support.guest import DEMO, demo
from tests.support.listings import (
    BREAK_THE_RING,
    ECHO,
    PANIC,
    UNTIL_THE_POWER_BUTTON,
    WAKE_SEVEN,
)
from tests.support.vibevmm import DEADLINE, every_device, raw, run, started, vibevmm
from vmm.memory_map import VIRTIO_SLOT_SIZE, VIRTIO_WINDOW

pytestmark = pytest.mark.kvm

EVERY_DEVICE = {"blk0", "console0", "rng0"}


@pytest.fixture(autouse=True)
def _kvm() -> None:
    require_kvm()


def in_used_slots(stats: dict[str, Any], kind: str) -> set[int]:
    """Which registers of the devices had exits of that kind."""
    return {
        (row["address"] - VIRTIO_WINDOW) % VIRTIO_SLOT_SIZE
        for row in stats["exits"]
        if row["kind"] == kind and row["device"] in EVERY_DEVICE
    }


def test_no_notification_acknowledgement_or_read_of_a_register_exits(tmp_path: Path) -> None:
    _, stats = run(tmp_path, demo(DEMO, sleep=True))

    disk = next(device for device in stats["devices"] if device["name"] == "blk0")
    assert disk["counters"]["requestq.kicks"]  # one of few requests may be seen before its kick is
    for device in stats["devices"]:
        counters = device["counters"]
        assert any(counters[key] for key in counters if "interrupts" in key)
    written = in_used_slots(stats, "mmio write")
    assert Mmio.STATUS in written
    assert not written & {Mmio.QUEUE_NOTIFY, Mmio.INTERRUPT_ACK}
    assert in_used_slots(stats, "mmio read") == set()


def test_driver_that_breaks_its_ring_is_interrupted_and_told_to_reset(tmp_path: Path) -> None:
    done = vibevmm(*raw(tmp_path, assembled(BREAK_THE_RING)), "--device", "rng")

    # 1, a used buffer, is always set; 2 is a configuration change.
    assert (done.returncode, done.stdout.strip()) == (0, "R3"), done.stderr
    assert "rng0 needs a reset" in done.stderr


def test_all_of_eight_processors_come_up(tmp_path: Path) -> None:
    done = vibevmm(*raw(tmp_path, assembled(WAKE_SEVEN)), "--cpus", "8")

    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.strip()) == list("1234567")


def test_panic_is_status_1(tmp_path: Path) -> None:
    done = vibevmm(*raw(tmp_path, assembled(PANIC)))

    assert (done.returncode, done.stdout) == (1, "")
    assert "the guest panicked" in done.stderr


@pytest.mark.slow  # in the lab
def test_what_comes_through_a_pipe_is_input_of_the_serial_port(tmp_path: Path) -> None:
    done = vibevmm(*raw(tmp_path, assembled(ECHO)), typed="echo from afar: q")

    assert (done.returncode, done.stdout.strip()) == (0, ">echo from afar:"), done.stderr


@pytest.mark.slow  # in the lab
def test_sigusr1_prints_statistics_and_the_guest_runs_on(tmp_path: Path) -> None:
    with started(*raw(tmp_path, assembled(ECHO)), "--stats", "--device", "rng") as running:
        running.type(b"a")
        running.wait_for(">a")

        running.process.send_signal(signal.SIGUSR1)

        running.wait_for("returns of KVM_RUN")
        running.wait_for("rng0")
        assert re.search(r"port write +0x3f8 +serial", running.screen)
        running.type(b"still here")
        running.wait_for("still here")
        running.type(b"q")
        assert running.process.wait(DEADLINE) == 0


@pytest.mark.slow  # in the lab
def test_power_button_in_the_terminal_is_pressed_in_the_guest(tmp_path: Path) -> None:
    with started(*raw(tmp_path, assembled(UNTIL_THE_POWER_BUTTON))) as running:
        running.wait_for(">")

        running.type(b"\x01p")

        assert running.process.wait(DEADLINE) == 0


@pytest.mark.slow  # in the lab
def test_trace_has_a_line_for_all_that_happens_in_its_order(tmp_path: Path) -> None:
    trace = tmp_path / "trace"

    done = vibevmm(
        *raw(tmp_path, demo(DEMO, sleep=True)), *every_device(tmp_path), "--trace", str(trace)
    )

    assert done.returncode == 0, done.stderr
    rows = [line.split(None, 3) for line in trace.read_text().splitlines()]
    assert [float(row[0]) for row in rows] == sorted(float(row[0]) for row in rows)
    who: dict[str, set[str]] = {}
    for _, name, kind, _ in rows:
        who.setdefault(kind, set()).add(name)
    assert who["kick"] == who["chain"] == who["interrupt"] == EVERY_DEVICE
    assert who["exit"] == {"vmm"}
    assert who["control"] == {"vmm", "launcher"}
    said = [what for _, name, kind, what in rows if (name, kind) == ("vmm", "control")]
    assert said[-1].startswith("> MachineStats(")  # its last word
    # The status of a device, which is one of its registers; and in the end, POWER_OFF.
    exits = [what for _, _, kind, what in rows if kind == "exit"]
    status = VIRTIO_WINDOW + Mmio.STATUS
    assert any(what.startswith(f"cpu0 mmio {status:#x} write 4 = 0xf ") for what in exits)
    assert exits[-1].startswith("cpu0 port 0x604 write 2 = 0x3400 ")


@pytest.mark.slow  # in the lab
def test_trace_for_perfetto_has_every_kind_of_event(tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"

    done = vibevmm(
        *raw(tmp_path, demo(DEMO, sleep=True)), *every_device(tmp_path), "--trace", str(trace)
    )

    assert done.returncode == 0, done.stderr
    events = json.loads(trace.read_text())["traceEvents"]
    kinds = {event["cat"] for event in events if event["ph"] in ("X", "i")}
    assert {"exit", "kick", "chain", "interrupt", "control"} <= kinds
    processes = {row["args"]["name"] for row in events if row["name"] == "process_name"}
    assert processes == {"launcher", "vmm"} | EVERY_DEVICE
