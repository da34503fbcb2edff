"""What a device process can reach of its guest, looked at from outside: every page that it maps and
every file that it holds."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.api import VM
from launcher.client import Refused
from tests.guest.test_recovery import reading
from tests.support.guest import DEMO, ECHO, STREAM, build, demo
from tests.support.recovery import victim

pytestmark = pytest.mark.slow

CANARY = os.urandom(32)

_CHUNK = 1 << 20


@pytest.fixture(autouse=True)
def _kernels() -> None:
    build()


def with_canary(image: bytes) -> bytes:
    """``image``, and in guest memory far behind it, and its data, a page that no driver lends."""
    return image.ljust(8 << 20, b"\0") + CANARY * 128


def reached(pid: int) -> list[str]:
    """Where in what process ``pid`` maps and holds the canary is found."""
    found = []
    for begin, end, name in mappings(pid):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            if holds_canary(memory.fileno(), begin, end):
                found.append(f"mapping {name or hex(begin)}")
    for link in Path(f"/proc/{pid}/fd").iterdir():
        target = os.readlink(link)
        if stat.S_ISREG(link.stat().st_mode):
            with link.open("rb", buffering=0) as file:
                if holds_canary(file.fileno(), 0, link.stat().st_size):
                    found.append(f"descriptor {target}")
    return found


def mappings(pid: int) -> Iterator[tuple[int, int, str]]:
    pattern = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (....) \S+ \S+ \S+ *(.*)")
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        match = pattern.match(line)
        assert match is not None
        if match[3][0] == "r" and match[4] not in ("[vvar]", "[vsyscall]"):
            yield int(match[1], 16), int(match[2], 16), match[4]


def holds_canary(fd: int, begin: int, end: int) -> bool:
    overlap = len(CANARY) - 1
    for at in range(begin, end, _CHUNK):
        data = os.pread(fd, min(_CHUNK + overlap, end - at), at)
        if CANARY in data:
            return True
    return False


@pytest.mark.root
def test_device_on_copies_reaches_no_byte_of_its_guest_beyond_its_buffers(
    tmp_path: Path, backend: str, isolation: str
) -> None:
    image = with_canary(demo(STREAM, sleep=True, count=1 << 31))
    options = ("--hypervisor", backend, "--isolation", isolation)
    with victim(tmp_path, image, *options) as machine:
        reading(machine)
        places = {name: reached(machine.pids()[name]) for name in ("blk0", "console0", "rng0")}
        machine.process.send_signal(signal.SIGTERM)
        machine.end()

    # In the jail it is there to be found: the search can find.
    assert all(bool(place) == (isolation == "jail") for place in places.values()), places


def test_it_gets_what_its_driver_wants_read(tmp_path: Path, backend: str) -> None:
    # And a copy of guest memory would not do: what is written reaches the file.
    options = ("--hypervisor", backend, "--isolation", "bounce")
    with victim(tmp_path, demo(DEMO, sleep=True), *options) as machine:
        status, printed = machine.end()

    assert status == 0, printed
    assert "blk0 wrote 64 sectors, read them back, verified" in printed
    assert any((tmp_path / "disk.img").read_bytes())


@pytest.mark.usefixtures("runtime")
def test_a_swap_does_not_change_how_a_device_is_held(tmp_path: Path, backend: str) -> None:
    guest = tmp_path / "guest.raw"
    guest.write_bytes(demo(ECHO, sleep=True))
    options = {"binary": guest, "entry": "0x100000", "mem": "64M", "hypervisor": backend}
    with VM(console="pty", isolation="bounce", **options) as vm:
        vm.wait_ready()
        with pytest.raises(Refused, match="isolation stays what it is"):
            vm.swap("console0", "console", isolation="jail")
        assert vm.swap("console0", "console").generation == 2
