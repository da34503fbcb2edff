"""`vibevmm device run --vhost-user`: what is refused, who is served, what is left in the end."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.vhost_user import Request
from protocol.virtio import Feature
from tests.support import urings
from tests.support.front_end import FrontEnd
from tests.support.leaks import children, none_left
from tests.support.packages import PROJECT
from tests.support.peers import Served

pytestmark = pytest.mark.slow  # processes by the dozen

SHOUT = PROJECT / "tests" / "support" / "shout.py"

# The head of a request: of the disk's first sectors (virtio 1.2, section 5.2.6).
READ = struct.pack("<IIQ", 0, 0, 0)


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    with none_left():
        yield


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


def refused(*words: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "device", "run", *map(str, words)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("vibevmm: ")
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix("vibevmm: ")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["rngg"], "device run: 'rngg' is not a kind of device; did you mean rng?"),
        (["rng", "--attach", "m/rng0"], "--vhost-user: goes without --attach"),
        (["rng", "--jail"], "--vhost-user: goes without --jail"),
        (["rng", "max_byte=3"], "device run: "),
        (["rng", "max_bytes=x"], "device run: max_bytes: "),
        (["rng", "isolation=bounce"], "device run: isolation: bounce is not to be had"),
        (["rng", "process=p"], "device run: process: has no meaning here"),
        (["rng", "on-death=restart"], "device run: on-death: has no meaning here"),
        (["blk", "path=/nowhere"], "device run: path: /nowhere: No such file"),
        (["blk"], "device run: "),
        (["console", "cols=80", "rows=24"], "device run: backend: a terminal is not to be had"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_no_socket(
    path: Path, words: list[str], complaint: str
) -> None:
    assert refused(*words, "--vhost-user", path).startswith(complaint)
    assert not path.exists()


def test_what_is_there_is_not_replaced(path: Path) -> None:
    path.write_text("mine")

    assert "exists already; a socket is made, never replaced" in refused(
        "rng", "--vhost-user", path
    )

    assert path.read_text() == "mine"


def test_a_socket_that_cannot_be_made_is_refused_by_its_option(tmp_path: Path) -> None:
    assert refused("rng", "--vhost-user", tmp_path / "no" / "where").startswith("--vhost-user: ")
    assert refused("rng", "--vhost-user", tmp_path / ("x" * 200)).startswith("--vhost-user: ")


def test_an_overlay_is_made_once_it_is_served(path: Path, tmp_path: Path) -> None:
    image, overlay = tmp_path / "image", tmp_path / "x.cow"
    image.write_bytes(bytes(1 << 20))
    disk = ["blk", f"path={image}", f"overlay={overlay}"]
    with Served(path, *disk) as served:
        assert overlay.exists()
        served.end(signal.SIGTERM)

    assert overlay.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("is_served", [False, True])
def test_a_signal_ends_it_and_the_socket_is_gone(
    path: Path, number: signal.Signals, is_served: bool
) -> None:
    with Served(path, "rng") as served:
        with FrontEnd.at(str(path)) as peer:
            if is_served:
                peer.ask(Request.GET_FEATURES)
            assert served.end(number) == 128 + number
            assert peer.is_hung_up_on()
        assert not path.exists()


def test_a_front_end_is_served_jailed_and_the_next_one_when_it_has_gone(path: Path) -> None:
    with Served(path, "rng") as served, FrontEnd.at(str(path)) as first:
        asked = drive(first)
        pid = served.device("rng")
        status = Path(f"/proc/{pid}/status").read_text().split("\n")
        assert "Seccomp:\t2" in status
        with FrontEnd.at(str(path)) as second:
            second.connection.send(Request.GET_FEATURES)
            assert drive(first) == asked + 1  # who waits is in nobody's way
            first.connection.close()

            second.connection.wait(20)

            assert served.device("rng") != pid
            drive(second)


def drive(peer: FrontEnd) -> int:
    """Ask once; how often it was."""
    if not peer.drivers:
        peer.negotiate(features=[Feature.EVENT_IDX])
        peer.set_table()
        peer.start()
    assert peer.send([], [64]).written == 64
    return peer.drivers[0].used_idx


def test_a_device_that_is_killed_costs_its_front_end_the_connection_and_nobody_else(
    path: Path,
) -> None:
    with Served(path, "rng") as served:
        for _ in range(2):
            with FrontEnd.at(str(path)) as peer:
                drive(peer)
                os.kill(served.device("rng"), signal.SIGKILL)
                assert peer.is_hung_up_on()
        served.waits_for("rng was killed by SIGKILL")
        with FrontEnd.at(str(path)) as peer:
            drive(peer)


def test_a_zygote_that_is_killed_is_replaced_when_it_is_needed(path: Path) -> None:
    with Served(path, "rng") as served:
        with FrontEnd.at(str(path)) as peer:
            drive(peer)
            os.kill(served.child("devices.runtime.zygote"), signal.SIGKILL)
            served.waits_for("zygote was killed by SIGKILL")
            drive(peer)
        with FrontEnd.at(str(path)) as peer:
            drive(peer)


def test_the_in_flight_region_comes_back_with_the_next_connection(path: Path) -> None:
    with Served(path, "rng"):
        with FrontEnd.at(str(path)) as peer:
            peer.negotiate()
            region, file = peer.get_inflight()
            peer.tell(Request.SET_INFLIGHT_FD, region.pack(), [file])
            drive(peer)
        with FrontEnd.at(str(path)) as peer:
            peer.negotiate()
            peer.tell(Request.SET_INFLIGHT_FD, region.pack(), [file])
            drive(peer)
        os.close(file)


def test_a_class_of_ones_own_is_served(path: Path) -> None:
    with Served(path, str(SHOUT), "mark=?") as served, FrontEnd.at(str(path)) as peer:
        peer.negotiate()
        peer.set_table()
        peer.start()

        assert peer.send([b"hello"], [16]).data == b"HELLO?"
        assert "shout waits for a front-end" in served.said


def test_a_console_leads_to_who_connects_to_its_socket(path: Path, tmp_path: Path) -> None:
    stream = tmp_path / "console"
    with (
        Served(path, "console", "backend=socket", f"path={stream}") as served,
        FrontEnd.at(str(path)) as peer,
        socket.socket(socket.AF_UNIX) as terminal,
    ):
        terminal.connect(str(stream))
        terminal.settimeout(20)
        peer.negotiate()
        peer.set_table()
        for index in (0, 1):
            peer.start(index)
        peer.send([b"from the guest"], index=1)
        assert terminal.recv(100) == b"from the guest"
        peer.drivers[0].add([], [64])
        peer.publish(0)

        terminal.sendall(b"to it")

        assert peer.collect(1)[0].data == b"to it"
        served.end()
    assert not stream.exists()


@pytest.mark.slow
def test_a_device_that_does_not_notice_that_its_front_end_is_gone_is_killed(
    path: Path, tmp_path: Path
) -> None:
    stuck = tmp_path / "stuck.py"
    text = SHOUT.read_text()
    line = next(line for line in text.split("\n") if "chain.readable" in line)
    indent = " " * (len(line) - len(line.lstrip()))
    wait = f"{indent}__import__('select').poll().poll()"
    stuck.write_text(text.replace(line, f"{wait}\n{line}"))
    with Served(path, str(stuck)) as served:
        with FrontEnd.at(str(path)) as peer:
            peer.negotiate()
            peer.set_table()
            peer.start()
            peer.drivers[0].add([b"hello"], [16])
            peer.publish()
        served.waits_for("shout does not notice that its front-end is gone, and is killed")
        with FrontEnd.at(str(path)) as peer:
            peer.negotiate()


def test_without_a_jail_it_is_served_all_the_same(path: Path) -> None:
    with Served(path, "rng", "isolation=none") as served, FrontEnd.at(str(path)) as peer:
        drive(peer)

        status = Path(f"/proc/{served.device('rng')}/status").read_text().split("\n")
        assert "Seccomp:\t0" in status


def test_a_front_end_that_lies_is_told_of_in_the_log_and_the_next_one_is_served(
    path: Path,
) -> None:
    with Served(path, "rng") as served:
        with FrontEnd.at(str(path)) as peer:
            peer.connection.send(Request.SET_LOG_BASE, bytes(16))
            assert peer.is_hung_up_on()
        served.waits_for("rng error the front-end: SET_LOG_BASE was not offered")
        with FrontEnd.at(str(path)) as peer:
            drive(peer)


def test_a_disk_is_locked_for_as_long_as_it_is_served(path: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    with Served(path, "blk", f"path={disk}"):
        complaint = refused("blk", f"path={disk}", "--vhost-user", tmp_path / "other")
    assert "is in use: by another process" in complaint
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("limit", "size"), [("iops=1", 512), ("bw=512K", 96 << 10)])
def test_a_disk_is_limited_for_any_front_end(
    path: Path, tmp_path: Path, limit: str, size: int
) -> None:
    disk, count = tmp_path / "disk.img", 15
    disk.write_bytes(bytes(1 << 20))
    with Served(path, "blk", f"path={disk}", limit), FrontEnd.at(str(path)) as peer:
        peer.negotiate()
        peer.set_table()
        peer.start(size=64)
        for _ in range(count):
            peer.drivers[0].add([READ], [size, 1])
        peer.publish()

        assert peer.interrupted()

        peer.config(8)  # is answered behind all that it does at once
        assert 0 < len(peer.drivers[0].collect()) < count


def test_a_disk_of_an_io_uring_is_served_to_any_front_end(path: Path, tmp_path: Path) -> None:
    disk, content = tmp_path / "disk.img", os.urandom(1 << 16)
    disk.write_bytes(content)
    with (
        Served(path, "blk", f"path={disk}", "engine=io_uring") as served,
        FrontEnd.at(str(path)) as peer,
    ):
        peer.negotiate()
        peer.set_table()
        peer.start()

        assert peer.send([READ], [1 << 16, 1]).data == content + b"\0"

        assert "anon_inode:[io_uring]" in [
            os.readlink(fd) for fd in Path(f"/proc/{served.device('blk')}/fd").iterdir()
        ]


@pytest.mark.root
def test_the_next_front_end_waits_for_what_the_kernel_does_for_a_dead_disk(
    path: Path, tmp_path: Path
) -> None:
    disk, content = tmp_path / "disk.img", os.urandom(1 << 16)
    disk.write_bytes(content)
    with Served(path, "blk", f"path={disk}", "engine=io_uring", "cache=none") as served:
        with FrontEnd.at(str(path)) as peer:
            peer.negotiate()
            dead = served.device("blk")
            ring = urings.duplicate(dead)
            os.kill(dead, signal.SIGKILL)
            served.waits_for("blk was killed by SIGKILL")
        with FrontEnd.at(str(path)) as peer:
            time.sleep(0.3)  # in which there could be another
            found = children(served.process.pid)
            os.close(ring)
            peer.negotiate()
            peer.set_table()
            peer.start()
            assert peer.send([READ], [1 << 16, 1]).data == content + b"\0"
            assert served.device("blk") not in {dead, *found}
