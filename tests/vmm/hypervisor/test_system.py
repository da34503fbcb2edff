"""/dev/kvm itself: what it offers, what is said when it cannot be used, and what it leaves open."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from protocol.errors import BadInput, HostError
from tests.support.bare import require_kvm
from vmm.hypervisor.detect import kvm_is_software as is_software
from vmm.hypervisor.kvm import Kvm
from vmm.hypervisor.kvm.system import read_capabilities


def test_missing_required_capability_is_named() -> None:
    lacking = {"KVM_CAP_IMMEDIATE_EXIT", "KVM_CAP_USER_MEMORY"}

    with pytest.raises(HostError, match="KVM_CAP_USER_MEMORY, KVM_CAP_IMMEDIATE_EXIT") as error:
        read_capabilities(lambda name: int(name not in lacking), software=False)

    assert error.value.exit_status == 3


@pytest.mark.parametrize(
    ("lacking", "field"),
    [
        ("KVM_CAP_IRQCHIP", "irqchip"),
        ("KVM_CAP_PIT2", "irqchip"),
        ("KVM_CAP_IOEVENTFD", "ioeventfd"),
        ("KVM_CAP_IRQFD", "irqfd"),
        ("KVM_CAP_IRQFD_RESAMPLE", "irqfd"),
        ("KVM_CAP_READONLY_MEM", "read_only_slots"),
    ],
)
def test_missing_optional_capability_is_declared_absent(lacking: str, field: str) -> None:
    complete = read_capabilities(lambda name: 1, software=False)

    found = read_capabilities(lambda name: int(name != lacking), software=False)

    assert getattr(complete, field) is True
    assert getattr(found, field) is False


@pytest.mark.parametrize(
    ("flags", "pvm_module", "software"),
    [
        ("fpu vmx sse", False, False),
        ("fpu svm sse", False, False),
        ("fpu sse hypervisor", False, True),
        ("fpu vmx sse", True, True),
    ],
)
def test_software_kvm_is_told_by_flags_and_module(
    tmp_path: Path, flags: str, pvm_module: bool, software: bool
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: vmx_bug\n")
    if pvm_module:
        (tmp_path / "kvm_pvm").mkdir()

    assert is_software(str(cpuinfo), str(tmp_path)) is software


def test_host_without_kvm_cannot(tmp_path: Path) -> None:
    path = str(tmp_path / "kvm")

    with pytest.raises(HostError, match=f"{path}: No such file") as error:
        Kvm(path)

    assert error.value.exit_status == 3
    assert "pip install 'vibe-vmm[software]'" in str(error.value)


def test_no_permission_is_bad_input_that_says_which_group_to_join(tmp_path: Path) -> None:
    path = tmp_path / "kvm"
    path.touch(mode=0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)  # nobody
    try:
        with pytest.raises(BadInput, match="usermod -aG kvm") as error:
            Kvm(str(path))
    finally:
        if root:
            os.seteuid(0)

    assert error.value.where == str(path)
    assert "pip install 'vibe-vmm[software]'" in str(error.value)


def test_something_else_than_kvm_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kvm"
    path.touch()

    with pytest.raises(HostError, match="KVM_GET_API_VERSION"):
        Kvm(str(path))


@pytest.mark.kvm
@pytest.mark.parametrize("cpus", [0, 100_000])
def test_number_of_cpus_that_the_host_has_not_is_refused(cpus: int) -> None:
    require_kvm()
    with Kvm() as kvm, pytest.raises(HostError, match=f"{cpus} CPUs"):
        kvm.create_vm(cpus)


def kvm_descriptors() -> list[int]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the listing's own
        if "kvm" in target:
            found.append(int(name))
    return found


@pytest.mark.kvm
def test_descriptors_close_on_exec_and_close_leaves_nothing_open_or_mapped() -> None:
    require_kvm()
    with Kvm() as kvm, kvm.create_vm(2) as vm:
        for index in range(2):
            vm.create_vcpu(index)
        during = kvm_descriptors()
        inherited = [fd for fd in during if not fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC]
        mapped = "kvm-vcpu" in Path("/proc/self/maps").read_text()

    assert len(during) == 4  # /dev/kvm, the machine, two vCPUs
    assert inherited == []
    assert mapped
    assert kvm_descriptors() == []
    assert "kvm-vcpu" not in Path("/proc/self/maps").read_text()
