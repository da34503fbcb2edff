"""What an io_uring of a lane can be asked for, once it is made: its files, and nothing else."""

from __future__ import annotations

import errno
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cffi import FFI

from tests.support.packages import PROJECT

SIZE = 4096

DECLARATIONS = """
int make(int file, bool readonly);
int ask(uint8_t opcode, uint8_t flags, int fd, uint8_t *buffer, uint32_t size);
int register_more(int file);
void unmake(void);
"""
CODE = """
#include "uring.c"

static struct uring ring;

static int make(int file, bool readonly) { return uring_open(&ring, 4, &file, 1, readonly); }

/* The result of one request. */
static int ask(uint8_t opcode, uint8_t flags, int fd, uint8_t *buffer, uint32_t size)
{
    uint64_t which;
    int32_t result;
    struct io_uring_sqe *sqe = uring_prepare(&ring);
    sqe->opcode = opcode;
    sqe->flags = flags;
    sqe->fd = fd;
    sqe->addr = (uint64_t)(uintptr_t)buffer;
    sqe->len = size;
    sqe->user_data = 7;
    uring_submit(&ring, 1);
    return uring_take(&ring, &which, &result) && which == 7 ? result : 1 << 30;
}

static void unmake(void) { uring_close(&ring); }

static int register_more(int file) { return set_up(&ring, IORING_REGISTER_FILES, &file, 1); }
"""
# <linux/io_uring.h>
NOP, READV, FSYNC, OPENAT, CLOSE, READ, WRITE, SOCKET = 0, 1, 3, 18, 19, 22, 23, 45
FIXED = 1


@pytest.fixture(scope="module")
def rings(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("uring")
    builder = FFI()
    builder.cdef(DECLARATIONS)
    builder.set_source("_uring", CODE, include_dirs=[str(PROJECT / "devices/lanes")])
    spec = importlib.util.spec_from_file_location("_uring", builder.compile(tmpdir=str(folder)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.lib


@pytest.fixture
def image(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "image").write_bytes(b"x" * SIZE)
    fd = os.open(tmp_path / "image", os.O_RDWR | os.O_CLOEXEC)
    yield fd
    os.close(fd)


def test_it_reads_writes_and_syncs_its_file_and_knows_no_other_operation(
    rings: Any, image: int
) -> None:
    data = bytearray(b"y" * SIZE)
    buffer = FFI().from_buffer(data)
    assert rings.make(image, False) == 0

    assert rings.ask(WRITE, FIXED, 0, buffer, 16) == 16
    assert os.pread(image, 17, 0) == b"y" * 16 + b"x"
    assert rings.ask(READ, FIXED, 0, buffer, SIZE) == SIZE
    assert data[:17] == b"y" * 16 + b"x"
    assert rings.ask(FSYNC, FIXED, 0, FFI.NULL, 0) == 0

    for opcode in (NOP, OPENAT, CLOSE, SOCKET):
        assert rings.ask(opcode, FIXED, 0, buffer, 0) == -errno.EACCES, opcode
    # A file of this process that is not the ring's, and one that the ring has not.
    assert rings.ask(READ, 0, image, buffer, 16) == -errno.EACCES
    assert rings.ask(READ, FIXED, 1, buffer, 16) == -errno.EBADF
    assert rings.register_more(image) == -errno.EACCES
    rings.unmake()


def test_one_that_is_read_only_does_not_write(rings: Any, image: int) -> None:
    data = bytearray(b"y" * SIZE)
    buffer = FFI().from_buffer(data)
    assert rings.make(image, True) == 0

    assert rings.ask(READ, FIXED, 0, buffer, 16) == 16
    assert rings.ask(WRITE, FIXED, 0, buffer, 16) == -errno.EACCES
    assert os.pread(image, SIZE, 0) == b"x" * SIZE
    rings.unmake()
