"""What a device can reach, as it is measured: of this process here, and of a machine's devices."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.api import VM
from launcher.experiment import surface
from protocol.memory import create_memfd
from tests.support import guest
from tests.support.bare import require_backend

SIZE = 1 << 20


@pytest.fixture
def memory() -> Iterator[int]:
    """The memory of a guest of a machine "mine", in this process."""
    fd = create_memfd("vibevmm-mine", SIZE)
    try:
        yield fd
    finally:
        with contextlib.suppress(OSError):  # a test may have closed it
            os.close(fd)


def reached() -> tuple[int | None, int | None]:
    return surface.guest_memory(os.getpid(), "mine", SIZE)


def test_who_holds_its_descriptor_reaches_all_of_it(memory: int) -> None:
    assert reached() == (SIZE, SIZE)


def test_a_descriptor_to_read_is_none_to_write(memory: int) -> None:
    reader = os.open(f"/proc/self/fd/{memory}", os.O_RDONLY)
    os.close(memory)
    try:
        assert reached() == (SIZE, 0)
    finally:
        os.close(reader)


def test_what_is_mapped_is_reached_without_a_descriptor(memory: int) -> None:
    half = SIZE // 2
    with mmap.mmap(memory, half) as both, mmap.mmap(memory, half // 2, prot=mmap.PROT_READ):
        os.close(memory)
        inner = [fd for fd in os.listdir("/proc/self/fd") if is_mine(fd)]
        for fd in inner:  # Python's mmap keeps one of its own
            os.close(int(fd))
        assert both.size
        assert reached() == (half + half // 2, half)


def is_mine(fd: str) -> bool:
    with contextlib.suppress(OSError):
        return "vibevmm-mine" in os.readlink(f"/proc/self/fd/{fd}")
    return False


def test_the_memory_of_another_machine_is_not_meant(memory: int) -> None:
    assert surface.guest_memory(os.getpid(), "min", SIZE) == (0, 0)
    os.close(memory)
    assert reached() == (0, 0)


def test_who_is_gone_is_not_taken_for_one_that_reaches_nothing() -> None:
    assert surface.guest_memory(1 << 30, "mine", SIZE) == (None, None)


def test_a_device_on_copies_reaches_no_guest_memory_and_its_neighbour_all(
    tmp_path: Path, runtime: Path
) -> None:
    require_backend("software")
    guest.build()
    image, log = tmp_path / "guest.raw", tmp_path / "log"
    image.write_bytes(guest.demo(guest.STREAM, sleep=True, count=1 << 30))
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(64 * 512))
    others = ["rng,id=lent,isolation=bounce", "rng,id=given", "rng,id=free,isolation=none"]
    with VM(
        binary=image,
        entry="0x100000",
        mem="64M",
        hypervisor="software",
        devices=[f"blk,{disk}", *others],
        log_file=log,
        timeout=90,
    ) as machine:
        machine.wait_ready()
        told = machine.describe()
        found = {
            each.name: surface.measure(level, each.pid, told, log)
            for each in told.processes
            for name, level in (("lent", "bounce"), ("given", "jail"), ("free", "none"))
            if each.name == name
        }

    whole = 64 << 20
    reach = {name: (of["readable_bytes"], of["writable_bytes"]) for name, of in found.items()}
    assert reach == {"lent": (0, 0), "given": (whole, whole), "free": (whole, whole)}
    assert found["lent"]["descriptors"] > 0
    assert found["free"]["message_types"] > found["given"]["message_types"] > 0
    assert found["lent"]["trusted_lines"] > found["given"]["trusted_lines"] > 0
