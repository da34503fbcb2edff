"""Our disk against qemu-storage-daemon's, both as a vhost-user back-end of one front-end.

The front-end is a loop in C in this process (driver.c), with requests of 4 KiB to an image of 64
MiB in a tmpfs; both sides get the same features, and each its own image. The daemon is measured in
all its modes first, and the best two of them run in turn with us. Nobody maps the image.

CPU time is that of the back-end's process. Of a daemon without a file, and of a lane without one,
all that is left is serving the ring. On a disk that is slower than that, and of which nothing is in
the page cache, our two engines are compared.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from cffi import FFI

from devices import blk
from devices.lanes import build as lanes
from protocol.messages import QueueSetup
from protocol.virtio import Feature
from tests.perf import driver
from tests.perf.driver import DATA, IMAGE_SIZE, IN, OUT, QUEUE_SIZE
from tests.support.front_end import REGIONS, FrontEnd
from tests.support.packages import PROJECT
from tests.support.peers import Program, Served

PEER = "qemu-storage-daemon"

# Arbitrary: a turn takes some tenths of a second. Before that, so many choose two modes of the
# daemon, of which the better one then counts.
ROUNDS, TRIALS = 15, 5

# Of the front-end's first region, where its requests are: behind the queue.
_REQUESTS = REGIONS[0].guest_address + (4 << 20)


class Load(NamedTuple):
    """What the front-end asks for: so many requests of ``kinds`` in turn, ``depth`` at a time."""

    kinds: tuple[int, ...]
    depth: int
    one_cpu: bool
    total: int


LOADS = {
    "depth 32, read": Load((IN,), 32, False, 60_000),
    "depth 32, write": Load((OUT,), 32, False, 60_000),
    "depth 1 on one CPU, read": Load((IN,), 1, True, 20_000),
    "depth 1 on one CPU, write": Load((OUT,), 1, True, 20_000),
}
NULL_LOADS = {
    "null, depth 32": Load((IN,), 32, False, 200_000),
    "null, depth 32 on one CPU": Load((IN,), 32, True, 200_000),
    "null, depth 1 on one CPU": Load((IN,), 1, True, 20_000),
}

HANDLED = Load((IN,), 32, False, 20_000)
HANDLERS = {
    "lane": "null_blk:NullBlk",
    "Python, null": "null_blk:PythonNullBlk",
    "Python, disk": "python_blk:PythonBlk",
}
"""The lane without a file, and disks that a handler in Python serves, request by request."""

COLD = Load((IN,), 32, False, 5_000)

# The image as the daemon opens it, by its own names.
FILES = {
    "threads": "aio=threads",
    "native": "aio=native,cache.direct=on",
    "io_uring": "aio=io_uring",
    "io_uring direct": "aio=io_uring,cache.direct=on",
}
THREADS = {"main loop": (), "iothread": ("--object", "iothread,id=thread")}

OURS = {"direct": ("cache=none",), "cached": (), "io_uring": ("engine=io_uring",)}
"""By name, the options of our disk; the first is the one that is compared."""


class BackEnd:
    """One that serves the front-end ``front``; ``pid`` is its process."""

    def __init__(self, front: FrontEnd, pid: int, library: Any) -> None:
        self.front = front
        self.pid = pid
        self._library = library
        made = front.lay_out(size=QUEUE_SIZE)
        self._setup = QueueSetup(0, made.size, made.desc, made.avail, made.used)
        front.set_ring()
        front.enable()
        front.kick()

    def run(self, load: Load) -> Turn:
        """One turn of ``load``."""
        front = self.front
        driver.lay_requests(front.memory, self._setup, _REQUESTS, load.kinds)
        first = REGIONS[0]
        with driver.on_one_cpu([self.pid]) if load.one_cpu else nullcontext():
            before = driver.cpu_seconds(self.pid)
            rate, took = driver.drive(
                self._library,
                front.memory.view(first.guest_address, first.size),
                [driver.Queue(self._setup, _REQUESTS, front.bells["SET_VRING_KICK0"])],
                front.bells["SET_VRING_CALL0"],
                depth=load.depth,
                total=load.total,
                event_idx=True,
                times=load.depth == 1,
            )
        busy = (driver.cpu_seconds(self.pid) - before) / load.total
        return Turn(rate, busy * 1e6, statistics.median(took) / 1e3 if took else 0.0)

    def check(self, image: Path) -> None:
        """Write, read, and look into the file; and see that a wrong byte there is noticed."""
        places = driver.lay_requests(self.front.memory, self._setup, _REQUESTS, (OUT, IN))
        assert self._wrong(image, places) == 0
        assert self._wrong(image, places, spoil=True) > 0

    def _wrong(self, image: Path, places: Sequence[int], *, spoil: bool = False) -> int:
        wrong = 0
        with image.open("r+b", buffering=0) as file:
            for block in range(0, IMAGE_SIZE // DATA, 97):
                data = os.urandom(DATA)
                self.front.memory.write(places[0], data)
                self._ask(0, block)
                file.seek(block * DATA)
                wrong += file.read(DATA) != data
                if spoil:
                    file.seek(block * DATA + block % DATA)
                    file.write(bytes([data[block % DATA] ^ 1]))
                self._ask(1, block)
                wrong += self.front.memory.read(places[1], DATA) != data
        return wrong

    def _ask(self, number: int, block: int) -> None:
        front, header = self.front, _REQUESTS + number * 2 * DATA
        front.memory.write(header + 8, (block * DATA // 512).to_bytes(8, "little") + b"\xff")
        front.drivers[0].adopt(3 * number)
        front.publish()
        front.collect(1)
        assert front.memory.read(header + 16, 1) == bytes([blk.Status.OK])


class Turn(NamedTuple):
    """Requests per second, CPU time of the back-end a request, median latency at depth 1; µs."""

    rate: float
    cpu: float
    latency: float


def measure() -> dict[str, object]:
    """Requests per second of each, ratios, CPU time and latency of a request."""
    if not shutil.which(PEER):
        return {"skipped": f"needs {PEER}, of `make setup`"}
    found: dict[str, object] = {}
    for part, where in ((_disks, "/dev/shm"), (_nulls, "/dev/shm"), (_engines, "/var/tmp")):
        with tempfile.TemporaryDirectory(dir=where) as name, ExitStack() as stack:
            folder = Path(name)
            found |= part(folder, driver.compiled("driver", folder), stack)
    return found


def _disks(folder: Path, library: Any, stack: ExitStack) -> dict[str, object]:
    theirs = {
        f"{file}, {thread}": stack.enter_context(_peer(folder, library, options, extra))
        for file, options in FILES.items()
        for thread, extra in THREADS.items()
    }
    ours = {
        name: stack.enter_context(_ours(folder, library, "blk", *options))
        for name, options in OURS.items()
    }
    return _compare(LOADS, ours, theirs)


def _nulls(folder: Path, library: Any, stack: ExitStack) -> dict[str, object]:
    build_null_lane(folder)
    theirs = {
        thread: stack.enter_context(_peer(folder, library, "", extra))
        for thread, extra in THREADS.items()
    }
    sides = {
        name: stack.enter_context(_ours(folder, library, f"tests.support.{where}"))
        for name, where in HANDLERS.items()
    }
    lane, *handlers = sides
    found = _compare(NULL_LOADS, {lane: sides[lane]}, theirs)
    turns = _in_turn(HANDLED, {name: sides[name] for name in handlers})
    found["a handler in Python, depth 32, requests/s"] = _medians(turns, "rate", 0)
    found["a handler in Python, CPU a request, µs"] = _medians(turns, "cpu", 2)
    return found


def _engines(folder: Path, library: Any, stack: ExitStack) -> dict[str, object]:
    # Nothing of the image is in the page cache, nor read ahead; "direct" goes around that.
    sides = {
        engine + how: stack.enter_context(_ours(folder, library, "blk", f"engine={engine}", *more))
        for how, more in (("", ()), (" direct", ("cache=none",)))
        for engine in ("io_uring", "sync")
    }
    images = [os.open(path, os.O_RDONLY) for path in folder.glob("image*")]
    for image in images:
        stack.callback(os.close, image)
        os.fsync(image)

    def forget() -> None:
        for image in images:
            os.posix_fadvise(image, 0, 0, os.POSIX_FADV_DONTNEED)

    turns = _in_turn(COLD, sides, forget)
    rates = {name: [turn.rate for turn in each] for name, each in turns.items()}
    return {
        "from the disk, depth 32, read, requests/s": _medians(turns, "rate", 0),
        "from the disk, CPU of the back-end a request, µs": _medians(turns, "cpu", 2),
        **{
            f"from the disk, io_uring{how} / sync{how} [quartiles]": driver.ratios(
                rates[f"io_uring{how}"], rates[f"sync{how}"]
            )
            for how in ("", " direct")
        },
    }


def _compare(
    loads: dict[str, Load], ours: dict[str, BackEnd], theirs: dict[str, BackEnd]
) -> dict[str, object]:
    found: dict[str, object] = {}
    first = next(iter(ours))
    for name, load in loads.items():
        trials = _in_turn(load, theirs, rounds=TRIALS)
        likely = sorted(theirs, key=lambda mode: _rate(trials[mode]), reverse=True)[:2]
        turns = _in_turn(load, ours | {mode: theirs[mode] for mode in likely})
        best = max(likely, key=lambda mode: _rate(turns[mode]))
        for mode in likely:
            trials.pop(mode)
        found[f"{name}, requests/s"] = _medians(turns | trials, "rate", 0)
        found[f"{name}, CPU of the back-end a request, µs"] = _medians(turns, "cpu", 2)
        if load.depth == 1:
            found[f"{name}, median latency, µs"] = _medians(turns, "latency", 1)
        found[f"{name}, ours {first} / {best} [quartiles]"] = driver.ratios(
            [turn.rate for turn in turns[first]], [turn.rate for turn in turns[best]]
        )
    return found


def _rate(turns: Sequence[Turn]) -> float:
    return statistics.median(turn.rate for turn in turns)


def _in_turn(
    load: Load,
    sides: dict[str, BackEnd],
    before: Callable[[], None] = lambda: None,
    rounds: int = ROUNDS,
) -> dict[str, list[Turn]]:
    turns: dict[str, list[Turn]] = {side: [] for side in sides}
    for turn in range(rounds):
        for side in driver.in_turn(tuple(sides), turn):
            before()
            turns[side].append(sides[side].run(load))
    return turns


def _medians(turns: dict[str, list[Turn]], what: str, digits: int) -> dict[str, float]:
    return {
        side: round(statistics.median(getattr(turn, what) for turn in each), digits)
        for side, each in turns.items()
    }


@contextmanager
def _peer(folder: Path, library: Any, options: str, extra: Sequence[str]) -> Iterator[BackEnd]:
    path, image = folder / f"socket{len(os.listdir(folder))}", None
    node = f"driver=null-co,node-name=disk,size={IMAGE_SIZE}"
    if options:
        image = _image(folder)
        node = f"driver=file,node-name=disk,filename={image},{options}"
    export = f"type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={path}"
    export += ",writable=on" + (",iothread=thread" if extra else "")
    with Program([PEER, *extra, "--blockdev", node, "--export", export]) as daemon:
        _wait_for(path, daemon.process)
        with _connected(path, lambda: daemon.process.pid, library, image) as back_end:
            yield back_end


@contextmanager
def _ours(folder: Path, library: Any, kind: str, *options: str) -> Iterator[BackEnd]:
    image, path = _image(folder), folder / f"socket{len(os.listdir(folder))}"
    is_null = "null" in kind
    with (
        _importable(folder),
        Served(path, kind, f"path={image}", "id=bench", *options) as served,
        _connected(
            path, lambda: served.device("bench"), library, None if is_null else image
        ) as back_end,
    ):
        yield back_end


@contextmanager
def _connected(path: Path, pid: Any, library: Any, image: Path | None) -> Iterator[BackEnd]:
    with FrontEnd.at(str(path)) as front:
        front.negotiate(features=(Feature.EVENT_IDX, blk.Feature.FLUSH))  # type: ignore[arg-type]
        front.set_table()
        back_end = BackEnd(front, pid(), library)
        if image is not None:
            back_end.check(image)
        yield back_end


def _image(folder: Path) -> Path:
    path = folder / f"image{len(os.listdir(folder))}"
    path.write_bytes(os.urandom(IMAGE_SIZE))
    return path


def _wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    while not path.exists():
        assert process.poll() is None, f"{PEER} has ended"
        time.sleep(0.01)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    # What tests.support is found by, and what was built.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{PROJECT}:{folder}"
    try:
        yield
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def build_null_lane(folder: Path) -> None:
    """The lanes once more, without the file: _null_lane, in ``folder``."""
    made = FFI()
    made.cdef(lanes.declarations())
    parts = [f"devices/lanes/{part}.c" for part in (*lanes.PARTS, *lanes.INNER) if part != "blk"]
    sources = [*parts, *lanes.ENGINE, "tests/perf/null_lane.c"]
    made.set_source(
        "_null_lane",
        lanes.INCLUDE,
        sources=[str(PROJECT / source) for source in sources],
        include_dirs=[str(PROJECT / "devices/lanes"), str(PROJECT / "protocol/ring")],
        extra_compile_args=["-std=gnu11", "-O2"],
    )
    made.compile(tmpdir=str(folder))
