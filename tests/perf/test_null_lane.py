"""The lane without a file is built from what the lanes are, and answers a request at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.perf.vhost import build_null_lane
from tests.support.packages import PROJECT

pytestmark = pytest.mark.slow  # it builds C


def test_lane_without_a_file_can_be_built_and_is_what_the_disk_is_served_by(tmp_path: Path) -> None:
    build_null_lane(tmp_path)

    said = subprocess.run(
        [sys.executable, "-c", "import null_blk; print(null_blk.NullBlk.lanes.lib)"],
        env=os.environ | {"PYTHONPATH": f"{PROJECT}:{PROJECT / 'tests/support'}:{tmp_path}"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert "_null_lane" in said
