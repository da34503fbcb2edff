"""Every verb, on machines that pretend (tests/support/fake_vmm.py), and what can be wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher import cli
from launcher.verbs import VERBS
from protocol import control as wire
from protocol.messages import MachineStats
from protocol.service import Client as Connection
from tests.support.machines import Start

# Nearly each starts a machine.
pytestmark = pytest.mark.slow

Capture = pytest.CaptureFixture[str]


def said(capfd: Capture, *words: str, status: int = 0) -> str:
    """What ``vibevmm WORDS`` prints, to either output; it ends with ``status``."""
    capfd.readouterr()
    assert cli.main(words) == status, capfd.readouterr()
    printed = capfd.readouterr()
    return printed.out + printed.err


def told(capfd: Capture, *words: str) -> Any:
    """The same with --json, as data."""
    return json.loads(said(capfd, *words, "--json"))


# ── ps, stats ─────────────────────────────────────────────────────────────────────────────


def test_ps_lists_machines_with_their_processes(start: Start, capfd: Capture) -> None:
    start("idle", "rng", "rng,id=other")
    start("echo")

    text = said(capfd, "ps")
    echo, idle = told(capfd, "ps")

    for words in ("idle", "echo", "rng0", "other", "running"):
        assert words in text
    assert [process["name"] for process in idle["processes"]] == ["vmm", "rng0", "other"]
    assert {process["state"] for process in idle["processes"]} == {"running"}
    assert idle["processes"][1]["kind"] == "rng"
    assert idle["processes"][1]["generation"] == 1
    assert idle["processes"][1]["rss"] > 0
    # Of the VMM's own jail, as it said; a name its jail has none.
    assert (idle["processes"][0]["isolation"], idle["processes"][0]["lacks"]) == (None, ["net"])
    assert "without net" in text
    assert echo["name"] == "echo"
    assert echo["streams"] == ["serial"]


def test_ps_of_nothing(runtime: Path, capfd: Capture) -> None:
    assert said(capfd, "ps") == "no machine runs\n"
    assert told(capfd, "ps") == []


@pytest.mark.slow
def test_ps_of_one_that_hangs_says_so_and_lists_the_others(start: Start, capfd: Capture) -> None:
    hanging = start("idle-hangs").describe().pid
    start("idle-well")
    os.kill(hanging, signal.SIGSTOP)
    try:
        found = {machine["name"]: machine["state"] for machine in told(capfd, "ps")}
    finally:
        os.kill(hanging, signal.SIGCONT)

    assert found == {"idle-hangs": "no answer", "idle-well": "running"}


def test_stats(start: Start, capfd: Capture) -> None:
    start("idle", "rng")

    assert "3 returns of KVM_RUN" in said(capfd, "stats", "idle")
    assert told(capfd, "stats")["devices"][0]["counters"] == {"chains": 7}


# ── pause, resume, stop, kill ─────────────────────────────────────────────────────────────


def test_pause_and_resume_twice_each(start: Start, capfd: Capture) -> None:
    start("idle")

    assert said(capfd, "pause") == "idle is paused\n"
    assert told(capfd, "pause") == {"vm": "idle", "state": "paused"}
    assert told(capfd, "ps")[0]["state"] == "paused"
    assert said(capfd, "resume", "idle") == "idle is running\n"
    said(capfd, "resume")
    assert told(capfd, "ps")[0]["state"] == "running"
    kinds = [json.loads(line)["event"] for line in said(capfd, "events").splitlines()]
    assert kinds == ["started", "ready", "paused", "resumed"]


@pytest.mark.parametrize(
    ("behaviour", "options", "words"),
    [
        ("polite", (), "has ended: power-off\n"),
        ("idle", ("--force",), "has ended: stopped\n"),
        ("idle", ("--timeout", "0.1"), "stopped, by force: the guest did not power off within 0.1"),
        ("buttonless", (), "stopped, by force: this machine has no power button\n"),
    ],
)
def test_stop(
    start: Start, capfd: Capture, behaviour: str, options: tuple[str, ...], words: str
) -> None:
    machine = start(behaviour)

    assert words in said(capfd, "stop", *options)
    assert machine.wait(20) == 0
    assert told(capfd, "ps") == []


def test_paused_machine_can_be_stopped(start: Start, capfd: Capture) -> None:
    start("polite")
    said(capfd, "pause")

    assert told(capfd, "stop") == {"vm": "polite", "ended": "power-off", "forced": ""}


def test_kill_is_of_the_device_that_is_named(start: Start, capfd: Capture) -> None:
    machine = start("idle", "rng", "rng,id=other")
    pids = {process.name: process.pid for process in machine.describe().processes}

    assert told(capfd, "kill", "idle/other") == {
        "vm": "idle",
        "device": "other",
        "pid": pids["other"],
        "others": [],
    }
    # The supervisor's policy as it is: a dead device ends the machine.
    assert machine.wait(20) == 3


# ── events ────────────────────────────────────────────────────────────────────────────────


def test_events_are_told_to_the_end(start: Start) -> None:
    machine = start("idle", "rng")
    coming = machine.events()
    first = next(coming)
    pid = machine.kill("rng0")
    events = [first, *coming]

    assert [(event.kind, event.device) for event in events] == [  # type: ignore[union-attr]
        ("started", "vmm"),
        ("started", "rng0"),
        ("ready", ""),
        ("died", "rng0"),
        ("ended", ""),
    ]
    assert events[3].pid == pid  # type: ignore[union-attr]
    assert events[3].detail.startswith("was killed by SIGKILL")  # type: ignore[union-attr]


def test_event_as_json(start: Start, capfd: Capture) -> None:
    start("idle", "rng")

    started, _, ready = (json.loads(line) for line in said(capfd, "events").splitlines())

    assert started["vm"] == "idle"
    assert started["device"] == "vmm"
    assert started["number"] == 1
    assert started["time"].endswith("Z")
    assert ready["took_ms"] > 0
    assert "device" not in ready


# ── what can be wrong ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("pause nothing", "'nothing': no such machine; known: idle"),
        ("pause idle idle", "'idle': one target is enough: vibevmm pause [VM] [--json]"),
        ("pause --force", "--force: no such option"),
        ("pause --json=yes", "--json: takes no value"),
        ("stop --timeout", "--timeout: needs a value: SECONDS"),
        ("stop --timeout soon", "--timeout: 'soon' is no number of seconds"),
        ("stop --timeout nan", "--timeout: 'nan' is no number of seconds"),
        ("stop --timeout 90000", "--timeout: 86400 seconds at most"),
        ("kill idle/blk9", "'blk9': no such device; there are rng0"),
        ("kill idle/vmm", "'vmm': no such device; there are rng0"),
        ("kill idle", "'idle': a machine; which device of it? idle/DEVICE"),
        ("attach rng0", "'rng0': no stream to attach to; there are serial"),
        ("stats idle/rng0", "'idle/rng0': stats is for a machine"),
        ("device run", "device run: which device? vibevmm device run MODULE[:CLASS]"),
        ("device run rng", "--attach: which device of which machine is it to be? VM/DEV"),
        ("device run rngs --attach idle/rng0", "device run: 'rngs' is not a kind of device"),
        ("device run rng --attach idle/rng9", "'rng9': no such device; there are rng0"),
        ("device run rng --attach ideal/rng0", "'ideal': no such machine; did you mean 'idle'?"),
        ("device run rng --attach idle", "'idle': a machine; which device of it? idle/DEVICE"),
        ("device run null --attach rng0", "device run: a device of type 65535, not 4"),
        ("device run rng --attach rng0 max-bytes=x", "device run: max_bytes: 'x' ends in 'X'"),
        ("device run rng --atach rng0", "--atach: no such option; did you mean '--attach'?"),
        ("device walk", "'device': no such command"),
    ],
)
def test_bad_input_is_status_2_and_the_machine_runs_on(
    start: Start, capfd: Capture, words: str, error: str
) -> None:
    machine = start("idle", "rng")

    assert said(capfd, *words.split(), status=2).startswith(f"vibevmm: {error}")
    assert machine.describe().state == "running"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_json(verb: str, capfd: Capture) -> None:
    text = said(capfd, verb, "--help")

    assert text.startswith(f"usage: vibevmm {verb} ")
    assert "--json" in text


@pytest.mark.parametrize("verb", sorted(VERBS.keys() - {"ps"}))
def test_verb_without_a_machine_is_bad_input(verb: str, runtime: Path, capfd: Capture) -> None:
    assert "no machine runs" in said(capfd, verb, status=2)


def test_garbage_at_the_socket_of_a_machine_harms_nobody(
    start: Start, runtime: Path, capfd: Capture
) -> None:
    machine = start("idle", "rng")
    hooligan = Connection(str(runtime / "vibevmm" / "idle" / "control"))
    for _ in range(500):
        hooligan.send(os.urandom(100))
        hooligan.send(b"a", b"b")
    hooligan.send(bytes(100_000))

    machine.pause()

    assert machine.describe().state == "paused"
    hooligan.close()


@pytest.mark.slow
def test_flood_of_what_the_vmm_has_to_answer_is_not_passed_on_to_it(
    start: Start, runtime: Path
) -> None:
    machine = start("idle", "rng")
    hooligan = Connection(str(runtime / "vibevmm" / "idle" / "control"))
    for number in range(1, 900):
        hooligan.send(wire.encode(wire.Measure(), number))
    replies = []
    while len(replies) < 899:
        frame = hooligan.receive(20)
        assert frame is not None, f"{len(replies)} replies"
        replies.append(type(wire.decode(frame, wire.FROM_LAUNCHER).message))
    hooligan.close()

    assert set(replies) == {MachineStats, wire.Failed}
    assert replies.count(MachineStats) < 400
    assert machine.describe().state == "running"


# ── completion ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("verb", "offered"),
    [
        ("pause", ["echo", "idle"]),
        ("kill", ["idle/rng0"]),
        ("attach", ["echo/serial", "idle/serial"]),
    ],
)
def test_completion_knows_what_there_is(
    start: Start, capfd: Capture, verb: str, offered: list[str]
) -> None:
    start("idle", "rng")
    start("echo")

    assert said(capfd, "completion", "targets", verb).split() == offered


def test_nobody_waits_for_rich_but_who_looks_at_a_table() -> None:
    program = """
import sys
import launcher.cli, launcher.session, launcher.handlers, launcher.control, launcher.verbs
import launcher.client, launcher.api, launcher.attach
print([name for name in sys.modules if name.split(".")[0] == "rich"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert done.stdout == "[]\n", done.stderr
