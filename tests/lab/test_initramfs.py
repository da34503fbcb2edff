"""The archive writer against another implementation's reader."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.initramfs import Archive

BUSYBOX = shutil.which("busybox")
pytestmark = pytest.mark.skipif(BUSYBOX is None, reason="needs busybox, which reads cpio archives")


def unpack(archive: bytes, folder: Path) -> None:
    subprocess.run([str(BUSYBOX), "cpio", "-i", "-d"], input=archive, cwd=folder, check=True)


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 65537])
def test_files_of_any_length_come_out_as_they_went_in(tmp_path: Path, size: int) -> None:
    archive = Archive()
    content = bytes(range(256)) * (size // 256) + bytes(size % 256)
    archive.file("some/folder/file", content, 0o640)
    archive.file("behind", b"it")

    unpack(archive.finish(), tmp_path)

    file = tmp_path / "some" / "folder" / "file"
    assert file.read_bytes() == content
    assert file.stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "behind").read_bytes() == b"it"


def test_a_folder_named_twice_is_written_once(tmp_path: Path) -> None:
    archive = Archive()
    archive.folder("dev")
    archive.device("dev/console", 5, 1)
    archive.folder("dev")
    whole = archive.finish()

    listed = subprocess.run([str(BUSYBOX), "cpio", "-t"], input=whole, capture_output=True)

    assert listed.stdout.decode().split() == ["dev", "dev/console"]


def test_equal_input_gives_equal_archives() -> None:
    images = []
    for _ in range(2):
        archive = Archive()
        archive.file("init", b"#!/bin/sh\n")
        images.append(archive.finish())

    assert images[0] == images[1]
