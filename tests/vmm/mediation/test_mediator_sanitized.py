"""The mediator's tests once more, on C built with AddressSanitizer and UBSan."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=all -g"
# By path: the packages need their extensions already.
BUILD = """
import runpy
for path in ("protocol/ring/build.py", "protocol/mapping/build.py", "vmm/mediation/build.py"):
    runpy.run_path(path)["ffi"].compile(tmpdir=".")
"""
TESTS = (
    "test_mediator.py",
    "test_mediator_hostile.py",
    "test_mediator_properties.py",
    "test_arena.py",
)
PARTS = ("protocol", "vmm/mediation", "tests/support", "tests/vmm/mediation")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc with its sanitizers")
def test_the_mediators_tests_pass_under_sanitizers(tmp_path: Path) -> None:
    # A copy of its own, for the extensions that everybody else uses must not change.
    built = shutil.ignore_patterns("*.so", "*.o", "_ring*.c", "_mapping.c", "_mediator.c")
    for part in PARTS:
        shutil.copytree(ROOT / part, tmp_path / part, ignore=built)
    for file in ("pyproject.toml", "vmm/__init__.py"):
        shutil.copy(ROOT / file, tmp_path / file)
    build = os.environ | {"CC": "gcc", "CFLAGS": SANITIZE, "LDFLAGS": SANITIZE}
    python = [sys.executable]
    subprocess.run(
        [*python, "-c", BUILD], cwd=tmp_path, env=build, check=True, capture_output=True, timeout=60
    )
    runtime = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()

    # The interpreter itself leaks at exit, so only errors count. pytest would keep their report.
    preload = {"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}
    result = subprocess.run(
        [*python, "-m", "pytest", "-qs", *(f"tests/vmm/mediation/{test}" for test in TESTS)],
        cwd=tmp_path,
        env=os.environ | preload,
        capture_output=True,
        text=True,
        timeout=110,
    )

    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
