"""The files that a run writes stay as they were until it is sure to start."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.files import OutputFiles
from protocol.errors import BadInput


@pytest.fixture
def files() -> Iterator[OutputFiles]:
    """The files of a run that reads nothing."""
    made = OutputFiles([])
    yield made
    made.close()


def test_file_is_emptied_when_the_run_begins_and_not_before(
    files: OutputFiles, tmp_path: Path
) -> None:
    (tmp_path / "log").write_text("of another run")

    fd = files.open("--log-file", str(tmp_path / "log"))
    assert (tmp_path / "log").read_text() == "of another run"

    files.begin()
    os.write(fd, b"ours")
    assert (tmp_path / "log").read_text() == "ours"


def test_refused_run_leaves_old_files_and_no_new_ones(files: OutputFiles, tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    (tmp_path / "link").symlink_to("new")

    files.open("--trace", str(tmp_path / "old"))
    files.open("--log-file", str(tmp_path / "link"))
    assert (tmp_path / "new").exists()
    with pytest.raises(BadInput, match="--stats: "):
        files.open("--stats", str(tmp_path / "new"))
    files.close()

    assert (tmp_path / "old").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "old"]


def test_file_of_a_run_that_began_stays(files: OutputFiles, tmp_path: Path) -> None:
    files.open("--trace", str(tmp_path / "new"))

    files.begin()
    files.close()

    assert (tmp_path / "new").exists()


def test_device_such_as_null_may_be_given_more_than_once(files: OutputFiles) -> None:
    fds = [files.open(option, "/dev/null") for option in ("--trace", "--stats")]

    files.begin()

    assert all(os.get_blocking(fd) for fd in fds)
