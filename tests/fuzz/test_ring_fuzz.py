"""A short run of the ring fuzzer, so that it does not rot; run.sh takes longer ones."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = 10
RUN = Path(__file__).with_name("run.sh")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("clang") is None, reason="needs clang with libFuzzer")
def test_the_ring_engine_survives_a_short_fuzzing_under_sanitizers(tmp_path: Path) -> None:
    result = subprocess.run(
        ["sh", str(RUN), str(SECONDS), str(tmp_path)],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=100,
    )

    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"ring_fuzz: \d+ executions", result.stdout)
    assert not list(tmp_path.glob("finding-*"))
