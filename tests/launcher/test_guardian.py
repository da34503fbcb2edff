"""Folders that go with who made them (terminals: test_attach)."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import pytest

from launcher import guardian
from tests.support.leaks import children, none_left


def test_folder_is_ours_alone_and_goes(tmp_path: Path) -> None:
    with none_left(), guardian.folder("x-", str(tmp_path)) as made:
        assert made.parent == tmp_path
        assert stat.S_IMODE(made.stat().st_mode) == 0o700
        (made / "file").touch()

    assert list(tmp_path.iterdir()) == []


def test_folder_goes_though_its_guardian_is_killed(tmp_path: Path) -> None:
    before = children()
    with guardian.folder("x-", str(tmp_path)) as made:
        (pid,) = set(children()) - set(before)
        os.kill(pid, signal.SIGKILL)
        (made / "file").touch()

    assert list(tmp_path.iterdir()) == []


def test_folder_goes_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), guardian.folder("x-", str(tmp_path)):
        raise KeyError

    assert list(tmp_path.iterdir()) == []
