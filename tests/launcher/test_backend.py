"""Which backend a machine gets, on each kind of host, and why."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher.backend import choose
from protocol.errors import BadInput, HostError
from vmm.hypervisor import detect


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """A function that makes this host another: its KVM (hardware, software, none), its engine."""

    def make(kvm: str, engine: bool) -> None:
        monkeypatch.setattr(detect, "kvm_opens", lambda: kvm != "none")
        monkeypatch.setattr(detect, "kvm_is_software", lambda: kvm == "software")
        monkeypatch.setattr(detect, "has_engine", lambda: engine)

    return make


@pytest.mark.parametrize(
    ("kvm", "engine", "kernel", "taken", "why"),
    [
        ("hardware", True, True, "kvm", "is hardware"),
        ("hardware", False, True, "kvm", "is hardware"),
        ("software", True, True, "software", "on which kernels do not boot"),
        ("software", True, False, "kvm", "enough for a raw binary"),
        ("software", False, True, "kvm", "pip install"),
        ("none", True, True, "software", "does not open"),
        ("none", True, False, "software", "does not open"),
        ("none", False, True, "kvm", "pip install"),
    ],
)
def test_auto_takes_what_runs_the_guest_and_says_why(
    kvm: str,
    engine: bool,
    kernel: bool,
    taken: str,
    why: str,
    host,  # type: ignore[no-untyped-def]
) -> None:
    host(kvm, engine)

    found = choose("auto", architecture="x86_64", kernel=kernel, cpus=1)

    assert found.name == taken
    assert why in found.why
    assert found.is_fallback == (why == "pip install")


def test_what_is_asked_for_is_taken(host) -> None:  # type: ignore[no-untyped-def]
    host("hardware", True)

    assert choose("software", architecture="x86_64", kernel=True, cpus=1).name == "software"
    assert choose("kvm", architecture="x86_64", kernel=True, cpus=8).name == "kvm"


def test_engine_that_is_missing_is_said_with_the_command_that_brings_it(host) -> None:  # type: ignore[no-untyped-def]
    host("hardware", False)

    with pytest.raises(HostError, match=r"pip install 'vibe-vmm\[software\]'"):
        choose("software", architecture="x86_64", kernel=True, cpus=1)


def test_more_cpus_than_one_are_refused_with_the_option_and_the_reason(host) -> None:  # type: ignore[no-untyped-def]
    host("software", True)

    with pytest.raises(BadInput, match="--cpus: 2: the software CPU is one CPU"):
        choose("software", architecture="x86_64", kernel=True, cpus=2)
    with pytest.raises(BadInput, match="taken because /dev/kvm is software KVM"):
        choose("auto", architecture="x86_64", kernel=True, cpus=2)


def test_software_kvm_is_known_by_its_module_or_by_what_the_processor_lacks(
    tmp_path: Path,
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags\t: fpu svm sse2\n")
    assert not detect.kvm_is_software(str(cpuinfo), str(tmp_path))

    cpuinfo.write_text("flags\t: fpu sse2\n")
    assert detect.kvm_is_software(str(cpuinfo), str(tmp_path))


def test_kvm_that_permissions_allow_and_the_system_refuses_does_not_open(tmp_path: Path) -> None:
    # As a device node does in a container that was not given the device.
    assert os.access(tmp_path, os.R_OK | os.W_OK)
    assert not detect.kvm_opens(str(tmp_path))
    assert not detect.kvm_opens(str(tmp_path / "nothing"))
