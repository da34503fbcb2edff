"""Devices swapped and restarted while a guest works them: it notices nothing, whatever is tried."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from launcher.api import VM
from launcher.client import Refused
from protocol.errors import BadInput
from tests.support.bare import at_jail, on_software
from tests.support.guest import STREAM, demo
from tests.support.leaks import named

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("runtime")]

DEADLINE = 60.0
FOR_EVER = 1 << 31  # requests
SECTOR = 512

# A disk that is ahead of its time: it hands on how many requests it has carried out.
COUNTING = '''
"""A disk with a state."""
import struct
from devices.blk import Blk, Request

class Counting(Blk):
    """Counts requests over all that came before it."""
    total = 0

    def requestq(self, chain):
        self.total += 1
        self.counters["total"] = self.total
        return super().requestq(chain)
    requestq.virtqueue = Blk.requestq.virtqueue

    def save(self):
        return struct.pack("<BQ", 1, self.total)

    def restore(self, state):
        version, self.total = struct.unpack("<BQ", state)
        self.counters["total"] = self.total
        self.counters["restored"] = 1
        if version != 1:
            raise ValueError(f"version {version}")
'''
# One that interrupts without end: a thousand times for each request.
STORM = """
from devices.blk import Blk
from protocol import doorbell

class Storm(Blk):
    def __init__(self, config, fds, runtime):
        super().__init__(config, fds, runtime)
        self.call = fds["call"]

    def requestq(self, chain):
        for _ in range(1000):
            doorbell.ring(self.call)
        self.counters["storms"] += 1
        return super().requestq(chain)
    requestq.virtqueue = Blk.requestq.virtqueue
"""
# One that never comes to its hello, one that does not start, and ones that are something else.
BROKEN = """
import time
from dataclasses import dataclass
from devices.blk import Blk, Config
from devices.runtime.device import Device, virtqueue

class Late(Blk):
    def __init__(self, *arguments):
        time.sleep(60)

class Stillborn(Blk):
    def __init__(self, *arguments):
        raise RuntimeError("no luck")

class Forgetful(Blk):
    def restore(self, state):
        raise ValueError("of another tribe")

class Slow(Blk):
    def __init__(self, *arguments):
        time.sleep(1)
        super().__init__(*arguments)

class Stuck(Blk):
    def start(self, features):
        while True:
            pass

class Unopenable(Blk):
    @classmethod
    def open(cls, config, host):
        super().open(config, host)
        raise OSError(5, "a bad day")

class Hanging(Blk):
    @classmethod
    def open(cls, config, host):
        time.sleep(60)

class NotOne:
    pass
"""
# What a module does to the process that imports it.
HOSTILE = {
    "exits": "import os; os._exit(0)",
    "interrupts": "raise KeyboardInterrupt",
    "fills": "kept = [bytes(1 << 26) for _ in range(100)]; from devices.blk import *",
}


@pytest.fixture
def machine(
    backend: str, isolation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., VM]]:
    """Starts one whose guest reads its disk over and over, ``count`` times."""
    (tmp_path / "counting.py").write_text(COUNTING)
    (tmp_path / "broken.py").write_text(BROKEN)
    (tmp_path / "storm.py").write_text(STORM)
    for name, text in HOSTILE.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "disk.img").write_bytes(os.urandom(64 * SECTOR))
    with contextlib.ExitStack() as machines:

        def start(count: int, *, sleep: bool = False, **options: object) -> VM:
            (tmp_path / "guest.raw").write_bytes(demo(STREAM, sleep=sleep, count=count))
            base = {
                "binary": tmp_path / "guest.raw",
                "entry": "0x100000",
                "mem": "64M",
                "hypervisor": backend,
                "isolation": isolation,
                "devices": [f"blk,{tmp_path}/disk.img"],
                "timeout": 90,
            }
            vm = machines.enter_context(VM(**{**base, **options}))  # type: ignore[arg-type]
            vm.wait_ready()
            return vm

        yield start


def test_a_disk_changes_its_implementation_again_and_again(machine: Callable[..., VM]) -> None:
    vm = machine(FOR_EVER)

    served = [vm.swap("blk0", kind) for kind in ("blk-mapped", "blk") * 10]

    assert [one.generation for one in served] == list(range(2, 22))
    assert len({one.pid for one in served}) == 20
    vm.swap("blk0", "blk-mapped")
    assert {one.kind for one in vm.describe().processes if one.name == "blk0"} == {"blk-mapped"}
    assert _goes_on(vm)


def test_state_is_handed_on_from_one_to_the_next(machine: Callable[..., VM]) -> None:
    vm = machine(FOR_EVER)
    vm.swap("blk0", "counting:Counting")

    for _ in range(5):
        before = vm.stats().devices[0].counters.get("total", 0)
        vm.swap("blk0", "counting:Counting")
        vm.restart("blk0")
        (report,) = vm.stats().devices
        assert report.counters["total"] >= before

    events = [event.kind for event in vm.events(follow=False)]  # type: ignore[union-attr]
    assert events.count("swapped") == 11
    assert _goes_on(vm)


@at_jail
def test_a_disk_of_two_queues_is_swapped_there_and_back(
    machine: Callable[..., VM], tmp_path: Path
) -> None:
    vm = machine(FOR_EVER, sleep=True, devices=[f"blk,{tmp_path}/disk.img,queues=2"])

    for implementation in ("blk-mapped", "blk", "blk"):
        vm.swap("blk0", implementation)
        assert all(_goes_on(vm) for _ in range(5))


def test_a_storm_of_interrupts_ends_with_its_device_and_the_next_one_is_heard(
    machine: Callable[..., VM],
) -> None:
    vm = machine(FOR_EVER, sleep=True)
    vm.swap("blk0", "storm:Storm")
    while vm.stats().devices[0].counters.get("storms", 0) < 100:
        time.sleep(0.01)

    vm.kill("blk0")
    while vm.stats().devices[0].counters.get("storms", 0) < 100:  # of the successor
        time.sleep(0.01)
    vm.swap("blk0", "blk")

    # It sleeps until the interrupt of each request.
    assert all(_goes_on(vm) for _ in range(5))


@at_jail
@pytest.mark.parametrize(
    ("implementation", "settings", "complaint"),
    [
        ("rng", {}, "a device of type 4, not 2"),
        ("nonsense", {}, "is not a kind of device"),
        ("no.such.module", {}, "cannot be imported"),
        ("broken:NotOne", {}, "has no device class 'NotOne'"),
        ("broken", {}, "add :CLASS"),
        ("broken:Stillborn", {}, "/blk0: blk0 exited with status"),
        ("broken:Unopenable", {}, "OSError: .* a bad day"),
        ("exits", {}, "--impl: 'exits': the process for its import exited with status 0"),
        ("interrupts", {}, "'interrupts': its import: KeyboardInterrupt"),
        ("fills:MappedBlk", {}, "MemoryError"),
        ("", {"path": "other.img"}, "/blk0: its disk has 128 sectors, and this one 64"),
        ("", {"block_size": 4096}, "/blk0: its blocks are of 4096 bytes"),
        ("", {"readonly": "on"}, "/blk0: it is read-only"),
        ("", {"queues": 2}, "it has 2 queues, and blk0 has 1"),
        ("", {"queues": 99}, "queues: 99 is not 1 to 16"),
        ("", {"colour": "red"}, "has no key 'colour'"),
        ("", {"id": "blk1"}, "id stays what it is"),
        ("", {"path": "missing.img"}, "No such file"),
    ],
)
def test_what_does_not_fit_leaves_the_one_that_serves_working(
    machine: Callable[..., VM],
    tmp_path: Path,
    implementation: str,
    settings: dict[str, str | int],
    complaint: str,
) -> None:
    (tmp_path / "other.img").write_bytes(bytes(128 * SECTOR))
    if "path" in settings:
        settings = {"path": str(tmp_path / str(settings["path"]))}
    vm = machine(FOR_EVER)
    pid = next(one.pid for one in vm.describe().processes if one.name == "blk0")

    with pytest.raises(Refused, match=complaint) as refused:
        vm.swap("blk0", implementation, **settings)

    # What is wrong is what the user gave, but for the one that fits and dies.
    assert refused.value.exit_status == (3 if implementation == "broken:Stillborn" else 2)

    assert pid == next(one.pid for one in vm.describe().processes if one.name == "blk0")
    assert _goes_on(vm)


@at_jail
def test_an_overlay_is_made_for_a_successor_and_stays_if_that_serves(
    machine: Callable[..., VM], tmp_path: Path
) -> None:
    vm, path = machine(FOR_EVER), tmp_path / "x.cow"
    for implementation, settings in (("broken:Stillborn", {}), ("", {"block_size": 4096})):
        with pytest.raises(Refused):
            vm.swap("blk0", implementation, overlay=path, **settings)
        assert not path.exists()

    vm.swap("blk0", overlay=path)
    with pytest.raises(Refused):
        vm.swap("blk0", "broken:Stillborn")
    assert _goes_on(vm)
    vm.stop(force=True)

    assert path.exists()


def test_a_state_that_a_successor_does_not_take_over_comes_back(
    machine: Callable[..., VM],
) -> None:
    vm = machine(FOR_EVER)
    assert _goes_on(vm)  # a disk that no driver has begun has no state to hand on
    events = vm.events()
    vm.swap("blk0", "counting:Counting")

    with pytest.raises(Refused, match="of another tribe"):
        vm.swap("blk0", "broken:Forgetful")

    list(_until(events, "recovered"))
    (report,) = vm.stats().devices
    assert report.counters["restored"]
    assert _state(vm, "blk0") == (4, "running")
    assert _goes_on(vm)


@on_software
@at_jail
def test_one_that_never_says_hello_is_given_up(machine: Callable[..., VM]) -> None:
    vm = machine(FOR_EVER)

    with pytest.raises(Refused, match="not ready within 10 s"):
        vm.swap("blk0", "broken:Late")

    assert _goes_on(vm)


@on_software
@at_jail
def test_one_whose_open_hangs_keeps_nothing_waiting_and_is_given_up(
    machine: Callable[..., VM],
) -> None:
    vm = machine(FOR_EVER)
    with contextlib.closing(VM.connect(vm.name)) as other, ThreadPoolExecutor() as pool:
        swap = pool.submit(vm.swap, "blk0", "broken:Hanging")
        while not _children(other, "scout"):
            assert not swap.done(), swap.result()

        with pytest.raises(Refused, match="another successor is on its way"):
            other.swap("blk0", "blk-mapped")
        assert _goes_on(other)
        assert not swap.done()
        with pytest.raises(Refused, match="'broken:Hanging': its open took longer than 10 s"):
            swap.result()

    assert _children(vm, "scout") == []
    assert vm.swap("blk0", "blk-mapped").generation == 2


@at_jail
def test_a_file_is_swapped_in_with_what_it_imports_as_that_is_now(
    machine: Callable[..., VM], tmp_path: Path
) -> None:
    vm, path = machine(FOR_EVER), tmp_path / "a,b" / "mine.py"  # a comma ends no path
    path.parent.mkdir()
    path.write_text(
        "from devices.blk import Blk\nfrom options import Config\n"
        "class Mine(Blk): config_type = Config\n"
    )
    for number, option in enumerate(("first", "another"), 2):
        (path.parent / "options.py").write_text(
            "from dataclasses import dataclass\nfrom devices import blk\n"
            f"@dataclass(frozen=True)\nclass Config(blk.Config): {option}: int = 0\n"
        )

        assert vm.swap("blk0", str(path), **{option: 5}).generation == number

    assert _goes_on(vm)


@at_jail
def test_a_device_that_nobody_has_can_be_neither_swapped_nor_restarted(
    machine: Callable[..., VM],
) -> None:
    vm = machine(1000)

    with pytest.raises(Refused, match="there are blk0"):
        vm.swap("blk7", "blk-mapped")
    with pytest.raises(Refused, match="there are blk0"):
        vm.restart("blk7")
    with pytest.raises(BadInput, match="cannot be sent"):
        vm.swap("\udcff", "blk")  # as a byte of the command line that is no text arrives


@at_jail
def test_a_restart_takes_a_guest_out_of_the_pause_that_a_death_has_put_it_in(
    machine: Callable[..., VM], tmp_path: Path
) -> None:
    vm = machine(10_000, devices=[f"blk,{tmp_path}/disk.img,on-death=pause-vm"])
    events = vm.events()

    vm.kill("blk0")
    kinds = [event.kind for event in _until(events, "paused")]  # type: ignore[union-attr]
    assert "died" in kinds
    vm.restart("blk0")

    assert vm.wait(DEADLINE) == 0
    assert "resumed" in [event.kind for event in events]  # type: ignore[union-attr]


@at_jail
def test_a_disk_of_another_size_does_not_fit_an_empty_place_either(
    machine: Callable[..., VM], tmp_path: Path
) -> None:
    (tmp_path / "other.img").write_bytes(bytes(128 * SECTOR))
    vm = machine(FOR_EVER, devices=[f"blk,{tmp_path}/disk.img,on-death=pause-vm"])
    vm.kill("blk0")
    list(_until(vm.events(), "paused"))

    with pytest.raises(Refused, match="its disk has 128 sectors"):
        vm.swap("blk0", path=tmp_path / "other.img")
    vm.swap("blk0", "blk-mapped")

    assert _goes_on(vm)


@at_jail
def test_a_guest_that_somebody_has_paused_stays_so_when_a_device_comes_back(
    machine: Callable[..., VM], tmp_path: Path
) -> None:
    vm = machine(FOR_EVER, devices=[f"blk,{tmp_path}/disk.img,on-death=pause-vm"])
    vm.pause()
    vm.kill("blk0")
    list(_until(vm.events(), "died"))

    vm.restart("blk0")
    vm.stats()  # whatever the restart has asked of the VMM came before this

    assert vm.describe().state == "paused"
    assert "resumed" not in [event.kind for event in vm.events(follow=False)]  # type: ignore[union-attr]


@at_jail
def test_the_one_that_serves_is_said_to_whatever_becomes_of_others(
    machine: Callable[..., VM],
) -> None:
    vm = machine(FOR_EVER, hang_after=2)

    events = vm.events()

    # It hangs while it is asked to make room: that is told when the next one serves.
    os.kill(_children(vm, "blk0")[0], signal.SIGSTOP)
    vm.restart("blk0")
    list(_until(events, "hung"))
    assert _state(vm, "blk0") == (2, "running")
    # Its successor hangs.
    with pytest.raises(Refused, match="ended while it was started"):
        vm.swap("blk0", "broken:Stuck")
    *_, hung = _until(events, "hung")
    assert hung.generation == 3  # type: ignore[attr-defined]
    list(_until(events, "recovered"))
    assert _state(vm, "blk0") == (4, "running")
    assert _goes_on(vm)


@at_jail
def test_a_swap_that_comes_second_leaves_the_file_of_the_first_locked(
    machine: Callable[..., VM], tmp_path: Path
) -> None:
    images = [tmp_path / name for name in ("first.img", "second.img")]
    for image in images:
        image.write_bytes(bytes(64 * SECTOR))
    vm = machine(FOR_EVER)
    other = VM.connect(vm.name)
    with contextlib.closing(other), ThreadPoolExecutor() as pool:
        first = pool.submit(vm.swap, "blk0", "broken:Slow", path=images[0])
        while not _is_locked(images[0]):
            assert not first.done(), first.result()

        with pytest.raises(Refused, match="another successor is on its way"):
            other.swap("blk0", path=images[1])
        assert first.result().generation == 2

    vm.swap("blk0", "blk-mapped")  # which needs the lock that the first has
    assert _is_locked(images[0])
    assert not _is_locked(images[1])


def _is_locked(image: Path) -> bool:
    # To try it would be to hold it for a moment.
    return f":{image.stat().st_ino} " in Path("/proc/locks").read_text()


def _children(vm: VM, name: str) -> list[int]:
    return named(name, vm.describe().pid)


def _state(vm: VM, name: str) -> tuple[int, str]:
    (found,) = [process for process in vm.describe().processes if process.name == name]
    return found.generation, found.state


def _goes_on(vm: VM) -> bool:
    def chains() -> int:
        return vm.stats().devices[0].counters["requestq.chains"]

    before, deadline = chains(), time.monotonic() + DEADLINE
    while chains() == before:
        if time.monotonic() > deadline:
            return False
    return True


def _until(events: Iterator[object], kind: str) -> Iterator[object]:
    for event in events:
        yield event
        if event.kind == kind:  # type: ignore[attr-defined]
            return
