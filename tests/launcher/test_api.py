"""Machines from Python: what goes wrong is the error that it is, and nothing is left."""

from __future__ import annotations

import subprocess

import pytest

from launcher import api
from launcher.api import VM
from launcher.client import Gone, Refused
from protocol.errors import BadInput, GuestDied, HostError
from tests.support.machines import Start


def test_what_is_asked_wrongly_is_bad_input(runtime: object) -> None:
    with VM(kernel="/nowhere") as machine, pytest.raises(BadInput, match="No such file") as caught:
        machine.wait_ready()

    assert caught.value.where == "--kernel"


@pytest.mark.parametrize(
    ("behaviour", "error", "words"),
    [
        ("stillborn", HostError, "there is something wrong with me"),
        ("died", GuestDied, "triple fault"),
    ],
)
def test_start_that_failed_raises_what_the_machine_said(
    begin: Start, behaviour: str, error: type[Exception], words: str
) -> None:
    machine = begin(behaviour)
    machine.wait(20)

    with pytest.raises(error, match=words):
        machine.wait_ready()


def test_words_of_the_command_line() -> None:
    assert api._words("cpus", 2) == ["--cpus=2"]
    assert api._words("log_file", "x") == ["--log-file=x"]
    assert api._words("stats", True) == ["--stats"]
    assert api._words("stats", False) == []
    assert api._words("disk", ["a", "b"]) == ["--disk=a", "--disk=b"]


def test_name_that_is_taken_is_bad_input(start: Start) -> None:
    start("idle")

    with pytest.raises(BadInput, match="a machine named 'idle' is running"):
        start("idle")


def test_close_ends_and_reaps(start: Start) -> None:
    machine = start("idle", "rng")
    pid = machine.describe().pid

    machine.close()

    assert machine.wait() == 0
    assert subprocess.run(["kill", "-0", str(pid)], capture_output=True).returncode != 0


def test_connected_to_somebody_elses_machine_it_runs_on(start: Start) -> None:
    machine = start("idle")
    with VM.connect("idle") as other:
        other.pause()

    assert machine.describe().state == "paused"
    with VM.connect("idle") as other:
        assert other.stop(force=True) == "stopped"
        with pytest.raises(HostError, match="not started here"):
            other.wait()
    assert machine.wait(20) == 0


def test_connect_to_nothing(runtime: object) -> None:
    with pytest.raises(BadInput, match="no such machine"):
        VM.connect("nothing")


def test_machine_that_has_ended_is_gone(start: Start) -> None:
    machine = start("idle")
    machine.stop(force=True)

    with pytest.raises(Gone):
        machine.pause()
    assert machine.stop() == "gone"


def test_refusal_has_its_exit_status(start: Start) -> None:
    machine = start("idle")

    with pytest.raises(Refused, match="no such device; there is none") as caught:
        machine.kill("blk0")

    assert caught.value.exit_status == 2


def test_stream_is_a_socket(start: Start) -> None:
    with start("echo").attach("serial") as stream:
        stream.settimeout(20)
        stream.sendall(b"x")
        got = b""
        while len(got) < 3:
            got += stream.recv(10)

    assert got == b"[x]"
