"""The ring tests once more, on an engine built with AddressSanitizer and UBSan."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=all -g"
# By path: importing protocol.ring needs the extension already.
BUILD = """
import runpy
built = runpy.run_path('protocol/ring/build.py')
built['ffi'].compile(tmpdir='.')
built['faults'].compile(tmpdir='.')
runpy.run_path('protocol/mapping/build.py')['ffi'].compile(tmpdir='.')
"""
TESTS = (
    "test_ring.py",
    "test_ring_hazards.py",
    "test_ring_notifications.py",
    "test_ring_atomic.py",
    "test_journal.py",
    "test_journal_forged.py",
)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc with its sanitizers")
def test_the_ring_tests_pass_under_sanitizers(tmp_path: Path) -> None:
    # A copy of its own, for the extension that everybody else uses must not change.
    for part in ("protocol", "tests/support", "tests/protocol"):
        shutil.copytree(
            ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("*.so", "*.o", "_ring*.c")
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    build = os.environ | {"CC": "gcc", "CFLAGS": SANITIZE, "LDFLAGS": SANITIZE}
    python = [sys.executable]
    subprocess.run(
        [*python, "-c", BUILD], cwd=tmp_path, env=build, check=True, capture_output=True, timeout=60
    )
    runtime = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()

    # The interpreter itself leaks at exit, so only errors count.
    preload = {"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}
    result = subprocess.run(
        [*python, "-m", "pytest", "-q", *(f"tests/protocol/{test}" for test in TESTS)],
        cwd=tmp_path,
        env=os.environ | preload,
        capture_output=True,
        text=True,
        timeout=110,
    )

    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
