"""A guest's architecture on the command line: found, asked for, and what runs it."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher import backend, cli
from protocol.errors import BadInput
from tests.support import boot_files

pytest.importorskip("unicorn", reason="the Unicorn engine is not installed")

# nop; wfi; b . - 4
ARM64_CODE = bytes.fromhex("1f2003d5 7f2003d5 ffffff17")

DryRun = Callable[..., str]


@pytest.fixture
def dry_run(capfd: pytest.CaptureFixture[str]) -> DryRun:
    """Runs ``vibevmm run --dry-run``; what it says, whether it is a plan or an error."""

    def run(*options: object) -> str:
        cli.main(["run", "--dry-run", *map(str, options)])
        printed = capfd.readouterr()
        return printed.out + printed.err

    return run


@pytest.fixture
def arm64_binary(tmp_path: Path) -> Path:
    path = tmp_path / "arm64.raw"
    path.write_bytes(ARM64_CODE)
    return path


@pytest.fixture
def image(tmp_path: Path) -> Callable[..., Path]:
    """A function that gives an arm64 Image with these fields."""

    def make(**fields: int) -> Path:
        path = tmp_path / "Image"
        path.write_bytes(boot_files.Arm64Image(**fields).build())  # type: ignore[arg-type]
        return path

    return make


def test_a_raw_binary_is_what_it_looks_like(dry_run: DryRun, arm64_binary: Path) -> None:
    said = dry_run("--binary", arm64_binary, "--entry", "0x10000")

    assert "architecture: arm64 (its first instructions are AArch64's)" in said
    assert "entry: 0x10000 at EL1, MMU off" in said
    assert "serial     16550    at 0x90000000, GSI 4, terminal" in said
    assert "hypervisor: software (the guest is arm64, " in said


def test_other_raw_binaries_are_x86_64(dry_run: DryRun, binary: str) -> None:
    said = dry_run("--binary", binary, "--entry", "0x10000")

    assert "architecture: x86_64 (" in said
    assert "in 64-bit mode" in said


@pytest.mark.parametrize("wanted", ["x86_64", "arm64"])
def test_what_is_asked_for_is_not_looked_at(
    dry_run: DryRun, binary: str, arm64_binary: Path, wanted: str
) -> None:
    for path in (binary, arm64_binary):
        said = dry_run("--binary", path, "--entry", "0x10000", "--arch", wanted)

        assert f"architecture: {wanted} (as asked for)" in said


def test_a_kernel_for_arm64_is_found_and_has_fifteen_devices(
    dry_run: DryRun, image: Callable[..., Path]
) -> None:
    said = dry_run("--kernel", image(), *["--device", "rng"] * 15)

    assert "architecture: arm64 (as the kernel says)" in said
    assert "device tree" in said
    assert said.count("queue(s)") == 15


def test_flags_that_cannot_be_met_are_bad_input_that_names_the_file(
    dry_run: DryRun, image: Callable[..., Path]
) -> None:
    path = image(flags=0xB)

    assert dry_run("--kernel", path).startswith(f"vibevmm: --kernel: {path}: ")


def test_a_kernel_of_the_other_architecture_is_bad_input(
    dry_run: DryRun, image: Callable[..., Path]
) -> None:
    path = image()

    said = dry_run("--kernel", path, "--arch", "x86_64")

    assert said == f"vibevmm: --kernel: {path}: this is not a kernel: it is an arm64 kernel\n"


def test_an_architecture_that_is_unknown_is_bad_input(dry_run: DryRun, binary: str) -> None:
    said = dry_run("--binary", binary, "--entry", "0", "--arch", "arm")

    assert said == "vibevmm: --arch: 'arm' is none; did you mean 'arm64'?\n"


def test_kvm_does_not_run_it_and_says_why(dry_run: DryRun, arm64_binary: Path) -> None:
    said = dry_run("--binary", arm64_binary, "--entry", "0", "--hypervisor", "kvm")

    assert said == (
        "vibevmm: --hypervisor: kvm, but the guest is arm64, and KVM runs x86-64 guests here; "
        "software can run it\n"
    )


def test_several_cpus_are_refused_with_the_reason(dry_run: DryRun, arm64_binary: Path) -> None:
    said = dry_run("--binary", arm64_binary, "--entry", "0", "--cpus", "2")

    assert "the software CPU (taken because the guest is arm64, " in said


def test_on_a_host_of_another_architecture_x86_64_guests_are_not_for_kvm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")

    found = backend.choose("auto", architecture="x86_64", kernel=True, cpus=1)
    with pytest.raises(BadInput, match="kvm, but the guest is x86-64, and this host aarch64"):
        backend.choose("kvm", architecture="x86_64", kernel=True, cpus=1)

    assert str(found) == "software (the guest is x86-64, and this host aarch64)"
