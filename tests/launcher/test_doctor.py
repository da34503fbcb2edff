"""The doctor: a verdict on everything, and something to do about what is not well."""

from __future__ import annotations

import json

import pytest

from launcher import cli, doctor
from launcher.doctor import CHECKS, LIMITED, MISSING, OK, Finding, as_text
from vmm.hypervisor import detect


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_finding_has_a_verdict_and_advice_where_one_is_needed(check: object) -> None:
    finding = check()  # type: ignore[operator]

    assert finding.verdict in (OK, LIMITED, MISSING)
    assert finding.found
    assert bool(finding.advice) == (finding.verdict != OK)


def test_report_is_for_people_or_programs(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    assert "KVM" in capfd.readouterr().out

    assert cli.main(["doctor", "--json"]) == 0
    names = [finding["name"] for finding in json.loads(capfd.readouterr().out)]
    assert {"KVM", "software CPU", "VFIO", "tun", "seccomp", "Landlock", "user namespaces"} <= set(
        names
    )


@pytest.mark.parametrize("word", ["doctor", "completion"])
def test_help_is_no_bad_input(word: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main([word, "--help"]) == 0

    assert capfd.readouterr().out.startswith(f"usage: vibevmm {word} ")


def test_option_that_there_is_not_is_bad_input(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--jason"]) == 2
    assert "--jason" in capfd.readouterr().err


def test_advice_stands_below_its_finding() -> None:
    text = as_text([Finding("thing", MISSING, "it is not there", "get one")])

    first, second = text.splitlines()
    assert first.split() == ["missing", "thing", "it", "is", "not", "there"]
    assert second.strip() == "-> get one"


def test_host_without_seccomp_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_read", lambda path: "")

    assert doctor.check_seccomp().verdict == MISSING


def test_host_without_the_engine_is_told_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "has_engine", lambda: False)

    finding = doctor.check_software()

    assert finding.verdict == LIMITED
    assert "pip install 'vibe-vmm[software]'" in finding.advice
