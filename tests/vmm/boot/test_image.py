"""Files to boot from: what is refused, and that nobody's file position moves."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.errors import BadInput
from vmm.boot.image import Image

FileOf = Callable[[bytes], int]


def test_an_empty_file_is_refused_by_the_name_of_its_option(file_of: FileOf) -> None:
    with pytest.raises(BadInput, match="--initrd: the file is empty"):
        Image(file_of(b""), "--initrd")


def test_a_pipe_is_refused() -> None:
    reader, writer = os.pipe()
    try:
        with pytest.raises(BadInput, match="--kernel: this is not a regular file"):
            Image(reader, "--kernel")
    finally:
        os.close(reader)
        os.close(writer)


def test_reading_leaves_the_shared_position_alone(file_of: FileOf) -> None:
    fd = file_of(b"abcdef")
    os.lseek(fd, 2, os.SEEK_SET)
    image, view = Image(fd, "--kernel"), bytearray(3)

    image.part(1, 3).read_into(memoryview(view))

    assert (image.read(4, 10), bytes(view)) == (b"ef", b"bcd")
    assert os.lseek(fd, 0, os.SEEK_CUR) == 2


def test_a_file_object_is_kept_open(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(b"abcdef")

    image = Image(path.open("rb"), "--kernel")

    assert image.read(0, 3) == b"abc"


def test_a_part_beyond_the_end_is_a_truncated_file(file_of: FileOf) -> None:
    image = Image(file_of(b"abcdef"), "--kernel")

    with pytest.raises(BadInput, match="truncated: its header promises 7 bytes, it has 6"):
        image.part(2, 5)


def test_a_file_that_shrinks_while_it_is_loaded_is_an_error(file_of: FileOf) -> None:
    fd = file_of(b"abcdef")
    part = Image(fd, "--kernel").part()
    os.ftruncate(fd, 3)

    with pytest.raises(BadInput, match="became shorter"):
        part.read_into(memoryview(bytearray(6)))
