"""Running the launcher as a user who is nobody, from a test that runs as root."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
NOBODY = 65534


def vibevmm(*arguments: str, groups: Iterable[int] = ()) -> subprocess.CompletedProcess[str]:
    """Run ``vibevmm`` with ``arguments`` as nobody, who is in ``groups``, to its end."""
    listed = ",".join(map(str, groups))
    membership = f"--groups={listed}" if listed else "--clear-groups"
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", membership]
    return subprocess.run(
        [*user, _python(), "-m", "launcher", *arguments],
        cwd=PROJECT,
        env={"PATH": os.environ["PATH"]},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def let_in(folder: Path) -> None:
    """Let nobody read in pytest's ``folder``, whose parents are root's alone otherwise."""
    for place in (folder, *folder.parents[:2]):
        place.chmod(0o755)


def _python() -> str:
    for path in (sys.executable, str(PROJECT / ".venv/bin/python")):
        real = Path(path).resolve()
        if real.exists() and all(folder.stat().st_mode & 0o001 for folder in real.parents):
            return path
    pytest.skip("the interpreter lies in a directory that is root's alone")
