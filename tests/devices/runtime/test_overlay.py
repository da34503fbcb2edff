"""Overlays: a disk whose image is only read, and what becomes of it when something dies."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.blk import Blk, Config, Feature, MappedBlk, Request, Status
from devices.runtime import files
from devices.runtime.files import overlay
from devices.runtime.files.overlay import BLOCK, Overlay, begin, open_overlay
from launcher.host import Host, Streams
from launcher.locks import Locks
from protocol import fds
from protocol.errors import BadInput
from tests.support.device_host import DeviceHost, FakeHost

Boot = Callable[..., DeviceHost]

SECTOR = 512
SIZE = 5 * BLOCK + SECTOR  # the last block is not whole


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.img"
    path.write_bytes(os.urandom(SIZE))
    return path


@contextmanager
def opened(base: Path, path: Path, *, syncs: bool = True) -> Iterator[Overlay]:
    """As a process has it, which ends without a word."""
    below = os.open(base, os.O_RDONLY)
    fd, name = open_overlay(str(path), str(base), below)
    if name:
        os.link(f"/proc/self/fd/{fd}", name, src_dir_fd=below)  # which is not looked at
    begin(fd)
    made = Overlay(fd, below, SIZE, syncs=syncs)
    try:
        yield made
    finally:
        fds.close_all([fd, below])


def read(image: Overlay, offset: int = 0, size: int = SIZE) -> bytes:
    found = b""
    while len(found) < size:
        fd, place, count = image.find(offset + len(found), size - len(found))
        found += os.pread(fd, count, place)
    return found


def write(image: Overlay, offset: int, data: bytes, flags: int = 0) -> None:
    while data:
        done = image.write(
            lambda size, data=data: [memoryview(data)[:size]], len(data), offset, flags
        )
        offset, data = offset + done, data[done:]


def boot_again(path: Path) -> None:
    """What the host's page cache held is gone: of the bitmaps, the one that is believed then."""
    with path.open("r+b") as file:
        file.seek(32)
        file.write(b"another boot id!")


extents = st.tuples(st.integers(0, SIZE // SECTOR - 1), st.integers(1, 30)).map(
    lambda two: (two[0] * SECTOR, min(two[1] * SECTOR, SIZE - two[0] * SECTOR))
)
deeds = st.lists(
    st.tuples(st.sampled_from(["write", "discard", "zero", "unmap"]), extents), max_size=8
)


@settings(max_examples=100, deadline=None)
@given(deeds)
def test_it_is_the_disk_that_was_written_and_the_base_is_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, deeds: Sequence[tuple[str, tuple[int, int]]]
) -> None:
    folder = tmp_path_factory.mktemp("overlay")
    base, path = folder / "base.img", folder / "x.cow"
    base.write_bytes(os.urandom(SIZE))
    before, expected = base.read_bytes(), bytearray(base.read_bytes())
    for number, (deed, (offset, size)) in enumerate(deeds):
        with opened(base, path) as image:  # by another process each time
            if deed == "write":
                expected[offset : offset + size] = bytes([number + 1]) * size
                write(image, offset, bytes([number + 1]) * size)
            else:
                expected[offset : offset + size] = bytes(size)
                if deed == "discard":
                    image.discard(offset, size)
                else:
                    image.zero(offset, size, unmap=deed == "unmap")
            assert read(image) == expected
    assert base.read_bytes() == before


def test_what_was_flushed_is_there_after_a_crash_of_the_host_and_the_rest_is_the_base(
    base: Path, tmp_path: Path
) -> None:
    path, below = tmp_path / "x.cow", base.read_bytes()
    with opened(base, path) as image:
        write(image, 0, b"a" * BLOCK)
        image.flush()
        write(image, BLOCK, b"b" * BLOCK)
        assert read(image) == b"a" * BLOCK + b"b" * BLOCK + below[2 * BLOCK :]

    boot_again(path)

    with opened(base, path) as image:
        assert read(image) == b"a" * BLOCK + below[BLOCK:]
        write(image, 0, b"c" * BLOCK)
    with opened(base, path) as image:  # in the same boot all is there
        assert read(image, 0, BLOCK) == b"c" * BLOCK


@pytest.mark.parametrize("how", ["flush", "close", "durable write"])
def test_data_is_durable_before_what_says_that_it_is_there(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    path, seen = tmp_path / "x.cow", []

    def sync(fd: int) -> None:
        seen.append(os.pread(fd, 1, 4096)[0])

    monkeypatch.setattr(overlay.os, "fdatasync", sync)
    with opened(base, path) as image:
        write(image, BLOCK, b"b" * BLOCK, os.RWF_DSYNC if how == "durable write" else 0)
        if how == "flush":
            image.flush()
        image.close()

    assert seen == [0, 2]


def test_a_disk_that_may_be_lost_with_its_host_is_kept_when_it_ends(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.cow"
    monkeypatch.setattr(overlay.os, "fdatasync", lambda fd: pytest.fail("it is not durable"))
    with opened(base, path, syncs=False) as image:
        write(image, 0, b"a" * BLOCK)
        image.close()

    boot_again(path)

    with opened(base, path) as image:
        assert read(image, 0, BLOCK) == b"a" * BLOCK


def test_a_block_that_could_not_be_written_is_the_base_s(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = base.read_bytes()
    with opened(base, tmp_path / "x.cow") as image:
        with monkeypatch.context() as patch:
            patch.setattr(overlay.os, "pwritev", lambda *_: 100)
            for offset, size in ((0, BLOCK), (BLOCK + SECTOR, SECTOR)):
                with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                    write(image, offset, b"x" * size)
        assert read(image) == below


def test_its_bits_have_their_place_before_a_file_system_is_full(base: Path, tmp_path: Path) -> None:
    # They are mapped, and to write into a hole would be the process's death.
    path = tmp_path / "x.cow"
    for _ in range(2):
        with opened(base, path) as image:
            assert os.fstat(image.fd).st_blocks * 512 >= image.data
        with path.open("r+b") as file:  # a copy may have made holes of zeros
            files.discard(file.fileno(), 2 * BLOCK, BLOCK)


def ask(host: DeviceHost, request: int, sector: int, data: bytes = b"", room: int = 0) -> bytes:
    header = struct.pack("<IIQ", request, 0, sector)
    used = host.send([header, data] if data else [header], [room, 1] if room else [1])
    assert used.data[-1] == Status.OK
    return used.data[:-1]


def test_a_machine_s_disk_is_written_beside_its_image(
    boot: Boot, image: Path, tmp_path: Path
) -> None:
    before, path = image.read_bytes(), tmp_path / "x.cow"
    config = Config(str(image), overlay=str(path))
    for kind in ("c", "python"):
        host = boot("blk", config)
        host.start(Feature.FLUSH, Feature.WRITE_ZEROES, size=64)

        if kind == "c":
            assert ask(host, Request.IN, 8, room=BLOCK) == before[BLOCK : 2 * BLOCK]
            ask(host, Request.OUT, 8, b"x" * BLOCK)
            ask(host, Request.OUT, 17, b"y" * SECTOR)
            ask(host, Request.FLUSH, 0)
        expected = before[:BLOCK] + b"x" * BLOCK + before[2 * BLOCK : 17 * SECTOR]
        expected += b"y" * SECTOR + before[18 * SECTOR : 64 * SECTOR]
        assert ask(host, Request.IN, 0, room=64 * SECTOR) == expected
        assert host.quit() == 0
        host.close()
    assert image.read_bytes() == before


def complaint(base: Path, path: Path) -> str:
    host = FakeHost()
    with pytest.raises(BadInput) as caught:
        Blk.open(Config(str(base), overlay=str(path)), host)
    host.close()
    assert caught.value.where == "overlay"
    return caught.value.why


def test_an_overlay_that_does_not_fit_is_bad_input(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.cow"
    with opened(base, path):
        pass
    assert complaint(base, base) == f"{base}: is no overlay"
    assert complaint(base, tmp_path) == f"{tmp_path}: Is a directory"
    assert "No such file" in complaint(base, tmp_path / "nowhere" / "x.cow")

    other = tmp_path / "other.img"
    other.write_bytes(bytes(SIZE + BLOCK))
    why = complaint(other, path)
    assert why == f"{path}: is of a disk of {SIZE} bytes, and {other} has {SIZE + BLOCK}"
    other.write_bytes(bytes(SIZE))
    assert "is of another image than" in complaint(other, path)
    os.truncate(path, SIZE)
    assert complaint(base, path) == f"{path}: is shorter than it was"
    with path.open("r+b") as file:
        file.seek(8)
        file.write(b"\2")
    assert complaint(base, path) == f"{path}: is of version 2, and not 1"


def test_an_overlay_is_one_disk_s_alone_and_its_base_may_be_shared(
    base: Path, tmp_path: Path
) -> None:
    first, second = FakeHost("first"), FakeHost("second")
    given = Blk.open(Config(str(base), overlay=str(tmp_path / "a.cow")), first)

    with pytest.raises(BadInput, match="^overlay: .*a.cow: is in use"):
        Blk.open(Config(str(base), overlay=str(tmp_path / "a.cow")), second)
    others = Blk.open(Config(str(base), overlay=str(tmp_path / "b.cow")), second)
    with pytest.raises(BadInput, match="^path: .*: is in use"):
        Blk.open(Config(str(base)), FakeHost("third"))
    with pytest.raises(BadInput, match="^overlay: a mapped image has none"):
        MappedBlk.open(Config(str(base), overlay=str(tmp_path / "c.cow")), FakeHost("fourth"))

    assert not (tmp_path / "c.cow").exists()
    first.close()
    second.close()
    fds.close_all([*given.values(), *others.values()])


def test_one_that_could_not_be_made_is_not_left_behind(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    with monkeypatch.context() as patch:
        patch.setattr(overlay.os, "ftruncate", refuse)
        assert complaint(base, tmp_path / "x.cow").endswith("File too large")
    assert not (tmp_path / "x.cow").exists()


def test_a_new_one_has_a_name_at_once_only_where_there_are_no_files_without(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(path: str, flags: int, mode: int = 0o777, open_: Any = os.open) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return int(open_(path, flags, mode))

    path, locks = tmp_path / "x.cow", Locks()
    host = Host("blk0", Streams(), locks)
    for is_lacking in (False, True):
        with monkeypatch.context() as patch:
            if is_lacking:
                patch.setattr(overlay.os, "open", lacking)
            given = Blk.open(Config(str(base), overlay=str(path)), host)
        assert path.exists() == is_lacking
        locks.close()
        assert not path.exists()
        fds.close_all(given.values())
