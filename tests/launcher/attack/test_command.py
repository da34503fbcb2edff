"""``vibevmm attack``: its options, its exit status, and what it prints."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from launcher import cli
from launcher.attack import command
from launcher.attack.table import ATTACKS, Attack, Outcome
from protocol.specs import LEVELS


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], Outcome]:
    """Outcomes other than the expected ones, by name and level, of machines that never were."""
    others: dict[tuple[str, str], Outcome] = {}

    def attacked(attacks: Sequence[Attack], level: str, hypervisor: str) -> dict[str, Outcome]:
        return {
            attack.name: others.get(
                (attack.name, level), Outcome(attack.expects(level, mediated=True), "as expected")
            )
            for attack in attacks
        }

    monkeypatch.setattr(command, "attacked", attacked)
    return others


def run(*words: str) -> int:
    return cli.main(["attack", "--hypervisor", "software", *words])


@pytest.mark.usefixtures("pretend")
def test_what_comes_to_what_it_should_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0

    out = capsys.readouterr().out
    assert all(name in out for name in ATTACKS)
    assert all(level in out for level in LEVELS)


def test_an_escape_is_told_and_is_exit_status_1(
    pretend: dict[tuple[str, str], Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    pretend["read-file", "jail"] = Outcome("succeeded", "secret 12")

    assert run("read-file", "read-canary") == 1

    assert "ESCAPE: read-file at jail: secret 12" in capsys.readouterr().err


def test_what_the_host_itself_contains_is_told_and_no_error(
    pretend: dict[tuple[str, str], Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    pretend["io-uring", "none"] = Outcome("contained", "EPERM")

    assert run("io-uring") == 0

    assert "io-uring at none: this host holds it itself: EPERM" in capsys.readouterr().err


@pytest.mark.usefixtures("pretend")
def test_json_has_each_verdict_evidence_and_expectation(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("read-canary", "--json", "--level", "jail,bounce") == 0

    found = json.loads(capsys.readouterr().out)
    assert found["hypervisor"] == "software"
    assert list(found["attacks"]["read-canary"]) == ["jail", "bounce"]
    assert found["attacks"]["read-canary"]["jail"] == {
        "verdict": "succeeded",
        "evidence": "as expected",
        "expected": "succeeded",
    }


def test_the_list_needs_no_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "attacked", None)

    assert run("--list", "--json") == 0

    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == list(ATTACKS)
    assert rows["corrupt-used"]["expected"]["jail"] == "reported"  # mediated
    assert rows["double-fetch"]["row"] == 5


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["read-canari"], "'read-canari': no such attack; did you mean 'read-canary'?"),
        ([""], "'': no such attack"),
        (["--level", "prison"], "--level: 'prison' is not one of none, jail, bounce"),
        (["--hypervisor", "xen"], "--hypervisor: 'xen' is not one of auto, kvm, software"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(
    words: list[str], why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "attacked", None)

    assert cli.main(["attack", *words]) == 2

    assert why in capsys.readouterr().err
