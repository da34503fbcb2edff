"""Devices of others: what a back-end may say of itself, before there is a machine."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.runtime import disk
from devices.runtime.device import Offer
from devices.runtime.front_end import BackEnd
from devices.vhost_user import Config, VhostUser
from protocol import fds
from protocol.errors import BadInput, HostError
from protocol.memory import create_memfd
from protocol.vhost_user import (
    FROM_BACK_END,
    U64,
    ConfigSpace,
    Connection,
    Inflight,
    Message,
    Request,
    pack,
)
from protocol.virtio import DeviceId, bit
from tests.support.daemons import DISK, OFFERED, PROTOCOL, Puppet
from tests.support.device_host import FakeHost


def refused(config: Config) -> str:
    """What ``open`` says. That nothing is left of it, conftest sees to."""
    with pytest.raises(BadInput) as raised:
        VhostUser.open(config, FakeHost())
    assert raised.value.where == "socket"
    return raised.value.why.removeprefix(f"{config.socket}: ")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"type": "blk", "num_queues": 0}, "num-queues: 0 is not 1 to 16"),
        ({"type": "blk", "num_queues": 17}, "num-queues: 17 is not 1 to 16"),
        ({"type": "rng", "num_queues": 2}, "num-queues: rng has its own number"),
        ({"type": "blk", "tag": "x"}, "tag: blk has none"),
        ({"type": "fs"}, "tag: '' is not 1 to 36 bytes"),
        ({"type": "fs", "tag": "ä" * 19}, "is not 1 to 36 bytes"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Config(socket="/nowhere", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "device_id", "queues"),
    [
        (Config("blk", "s"), DeviceId.BLOCK, (128,)),
        (Config("blk", "s", num_queues=3), DeviceId.BLOCK, (128, 128, 128)),
        (Config("fs", "s", tag="t", num_queues=2), DeviceId.FS, (128, 128, 128)),
        (Config("net", "s"), DeviceId.NET, (256, 256)),
        (Config("rng", "s"), DeviceId.ENTROPY, (64,)),
        (Config("console", "s"), DeviceId.CONSOLE, (64, 64)),
    ],
)
def test_the_type_decides_what_it_is(
    config: Config, device_id: int, queues: tuple[int, ...]
) -> None:
    kind = VhostUser.fitting(config)

    assert kind.device_id == device_id
    assert tuple(queue.size for queue in kind.virtqueues(config)) == queues
    assert [queue.index for queue in kind.virtqueues(config)] == list(range(len(queues)))


def test_nobody_listens(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    config = Config("blk", str(path))
    assert refused(config) == "No such file or directory"

    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
        assert refused(config) == "nobody listens there"

    path.unlink()
    path.write_bytes(b"")
    assert refused(config) == "is no socket"
    assert refused(Config("blk", str(tmp_path))) == "is no socket"
    assert "too long" in refused(Config("blk", "/" + "x" * 200))


def test_it_is_of_another_kind_of_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(path))
        assert refused(Config("blk", str(path))) == "Protocol wrong type for socket"


def test_it_is_what_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with Puppet(path) as puppet:
        opened = VhostUser.open(Config("blk", str(path)), FakeHost())
        fds.close_all(opened.values())

    assert sorted(opened) == ["back-end", "requests", "requests-theirs"]
    # Who asks for an owner, and is none, would be in the way of the one that comes.
    assert Request.SET_OWNER not in puppet.asked
    assert Request.GET_CONFIG in puppet.asked


def hang_up(message: Message) -> bytes:
    """In the middle of the handshake."""
    raise OSError


def number(value: int) -> Callable[[Message], bytes]:
    """That answer."""
    return lambda message: U64(value).pack()


def space(data: bytes) -> Callable[[Message], bytes]:
    """That configuration."""
    return lambda message: ConfigSpace(0, 0, data).pack()


@pytest.mark.parametrize(
    ("request_", "answer", "words"),
    [
        (Request.GET_FEATURES, hang_up, "GET_FEATURES: it has hung up"),
        (Request.GET_CONFIG, hang_up, "GET_CONFIG: it has hung up"),
        (Request.GET_FEATURES, number(OFFERED & ~bit(30)), "it has no protocol features"),
        (Request.GET_FEATURES, number(OFFERED & ~bit(32)), "it lacks VERSION_1"),
        (
            Request.GET_PROTOCOL_FEATURES,
            number(PROTOCOL & ~bit(9)),
            "it lacks the protocol feature CONFIG",
        ),
        (Request.GET_FEATURES, lambda _: b"short", "GET_FEATURES: 5 bytes"),
        (Request.SET_PROTOCOL_FEATURES, number(1), "SET_PROTOCOL_FEATURES: it says no"),
        (Request.GET_QUEUE_NUM, number(0), "it has 0 queues, and 1 are wanted"),
        (Request.GET_CONFIG, lambda _: b"", "GET_CONFIG of 60 bytes: 0 in reply"),
        (Request.GET_CONFIG, space(DISK[:-1]), "GET_CONFIG of 60 bytes: it gives 59"),
        (Request.GET_CONFIG, space(bytes(257)), "GET_CONFIG: 269 bytes"),
        (Request.GET_CONFIG, space(bytes(60)), "its disk has no sector"),
    ],
)
def test_it_lies_or_lacks_something(
    tmp_path: Path, request_: Request, answer: Callable[[Message], bytes], words: str
) -> None:
    path = tmp_path / "socket"
    with Puppet(path, {request_: answer}):
        assert refused(Config("blk", str(path))).startswith(words)


_ASKED = (
    Request.GET_FEATURES,
    Request.GET_PROTOCOL_FEATURES,
    Request.SET_PROTOCOL_FEATURES,
    Request.GET_QUEUE_NUM,
    Request.GET_CONFIG,
)
_RIGHT = (
    U64(OFFERED).pack(),
    U64(PROTOCOL).pack(),
    U64(0).pack(),
    U64(1).pack(),
    ConfigSpace(0, 0, DISK).pack(),
)


@settings(max_examples=300, deadline=None)
@given(
    which=st.integers(0, len(_ASKED) - 1),
    reply=st.one_of(
        st.binary(max_size=400).map(lambda data: (data, False)),
        st.binary(max_size=300).map(lambda data: (data, True)),
    ),
)
def test_whatever_it_says_is_an_error_or_a_disk(which: int, reply: tuple[bytes, bool]) -> None:
    # One of its answers is anything, with a header or without; then it hangs up.
    ours, theirs = socket.socketpair()
    data, has_header = reply
    with theirs, contextlib.closing(Connection(ours, FROM_BACK_END)) as connection:
        for place, (request, right) in enumerate(zip(_ASKED, _RIGHT, strict=True)):
            said = data if place == which else right
            packed = pack(request, said, is_reply=True)
            theirs.sendall(data if place == which and not has_header else packed)
        theirs.shutdown(socket.SHUT_WR)
        config = Config("blk", "socket")
        with contextlib.suppress(HostError):
            back_end = BackEnd(connection)
            back_end.negotiate(VhostUser.fitting(config), config)
            assert disk.Space.unpack(back_end.config).capacity


def test_it_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devices.runtime.front_end.PATIENCE", 0.05)
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        said = refused(Config("blk", str(path)))
        assert said == "GET_FEATURES: nothing came within 0.05 seconds"


def test_it_has_too_few_queues(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    many = Config("blk", str(path), num_queues=2)
    with Puppet(path) as puppet:
        assert refused(many) == "it has 1 queues, and 2 are wanted"
        puppet.answers[Request.GET_QUEUE_NUM] = number(2)
        assert refused(many) == "its disk has 1 queues"


def test_without_mediators_it_has_to_keep_a_journal_and_a_whole_ring(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    direct = Config("blk", str(path), direct=True)
    with Puppet(path) as puppet:
        assert refused(direct) == "it lacks INDIRECT_DESC, EVENT_IDX"
        puppet.answers[Request.GET_FEATURES] = number(OFFERED | bit(28) | bit(29))
        assert refused(direct) == "it lacks the protocol feature INFLIGHT_SHMFD"


def inflight(**changes: int) -> Callable[[Message], bytes]:
    """Says that of an in-flight region."""
    return lambda message: replace(
        Inflight.unpack(message.payload), **{"mmap_size": 2112, **changes}
    ).pack()


DIRECT = {
    Request.GET_FEATURES: number(OFFERED | bit(28) | bit(29)),
    Request.GET_PROTOCOL_FEATURES: number(PROTOCOL | bit(12)),
}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (inflight(), ""),
        (inflight(queue_size=256), "has 2112 bytes, and our journal 4160"),
        (inflight(queue_size=64, mmap_size=1088), "has 1088 bytes, and our journal 2112"),
        (inflight(mmap_size=4096), "has 4096 bytes, and our journal 2112"),
        (inflight(mmap_size=0), "has 0 bytes, and our journal 2112"),
        (inflight(mmap_offset=1), ": it is more than its file"),
        (inflight(mmap_offset=(1 << 64) - 1), ": it is more than its file"),
        (number(0), "GET_INFLIGHT_FD: 8 bytes"),
    ],
)
def test_its_in_flight_region_is_to_fit_our_journal(
    tmp_path: Path, answer: Callable[[Message], bytes], words: str
) -> None:
    path = tmp_path / "socket"
    with Puppet(path, {**DIRECT, Request.GET_INFLIGHT_FD: answer}) as puppet:
        puppet.lends[Request.GET_INFLIGHT_FD] = [create_memfd("region", 2112)]
        direct = Config("blk", str(path), direct=True)
        if words:
            assert words in refused(direct)
        else:
            fds.close_all(VhostUser.open(direct, FakeHost()).values())
        # Nobody else's is asked for.
        puppet.asked.clear()
        fds.close_all(VhostUser.open(Config("blk", str(path)), FakeHost()).values())
        assert Request.GET_INFLIGHT_FD not in puppet.asked


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ((0, 1, 128), ""),
        ((1, 1, 128), "queue 0 has features 0x1, version 1, 128 entries"),
        ((0, 2, 0), "queue 0 has features 0x0, version 2, 0 entries"),
        ((0, 1, 64), "queue 0 has features 0x0, version 1, 64 entries"),
    ],
)
def test_its_in_flight_region_is_to_be_laid_out_as_our_journal(
    tmp_path: Path, header: tuple[int, int, int], words: str
) -> None:
    path = tmp_path / "socket"
    with Puppet(path, DIRECT) as puppet:
        region = create_memfd("region", 2112)
        os.pwrite(region, struct.pack("=QHH", *header), 0)
        puppet.lends[Request.GET_INFLIGHT_FD] = [region]
        direct = Config("blk", str(path), direct=True)
        if words:
            assert refused(direct) == f"its in-flight region: {words}"
        else:
            fds.close_all(VhostUser.open(direct, FakeHost()).values())


@pytest.mark.parametrize("kind", ["none", "folder", "file", "pipe", "device"])
def test_its_in_flight_region_is_to_be_in_shared_memory(
    tmp_path: Path, image: Path, kind: str
) -> None:
    # What is in a file may be read for as long as whoever serves that likes.
    path = tmp_path / "socket"
    files = {"folder": tmp_path, "file": image, "device": Path("/dev/zero")}
    with Puppet(path, DIRECT) as puppet:
        lent = [os.open(files[kind], os.O_RDONLY)] if kind in files else []
        lent += os.pipe() if kind == "pipe" else []
        puppet.lends[Request.GET_INFLIGHT_FD] = lent[:1]
        said = refused(Config("blk", str(path), direct=True))
        fds.close_all(lent[1:])
    assert said.startswith("its in-flight region: ")
    assert said.endswith("came with it" if kind == "none" else "is not in shared memory")


OURS = disk.Space(2048, 0, 126, 512, 0, 1, 32768, 1, 1, 32768, 1, 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"capacity": 4096}, "its disk has 4096 sectors"),
        ({"seg_max": 62}, "its seg_max is 62, and this one's 126"),
        ({"max_discard_sectors": 16}, "its max_discard_sectors is 16"),
        ({"max_write_zeroes_seg": 0}, "its max_write_zeroes_seg is 0"),
    ],
)
def test_a_disk_whose_limits_are_lower_does_not_follow(change: dict[str, int], words: str) -> None:
    features = bit(disk.Feature.DISCARD) | bit(disk.Feature.WRITE_ZEROES)
    ours, theirs = Offer(features, OURS.pack()), Offer(features, OURS._replace(**change).pack())

    why = VhostUser.fitting(Config("blk", "s")).why_unfit(ours, theirs)

    assert why is not None
    assert words in why
    assert disk.why_unfit(theirs, theirs) is None


def test_limits_of_what_was_not_offered_count_for_nothing() -> None:
    ours = Offer(0, OURS.pack())
    theirs = Offer(0, OURS._replace(max_discard_sectors=0, max_write_zeroes_sectors=0).pack())

    assert disk.why_unfit(ours, theirs) is None
