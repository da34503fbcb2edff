"""Locks on the files of devices, which outlive processes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.locks import Locks
from protocol.errors import BadInput


@pytest.fixture
def locks() -> Iterator[Locks]:
    made = Locks()
    yield made
    made.close()


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[list[int]]:
    """The same file, opened four times."""
    path = tmp_path / "disk"
    path.touch()
    fds = [os.open(path, os.O_RDWR) for _ in range(4)]
    yield fds
    for fd in fds:
        os.close(fd)


def is_free(fd: int, how: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(fd, fcntl.LOCK_UN)
    return True


def test_successor_finds_its_file_locked_for_itself(locks: Locks, opened: list[int]) -> None:
    assert locks.take("blk0", opened[0], shared=False)
    assert locks.take("blk0", opened[1], shared=False)
    assert locks.take("blk0", opened[1], shared=True)
    assert not locks.take("blk1", opened[2], shared=True)
    assert not is_free(opened[3])


def test_readers_share_and_one_of_several_cannot_become_a_writer(
    locks: Locks, opened: list[int]
) -> None:
    assert locks.take("blk0", opened[0], shared=True)
    assert locks.take("blk1", opened[1], shared=True)

    assert not locks.take("blk0", opened[2], shared=False)

    assert not is_free(opened[3])  # both still have it
    locks.keep_only("blk1", [])
    os.close(opened.pop(1))  # the lock goes with the last descriptor of that open file
    assert not is_free(opened[2])
    assert locks.take("blk0", opened[1], shared=False)


def test_file_that_is_not_wanted_any_more_is_let_go(
    locks: Locks, opened: list[int], tmp_path: Path
) -> None:
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    assert locks.take("blk0", opened[0], shared=False)
    assert locks.take("blk0", other, shared=False)

    locks.keep_only("blk0", [other])

    assert is_free(opened[0])
    again = os.open(tmp_path / "other", os.O_RDWR)
    assert not is_free(again)
    os.close(other)
    os.close(again)


def test_lock_outlives_the_descriptor_that_it_was_taken_with(
    locks: Locks, opened: list[int]
) -> None:
    assert locks.take("blk0", opened[0], shared=False)
    os.close(opened.pop(0))
    assert not is_free(opened[0])
    locks.close()
    assert is_free(opened[0])


def new(folder: Path) -> int:
    return os.open(folder, os.O_RDWR | os.O_TMPFILE)


def test_a_new_file_has_its_name_when_it_is_to_serve_and_stays_if_it_does(
    locks: Locks, tmp_path: Path
) -> None:
    path, fd = tmp_path / "new", new(tmp_path)
    assert locks.take("blk0", fd, shared=False, name=str(path))
    locks.settle("blk0")  # another of its files serves
    locks.name("blk1", "--disk")
    assert not path.exists()

    locks.name("blk0", "--disk")
    assert path.stat().st_ino == os.fstat(fd).st_ino
    locks.name("blk0", "--disk")  # once
    locks.settle("blk0")
    locks.keep_only("blk0", [])

    assert path.exists()
    os.close(fd)


def test_a_new_file_goes_with_its_lock_unless_it_serves(locks: Locks, tmp_path: Path) -> None:
    fds = [new(tmp_path) for _ in range(3)]
    for name, fd in zip("abc", fds, strict=True):
        assert locks.take("blk0", fd, shared=False, name=str(tmp_path / name))
    locks.name("blk0", "--disk")
    (tmp_path / "b").unlink()
    (tmp_path / "b").write_text("mine")

    locks.keep_only("blk0", fds[1:])
    assert not (tmp_path / "a").exists()
    assert (tmp_path / "c").exists()
    locks.close()

    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert (tmp_path / "b").read_text() == "mine"
    for fd in fds:
        os.close(fd)


def test_two_new_files_have_not_one_name_and_none_has_that_of_another(
    locks: Locks, tmp_path: Path
) -> None:
    path, fds = tmp_path / "new", [new(tmp_path), new(tmp_path)]
    assert locks.take("blk0", fds[0], shared=False, name=str(path))
    assert not locks.take("blk1", fds[1], shared=False, name=str(path))
    path.write_text("mine")

    with pytest.raises(BadInput, match=r"^--disk \(blk0\): /.*/new: File exists$"):
        locks.name("blk0", "--disk")
    locks.close()

    assert path.read_text() == "mine"
    for fd in fds:
        os.close(fd)
