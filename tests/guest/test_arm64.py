"""The arm64 guests, as a user runs them: no option says that they are arm64's."""

from __future__ import annotations

import subprocess

import pytest

from tests.support.guest import KERNELS, build
from tests.support.vibevmm import DEADLINE, ROOT, vibevmm

pytest.importorskip("unicorn", reason="the Unicorn engine is not installed")


def options(name: str) -> list[str]:
    """The seed's, for the guest of this name."""
    build()
    path = KERNELS / f"{name}.raw"
    if not path.exists():
        pytest.skip(f"{path.name} is not built: that needs clang, lld and llvm")
    return ["--binary", str(path), "--entry", "0x10000", "--mem", "128M"]


def test_the_quick_start_prints_hello_and_says_what_it_runs_on() -> None:
    done = vibevmm(*options("arm64_hello"))

    assert (done.returncode, done.stdout) == (0, "Hello World\n")
    assert done.stderr.splitlines() == [
        "vibevmm: a CPU in software: the guest is arm64, and KVM runs x86-64 guests here"
    ]


@pytest.mark.slow
@pytest.mark.kvm
def test_quicktest_passes_whole() -> None:
    done = subprocess.run(
        [ROOT / "quicktest.sh"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["ok", name]
        for name in ("x86_64_hello_serial", "x86_64_hello_mmio", "x86_64_demo", "arm64_hello")
    ]
