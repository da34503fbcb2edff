"""Classes of others are asked in processes of their own: whatever they do, they do it there."""

from __future__ import annotations

import os
import signal
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from devices.runtime.device import Offer
from launcher import cli, scout
from launcher.device_options import Request, parse_settings
from launcher.host import Host, Streams
from launcher.locks import Locks
from launcher.loop import Loop
from launcher.model import Model, Place
from launcher.scout import Scouts
from protocol.errors import BadInput, VibeError

pytestmark = pytest.mark.slow

HANG = "time.sleep(3600)"

# What a module may do at its import, or in a method.
DEEDS = [
    (HANG, "{} took longer than 0.5 s"),
    ("os._exit(0)", "the process for {} exited with status 0"),
    ("print('so long'); os._exit(7)", "the process for {} exited with status 7: so long"),
    ("os.kill(os.getpid(), 9)", "the process for {} was killed by SIGKILL"),
    ("raise KeyboardInterrupt", "{}: KeyboardInterrupt"),
    ("[bytes(1 << 26) for _ in range(100)]", "MemoryError"),
    ("os.write(3, b'nonsense'); time.sleep(3600)", "{}: "),
    ("os.closerange(0, 100); time.sleep(3600)", "the process for {} was killed by SIGKILL"),
]

MODULE = """
import os, time
from dataclasses import dataclass
from devices.rng import Rng
from devices.runtime.device import Device, virtqueue
from protocol.errors import BadInput

{at_import}

@dataclass(frozen=True)
class Config:
    path: str = ""
    number: int = 5

    def __post_init__(self):
        {in_options}

class Mine(Device[Config]):
    device_id = 42

    @virtqueue(0, size=8)
    def requestq(self, chain):
        return 0

    @classmethod
    def open(cls, config, host):
        {in_open}

    @classmethod
    def why_unfit(cls, ours, theirs):
        {in_why_unfit}
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes a module that does as it is told; its path."""

    def make(**does: str) -> str:
        path = tmp_path / "mine,1.py"
        quiet = {
            "at_import": "",
            "in_options": "pass",
            "in_open": "return {}",
            "in_why_unfit": "return f'{ours} {theirs}'",
        }
        path.write_text(textwrap.dedent(MODULE).format(**{**quiet, **does}))
        return str(path)

    return make


def look(kind: str, settings: str = "", place: Place | None = None) -> Model:
    """What there is to be known of ``kind``."""
    asked = Request("--device", kind, parse_settings("--device", settings))
    return scout.ask_now(scout.looking(asked, "--device", place), lambda: None)[0]


def opened(kind: str, config: bytes, locks: Locks | None = None) -> dict[str, int]:
    """What it opens."""
    own = Locks()
    host = Host("mine0", Streams(), locks or own)
    try:
        return scout.ask_now(scout.opening(kind, config, "--device", host), lambda: None)[1]
    finally:
        own.close()


def compared(judge: str) -> str | None:
    """What it says of a successor."""
    loop = Loop()
    found: list[str | None] = []

    def told(why: str | None) -> None:
        found.append(why)
        loop.end()

    Scouts(loop).compare(judge, Offer(1, b"ours"), Offer(2, b"theirs"), told)
    if not found:
        loop.run()
    return found[0]


def test_a_class_is_described_as_it_is(write: Callable[..., str]) -> None:
    path = write()

    found = look(path, "number=7")

    assert found.implementation == f"{path}:Mine" == found.judge
    assert (found.label, found.device_id, found.sizes) == ("mine", 42, (8,))
    assert found.settings == {"number": "7"}
    assert "number=7" in found.shown
    assert compared(found.judge) == f"{Offer(1, b'ours')} {Offer(2, b'theirs')}"


@pytest.mark.parametrize(("deed", "complaint"), DEEDS)
@pytest.mark.parametrize(
    ("place", "step"),
    [
        ("at_import", "its import"),
        ("in_options", "its import"),
        ("in_open", "its open"),
        ("in_why_unfit", "its why_unfit"),
    ],
)
def test_what_it_does_to_its_process_is_said_of_it(
    write: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    step: str,
    deed: str,
    complaint: str,
) -> None:
    model = look(write())
    path = write(**{place: deed})
    if deed == HANG:
        monkeypatch.setattr(scout, "DEADLINE", 0.5)

    if place == "in_why_unfit":
        said = compared(model.judge) or ""
    else:
        with pytest.raises(BadInput) as caught:
            opened(path, model.config) if place == "in_open" else look(path)
        said = str(caught.value)

    assert complaint.format(step) in said
    assert path in said


def test_it_has_no_descriptor_but_its_own(write: Callable[..., str]) -> None:
    with open(os.devnull, "rb") as ours:
        os.set_inheritable(ours.fileno(), True)
        path = write(at_import="raise OSError(sorted(map(int, os.listdir('/proc/self/fd'))))")

        with pytest.raises(BadInput, match=r"OSError: \[0, 1, 2, 3, 4\]"):  # 4 lists them
            look(path)


@pytest.mark.parametrize(
    "name",
    ["memory", "journal", "alive", "call", "kick0", "faults", "trace", "front-end", "written"],
)
def test_what_it_opens_takes_no_place_of_the_runtimes_own(
    write: Callable[..., str], name: str
) -> None:
    path = write(in_open=f"return {{'{name}': os.open('/dev/null', os.O_RDWR)}}")

    with pytest.raises(BadInput, match=f"^--device: open: {name}: the runtime has a descriptor"):
        opened(path, look(path).config)


def test_what_it_opens_arrives_and_is_locked_here(
    write: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "image").write_bytes(b"content")
    path = write(
        in_open="fd = os.open(config.path, os.O_RDWR)\n"
        "        if not host.lock(fd, shared=False):\n"
        "            raise BadInput('path', 'is in use')\n"
        "        return {'image': fd}"
    )
    model, locks = look(path, f"path={tmp_path}/image"), Locks()

    found = opened(path, model.config, locks)

    assert os.pread(found["image"], 100, 0) == b"content"
    with pytest.raises(BadInput, match="^--device: path: is in use$"):
        opened(path, model.config)
    os.close(found["image"])
    locks.close()
    for fd in opened(path, model.config).values():
        os.close(fd)


def test_each_time_it_is_asked_as_it_is_then_with_what_it_imports(
    write: Callable[..., str], tmp_path: Path
) -> None:
    path = write(at_import="import adjacent", in_options="self.number == adjacent.NUMBER or 1 / 0")
    for number in (1, 22):
        # Of another size: the importer keeps what seems to be the same.
        (tmp_path / "adjacent.py").write_text(f"NUMBER = {number}")

        assert look(path, f"number={number}").settings == {"number": str(number)}


def test_what_is_ours_needs_no_process(
    write: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = write()
    (tmp_path / "disk.img").write_bytes(bytes(4096))

    def no_fork() -> int:
        raise BlockingIOError(11, "no process")

    monkeypatch.setattr(os, "fork", no_fork)

    for kind in ("blk", "devices.blk:MappedBlk"):
        model = look(kind, f"path={tmp_path}/disk.img")
        for fd in opened(kind, model.config).values():
            os.close(fd)
    assert compared("") is None
    assert compared(model.judge) == "a configuration of 6 bytes"
    with pytest.raises(VibeError, match="cannot fork: no process"):
        look(path)


def test_one_for_a_place_has_to_fit_it(write: Callable[..., str]) -> None:
    path = write()

    def swapped(device_id: int, *queues: int) -> Model:
        return look(path, "number=9", Place("it", device_id, queues, {"path": "kept"}))

    assert swapped(42, 16).settings == {"path": "kept", "number": "9"}
    with pytest.raises(BadInput, match="a device of type 42, not 4"):
        swapped(4, 16)
    with pytest.raises(BadInput, match="it has 1 queues, and it has 2"):
        swapped(42, 16, 16)
    with pytest.raises(BadInput, match="queue 0 has 8 entries, and there is room for 4"):
        swapped(42, 4)


# ── vibevmm run ───────────────────────────────────────────────────────────────────────────


def test_a_module_that_hangs_ends_a_start(
    tmp_path: Path,
    binary: str,
    runtime: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scout, "DEADLINE", 0.5)
    path = str(tmp_path / "hangs.py")
    Path(path).write_text("import time\ntime.sleep(3600)\n")

    assert cli.main(["run", "--binary", binary, "--entry", "0x10000", "--device", path]) == 2

    said = f"vibevmm: --device: {path!r}: its import took longer than 0.5 s\n"
    assert capfd.readouterr().err == said
    assert list(runtime.iterdir()) == []


def test_a_signal_ends_a_start_that_waits_for_a_module(
    tmp_path: Path, binary: str, runtime: Path
) -> None:
    path = str(tmp_path / "hangs.py")
    Path(path).write_text("import os, time\nos.kill(os.getppid(), 15)\ntime.sleep(3600)\n")

    status = cli.main(["run", "--binary", binary, "--entry", "0x10000", "--device", path])

    assert status == 128 + signal.SIGTERM
    assert list(runtime.iterdir()) == []
