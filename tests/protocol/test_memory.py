"""Guest memory: a file that nobody can resize, and addresses that lead out of no region."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Iterator

import pytest

from protocol.errors import HostError
from protocol.memory import PAGE_SIZE, GuestMemory, OutOfRam, Region, create_memfd
from tests.support.leaks import none_left

# Low memory, a hole of a page, more of it, and high memory behind 4 GiB; 16 pages in the file.
LOW = Region(0, 4 * PAGE_SIZE, 0)
MORE = Region(5 * PAGE_SIZE, 3 * PAGE_SIZE, 5 * PAGE_SIZE)
HIGH = Region(1 << 32, 8 * PAGE_SIZE, 8 * PAGE_SIZE)
SIZE = 16 * PAGE_SIZE

# <linux/fcntl.h>
F_ADD_SEALS, F_GET_SEALS = 1033, 1034
F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW = 1, 2, 4
F_SEAL_WRITE, F_SEAL_FUTURE_WRITE = 8, 16


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    with none_left():
        yield


@pytest.fixture
def memfd(_no_leaks: None) -> Iterator[int]:
    fd = create_memfd("test", SIZE)
    yield fd
    os.close(fd)


@pytest.fixture
def memory(memfd: int) -> Iterator[GuestMemory]:
    with GuestMemory(memfd, (HIGH, LOW, MORE)) as memory:
        yield memory


@pytest.mark.parametrize("size", [0, SIZE - 1, SIZE + 1, 2 * SIZE])
def test_the_file_can_be_made_neither_larger_nor_smaller(memfd: int, size: int) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(memfd, size)

    assert os.fstat(memfd).st_size == SIZE


@pytest.mark.parametrize("seal", [F_SEAL_WRITE, F_SEAL_FUTURE_WRITE, F_SEAL_SHRINK])
def test_nobody_can_add_a_seal(memfd: int, seal: int) -> None:
    with pytest.raises(PermissionError) as refusal:
        fcntl.fcntl(memfd, F_ADD_SEALS, seal)

    assert refusal.value.errno == errno.EPERM
    assert fcntl.fcntl(memfd, F_GET_SEALS) == F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW


def test_the_file_does_not_outlive_an_exec(memfd: int) -> None:
    assert not os.get_inheritable(memfd)


def test_memory_is_populated_as_it_is_used(memfd: int, memory: GuestMemory) -> None:
    assert os.fstat(memfd).st_blocks == 0

    memory.write(MORE.gpa, b"x")

    assert os.fstat(memfd).st_blocks * 512 < SIZE


def test_memory_is_zero_at_first(memory: GuestMemory) -> None:
    for region in (LOW, MORE, HIGH):
        assert memory.read(region.gpa, region.size) == bytes(region.size)


def test_regions_are_in_order_of_address_however_they_came(memory: GuestMemory) -> None:
    assert memory.regions == (LOW, MORE, HIGH)


@pytest.mark.parametrize("region", [LOW, MORE, HIGH])
def test_a_region_is_there_from_its_first_byte_to_its_last(
    memory: GuestMemory, region: Region
) -> None:
    assert memory.offset(region.gpa, region.size) == region.offset
    assert memory.offset(region.gpa, 1) == region.offset
    assert memory.offset(region.end - 1, 1) == region.offset + region.size - 1
    assert memory.offset(region.end - 8, 8) == region.offset + region.size - 8


@pytest.mark.parametrize("region", [LOW, MORE, HIGH])
def test_nothing_is_an_access_that_fits_even_at_the_end(
    memory: GuestMemory, region: Region
) -> None:
    assert memory.offset(region.end, 0) == region.offset + region.size
    assert memory.read(region.end, 0) == b""


@pytest.mark.parametrize(
    ("gpa", "size"),
    [
        pytest.param(LOW.end - 1, 2, id="over the end of a region"),
        pytest.param(LOW.gpa, LOW.size + 1, id="more than a region"),
        pytest.param(LOW.end, 1, id="behind a region"),
        pytest.param(LOW.end + 1, 0, id="nothing, in the hole"),
        pytest.param(LOW.end, PAGE_SIZE, id="the hole"),
        pytest.param(LOW.end - 8, PAGE_SIZE + 16, id="across the hole"),
        pytest.param(MORE.gpa - 1, 1, id="before a region"),
        pytest.param(MORE.gpa - 1, 2, id="into a region"),
        pytest.param(MORE.end, HIGH.gpa - MORE.end, id="up to high memory"),
        pytest.param(HIGH.gpa - 1, 1, id="before high memory"),
        pytest.param(HIGH.end - 7, 8, id="over the end of high memory"),
        pytest.param(HIGH.end, 1, id="behind high memory"),
        pytest.param((1 << 64) - 1, 1, id="the last address"),
        pytest.param((1 << 64) - 8, 16, id="round the last address"),
        pytest.param(-1, 1, id="a negative address"),
        pytest.param(-1, 2, id="from a negative address"),
        pytest.param(8, -1, id="a negative size"),
        pytest.param(LOW.end + 1, -1, id="a negative size that leads back into a region"),
    ],
)
def test_what_is_not_wholly_in_one_region_is_refused(
    memory: GuestMemory, gpa: int, size: int
) -> None:
    for access in (memory.offset, memory.view, memory.read):
        with pytest.raises(OutOfRam, match="are not guest RAM"):
            access(gpa, size)


def test_a_write_that_does_not_fit_writes_nothing(memory: GuestMemory) -> None:
    with pytest.raises(OutOfRam):
        memory.write(LOW.end - 2, b"abc")

    assert memory.read(LOW.end - 2, 2) == b"\0\0"


def test_what_one_mapping_writes_another_one_sees(memfd: int, memory: GuestMemory) -> None:
    with GuestMemory(memfd, (LOW, MORE, HIGH)) as other:
        view = memory.view(HIGH.gpa + 8, 4)
        view[:] = b"view"
        memory.write(MORE.gpa, b"bytes")

        assert other.read(HIGH.gpa + 8, 4) == b"view"
        assert other.read(MORE.gpa, 5) == b"bytes"
        view.release()


def test_regions_lie_in_the_file_where_they_say(memfd: int, memory: GuestMemory) -> None:
    for number, region in enumerate((LOW, MORE, HIGH), 1):
        memory.write(region.gpa, bytes([number]))

    with mmap.mmap(memfd, SIZE) as file:
        assert [file[region.offset] for region in (LOW, MORE, HIGH)] == [1, 2, 3]
    assert [memory.whole[region.offset] for region in (LOW, MORE, HIGH)] == [1, 2, 3]
    assert len(memory.whole) == SIZE


def test_a_name_or_a_size_that_the_host_refuses_is_its_error() -> None:
    # memfd_create(2): the name has at most 249 bytes.
    with pytest.raises(HostError, match="no memory file for n"):
        create_memfd("n" * 250, PAGE_SIZE)
    with pytest.raises(HostError, match="cannot reserve -4096 bytes for test: "):
        create_memfd("test", -PAGE_SIZE)


def test_more_than_an_address_space_cannot_be_mapped() -> None:
    # More than the 47 bits that a process of x86-64 has, or the 56 bits with five levels.
    size = 1 << 60
    fd = create_memfd("test", size)
    try:
        with pytest.raises(HostError, match=f"cannot map {size} bytes of guest memory: "):
            GuestMemory(fd, (Region(0, size, 0),))
    finally:
        os.close(fd)


def test_a_closed_memory_is_unmapped_and_leaves_the_descriptor_to_its_owner(memfd: int) -> None:
    memory = GuestMemory(memfd, (LOW,))
    mapped = mappings(memfd)

    memory.close()

    assert (mapped, mappings(memfd)) == (1, 0)
    assert os.fstat(memfd).st_size == SIZE
    with pytest.raises(ValueError, match="released"):
        memory.read(0, 1)


def test_a_view_keeps_a_closed_memory_mapped(memfd: int) -> None:
    memory = GuestMemory(memfd, (LOW,))
    view = memory.view(0, 4)

    memory.close()
    view[:] = b"late"

    assert bytes(view) == b"late"
    del view, memory
    assert mappings(memfd) == 0


def mappings(memfd: int) -> int:
    """How many mappings of ``memfd`` this process has."""
    inode = str(os.fstat(memfd).st_ino)
    with open("/proc/self/maps", encoding="ascii") as maps:
        return sum("/memfd:" in line and line.split()[4] == inode for line in maps)


def test_memory_of_several_files_is_one_buffer_whose_regions_lie_side_by_side() -> None:
    one, other = create_memfd("test", 8 * PAGE_SIZE), create_memfd("test", 4 * PAGE_SIZE)
    low = Region(0, 3 * PAGE_SIZE, 5 * PAGE_SIZE)
    high = Region(1 << 40, 2 * PAGE_SIZE, PAGE_SIZE)
    memory = GuestMemory.of_files([(other, high), (one, low)])
    os.pwrite(one, b"low", low.offset)
    os.pwrite(other, b"end", high.offset + high.size - 3)

    assert memory.read(0, 3) == b"low"
    assert memory.read(high.end - 3, 3) == b"end"
    assert [(region.gpa, region.offset) for region in memory.regions] == [
        (low.gpa, high.size),
        (high.gpa, 0),
    ]
    assert len(memory.whole) == low.size + high.size
    with pytest.raises(OutOfRam):
        memory.read(low.end - 1, 2)
    memory.close()
    assert mappings(one) == mappings(other) == 0
    os.close(one)
    os.close(other)


@pytest.mark.parametrize("region", [Region(0, SIZE + PAGE_SIZE, 0), Region(0, SIZE, PAGE_SIZE)])
def test_what_a_file_has_not_cannot_be_mapped(memfd: int, region: Region) -> None:
    # Mapped it would be, and kill whoever touched it.
    with pytest.raises(HostError, match=f"of a file of {SIZE}"):
        GuestMemory.of_files([(memfd, region)])
    assert mappings(memfd) == 0
