"""What interfaces are connected to: what cannot be, folders of machines, and passt."""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from launcher import cli, networks
from launcher.loop import Loop
from launcher.networks import Networks, Uplinks
from launcher.spawn import Child
from launcher.uplink import Ethernet, leads_to_the_loopback
from protocol import fds, jail
from protocol.errors import BadInput
from protocol.link import Link
from protocol.specs import Forward
from tests.support.leaks import none_left
from tests.support.netns import Namespace, needs_root

DEADLINE = 20.0

needs_passt = pytest.mark.skipif(
    not os.path.exists("/usr/bin/passt"), reason="passt is not installed"
)


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    with none_left():
        yield


class Member:
    """An interface of a machine, and its uplink; ``call`` is how what has to be where it is is
    called there."""

    def __init__(
        self,
        kind: str,
        where: str,
        call: Callable[..., object] = lambda f, *a: f(*a),
        mtu: int = 0,
    ) -> None:
        self.removed: list[str] = []
        self.children: list[Child] = []
        self.networks = Networks(self.removed.append)
        self.given = self.networks.descriptors("net0", kind, where, mtu)
        self.link = Link(self.given["link"])
        self.loop = Loop()
        self.uplinks = Uplinks(self.networks.by_device, self.loop, self.welcome)
        self._call = call
        call(self.uplinks.begin)
        self.packets = socket.socket(fileno=os.dup(self.given["packets"]))
        self.packets.settimeout(DEADLINE)

    def welcome(self, child: Child) -> None:
        self.children.append(child)
        self.loop.on_readable(child.pidfd, lambda: self.dead(child))

    def dead(self, child: Child) -> None:
        self.loop.on_readable(child.pidfd, None)
        child.reap()
        self.uplinks.died(child)
        child.close()

    def until(self, condition: Callable[[], bool]) -> None:
        """Do what a launcher does meanwhile."""
        deadline = time.monotonic() + DEADLINE

        def look() -> None:
            assert time.monotonic() < deadline
            if condition():
                self.loop.end()
            else:
                self.loop.after(0.01, look)

        self.loop.after(0, look)
        self._call(self.loop.run)

    def close(self) -> None:
        self.uplinks.end()
        for child in self.children:
            child.close()
        self.packets.close()
        self.link.close()
        fds.close_all(self.given.values())
        self.networks.close()
        for path in self.removed:
            if os.path.exists(path):
                os.unlink(path)
        self.networks.remove_folders()


@pytest.fixture
def member() -> Iterator[Callable[..., Member]]:
    with ExitStack() as stack:

        def make(*args: object) -> Member:
            made = Member(*args)  # type: ignore[arg-type]
            stack.callback(made.close)
            return made

        yield make


# ── join ──────────────────────────────────────────────────────────────────────────────────

EVERYBODY = b"\xff" * 6


def address(number: int) -> bytes:
    return bytes([2, 0, 0, 0, 0, number])


def packet(to: bytes, sender: int, text: bytes) -> bytes:
    return to + address(sender) + b"\x88\xb5" + text


def test_machines_in_one_folder_are_on_one_ethernet(
    member: Callable[..., Member], tmp_path: Path
) -> None:
    folder = str(tmp_path / "lan")
    one, two = member("join", folder), member("join", folder)

    one.packets.send(packet(EVERYBODY, 1, b"who is there?"))
    assert two.packets.recv(1 << 17) == packet(EVERYBODY, 1, b"who is there?")
    two.packets.send(packet(address(1), 2, b"me"))
    assert one.packets.recv(1 << 17) == packet(address(1), 2, b"me")

    three = member("join", folder)
    three.packets.send(packet(EVERYBODY, 3, b"and me"))
    for other in (one, two):
        assert other.packets.recv(1 << 17) == packet(EVERYBODY, 3, b"and me")
    # What is for one is for nobody else: the next that the third gets is its own.
    one.packets.send(packet(address(2), 1, b"for two"))
    one.packets.send(packet(address(3), 1, b"for three"))
    assert two.packets.recv(1 << 17) == packet(address(2), 1, b"for two")
    assert three.packets.recv(1 << 17) == packet(address(3), 1, b"for three")


def test_one_that_is_killed_leaves_the_others_going_and_its_socket_is_removed(
    member: Callable[..., Member], tmp_path: Path
) -> None:
    folder = tmp_path / "lan"
    one, two, three = (member("join", str(folder)) for _ in range(3))
    three.packets.send(packet(EVERYBODY, 3, b"here"))
    for other in (one, two):
        other.packets.recv(1 << 17)
    # As SIGKILL of the whole machine leaves it.
    for child in three.children:
        child.kill_and_reap()
    three.networks.close()
    assert len(list(folder.iterdir())) == 3

    one.packets.send(packet(address(3), 1, b"are you there?"))
    one.packets.send(packet(EVERYBODY, 1, b"and you?"))

    assert two.packets.recv(1 << 17) == packet(EVERYBODY, 1, b"and you?")
    assert len(list(folder.iterdir())) == 2


def test_one_that_reads_nothing_keeps_nobody_from_the_others(
    member: Callable[..., Member], tmp_path: Path
) -> None:
    folder = tmp_path / "lan"
    one, two = (member("join", str(folder)) for _ in range(2))
    two.packets.settimeout(2)  # far more than anybody is waited for
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(folder / "0123456789ab"))
        # Of which a few fill what a socket may have sent without its being read.
        for number in range(20):
            one.packets.send(packet(EVERYBODY, 1, bytes([number]) * 60000))
            assert two.packets.recv(1 << 17)[-1] == number
    (folder / "0123456789ab").unlink()


def test_a_packet_waits_once_however_many_read_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = list[bool]()

    def never(_: object, packet: object, flags: int, name: str) -> int:
        waits.append(flags != socket.MSG_DONTWAIT)
        raise BlockingIOError

    monkeypatch.setattr(socket.socket, "sendto", never, raising=False)
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        (tmp_path / f"{number:012x}").touch()
    packets, guest = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with packets, guest, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
        for _ in range(2):
            guest.send(packet(EVERYBODY, 1, b"hello"))
        guest.shutdown(socket.SHUT_WR)
        ethernet = Ethernet(own, "0123456789ab")
        with ethernet.sender:
            ethernet.to_others(packets)

    assert waits == [True, False, False] + [False] * 3


def test_what_else_is_in_the_folder_is_left_alone(
    member: Callable[..., Member], tmp_path: Path
) -> None:
    folder, elsewhere = tmp_path / "lan", tmp_path / "elsewhere"
    for made in (folder, elsewhere):
        made.mkdir()
    for name in ("notes", "0123456789ab"):
        (folder / name).write_text("mine")
    (folder / "link").symlink_to(folder / "notes")
    os.mkfifo(folder / "fifo")
    one, two = (member("join", str(folder)) for _ in range(2))
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as liar,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as abstract,
    ):
        dead.bind(str(folder / "dead"))
        dead.close()
        other.bind(str(folder / "other"))
        liar.bind(str(elsewhere / "notes"))
        abstract.bind(f"\0vibevmm-nobody-{os.getpid()}")
        (socket_of_one,) = (
            folder / name for name in os.listdir(folder) if str(folder / name) in one.removed
        )
        for sender in (liar, abstract):
            sender.sendto(packet(EVERYBODY, 9, b"I am notes"), str(socket_of_one))
        before = set(os.listdir(folder))

        one.packets.send(packet(address(9), 1, b"for nine"))
        one.packets.send(packet(EVERYBODY, 1, b"for all"))

        assert two.packets.recv(1 << 17)[14:] == b"for nine"
        assert two.packets.recv(1 << 17)[14:] == b"for all"
        assert set(os.listdir(folder)) == before
        assert (folder / "notes").read_text() == "mine"
        with pytest.raises(BlockingIOError):
            other.recv(1, socket.MSG_DONTWAIT)
    for path in folder.iterdir():
        if str(path) not in one.removed + two.removed:
            path.unlink()


def test_an_uplink_that_dies_is_followed_by_another_and_meanwhile_there_is_no_link(
    member: Callable[..., Member], tmp_path: Path
) -> None:
    one, two = (member("join", str(tmp_path / "lan")) for _ in range(2))
    one.until(lambda: len(one.children) == 1)
    assert one.link.is_up
    seen: list[bool] = []

    os.kill(one.children[0].pid, signal.SIGKILL)
    one.until(lambda: seen.append(one.link.is_up) or not one.link.is_up)  # type: ignore[func-returns-value]
    one.until(lambda: one.link.is_up)

    assert len(one.children) == 2
    two.packets.send(packet(EVERYBODY, 2, b"still there?"))
    assert one.packets.recv(1 << 17) == packet(EVERYBODY, 2, b"still there?")


def test_a_link_that_somebody_took_down_stays_down_whatever_the_uplink_does(
    member: Callable[..., Member], tmp_path: Path
) -> None:
    one = member("join", str(tmp_path / "lan"))
    network = one.networks.by_device["net0"]

    network.link.set(wanted=False)
    network.link.set(uplink=False)
    network.link.set(uplink=True)
    assert not one.link.is_up
    network.link.set(wanted=True)

    assert one.link.is_up


def test_a_folder_that_we_made_is_removed_with_the_last_that_is_in_it(
    member: Callable[..., Member], tmp_path: Path
) -> None:
    folder = tmp_path / "lan"
    one, two = member("join", str(folder)), member("join", str(folder))

    one.close()
    assert folder.is_dir()
    two.close()
    folder.rmdir()  # made by the first, who was not the last: empty, and left

    three = member("join", str(folder))
    three.close()
    assert not folder.exists()


def test_who_asks_again_gets_the_same(member: Callable[..., Member], tmp_path: Path) -> None:
    one = member("join", str(tmp_path / "lan"))

    again = one.networks.descriptors("net0", "join", str(tmp_path / "lan"), 0)
    assert os.path.sameopenfile(again["packets"], one.given["packets"])
    fds.close_all(again.values())

    with pytest.raises(BadInput, match="stays connected to what it is"):
        one.networks.descriptors("net0", "join", str(tmp_path / "other"), 0)


# ── user ──────────────────────────────────────────────────────────────────────────────────


def arp(target: str) -> bytes:
    """Who has ``target``? (RFC 826)"""
    ours = address(1) + socket.inet_aton("192.0.2.1")
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + ours + bytes(6) + socket.inet_aton(target)
    return EVERYBODY + address(1) + b"\x08\x06" + body


def discover() -> bytes:
    """A question for an address, and for the MTU (RFC 2131; RFC 2132, 5.1)."""
    asked = struct.pack("!BBBBI20x16s192x", 1, 1, 6, 0, 1, address(1))
    return udp(
        "0.0.0.0", 68, "255.255.255.255", 67, asked + bytes.fromhex("63825363 350101 37011a ff")
    )


def datagram(target: str, port: int) -> bytes:
    """One to ``port`` of ``target``, which it says."""
    return udp("192.0.2.1", 4000, target, port, target.encode())


def udp(source: str, source_port: int, target: str, port: int, content: bytes) -> bytes:
    """Without a checksum (RFC 791, RFC 768)."""
    ends = socket.inet_aton(source) + socket.inet_aton(target)
    size = 8 + len(content)
    body = struct.pack("!HHHH", source_port, port, size, 0) + content
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + size, 0, 0, 64, socket.IPPROTO_UDP, 0)
    return EVERYBODY + address(1) + b"\x08\0" + header + ends + body


@needs_root
@needs_passt
def test_passt_answers_jailed_and_is_followed_by_another_when_it_dies(
    member: Callable[..., Member],
) -> None:
    with Namespace() as host:
        host.ip("tuntap add up0 mode tap")
        host.ip("address add 192.0.2.1/24 dev up0")
        host.ip("address add 198.51.100.1/32 dev lo")
        host.ip("link set up0 up")
        host.ip("route add default via 192.0.2.254")
        one = member("user", "tcp:81:80+udp:127.0.0.1:5353:53", host.call)
        one.packets.send(arp("192.0.2.254"))
        first = one.packets.recv(1 << 17)
        while first[12:14] != b"\x08\x06":  # it also asks for us
            first = one.packets.recv(1 << 17)
        assert "127.0.0.1:81 " in host.run("ss", "-ltn").stdout
        assert "127.0.0.1:5353" in host.run("ss", "-lun").stdout
        # Of its host it reaches what others reach, and not the loopback, whatever it calls that.
        with host.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind(("0.0.0.0", 4001))
            for target in ("192.0.2.254", "127.0.0.1", "127.9.9.9", "0.0.0.0", "198.51.100.1"):
                one.packets.send(datagram(target, 4001))
            assert server.recv(100) == b"198.51.100.1"

        (pid,) = passts(one.children[0].pid)
        status = Path(f"/proc/{pid}/status").read_text()
        assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
        assert re.search(r"^Seccomp:\t2$", status, re.MULTILINE)
        assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
        user = 0x7000_0000 + one.children[0].pid
        assert re.search(rf"^Uid:(\t{user}){{4}}$", status, re.MULTILINE)
        assert re.search(rf"^Gid:(\t{user}){{4}}$", status, re.MULTILINE)
        assert re.search(r"^Groups:\t *$", status, re.MULTILINE)
        above = Path(f"/proc/{one.children[0].pid}/status").read_text()
        assert re.search(rf"^Uid:(\t{user}){{4}}$", above, re.MULTILINE)
        for capabilities in ("Bnd", "Prm", "Inh", "Amb"):
            assert re.search(rf"^Cap{capabilities}:\t0+$", above, re.MULTILINE)
        assert os.listdir(f"/proc/{pid}/root/") == []
        found = Path(f"/proc/{pid}/limits").read_text()
        for what, most in (
            ("Max processes", 0),
            ("Max file size", 0),
            ("Max core file size", 0),
            ("Max open files", 16384),
            ("Max data size", 512 << 20),
            ("Max address space", 512 << 20),
        ):
            assert re.search(rf"^{what} +{most} +{most} ", found, re.MULTILINE), what
        os.kill(pid, signal.SIGKILL)
        one.until(lambda: not one.link.is_up)
        one.until(lambda: one.link.is_up)
        one.packets.send(arp("192.0.2.254"))
        assert one.packets.recv(1 << 17)

        (pid,) = passts(one.children[1].pid)
        one.close()
        deadline = time.monotonic() + DEADLINE
        while is_alive(pid):  # it ends because its stream has
            assert time.monotonic() < deadline
            time.sleep(0.01)


@needs_root
@needs_passt
@pytest.mark.parametrize(("mtu", "told"), [(1400, 1400), (0, 65520)])
def test_passt_tells_the_guest_the_size_of_packets(
    member: Callable[..., Member], mtu: int, told: int
) -> None:
    with Namespace() as host:
        host.ip("tuntap add up0 mode tap")
        host.ip("address add 192.0.2.1/24 dev up0")
        host.ip("link set up0 up")
        host.ip("route add default via 192.0.2.254")
        one = member("user", "", host.call, mtu)

        one.packets.send(discover())

        offered = one.packets.recv(1 << 17)
        while b"\x63\x82\x53\x63" not in offered:
            offered = one.packets.recv(1 << 17)
        assert struct.pack("!BBH", 26, 2, told) in offered


@needs_root
@needs_passt
def test_passt_ends_with_its_uplink_and_is_reaped(member: Callable[..., Member]) -> None:
    with Namespace() as host:
        host.ip("tuntap add up0 mode tap")
        host.ip("address add 192.0.2.1/24 dev up0")
        host.ip("link set up0 up")
        host.ip("route add default via 192.0.2.254")
        jail.adopt_orphans(True)
        try:
            one = member("user", "", host.call)
            one.until(lambda: bool(passts(one.children[0].pid)))
            (pid,) = passts(one.children[0].pid)
            status = Path(f"/proc/{pid}/status")
            one.until(lambda: "Seccomp:\t2" in status.read_text())
            os.kill(pid, signal.SIGSTOP)  # and so does not notice that its stream has ended
            os.kill(one.children[0].pid, signal.SIGKILL)
            one.until(lambda: not Path(f"/proc/{pid}").exists())
        finally:
            jail.adopt_orphans(False)


@pytest.mark.parametrize(
    ("target", "is_loopback"),
    [
        ("::1", True),
        ("::", True),
        ("::ffff:127.0.0.1", True),
        ("2001:db8::1", False),
        ("fe80::1", False),
        ("ff02::1", False),
    ],
)
def test_the_hosts_loopback_has_addresses_of_ipv6(target: str, is_loopback: bool) -> None:
    header = struct.pack("!IHBB", 6 << 28, 0, socket.IPPROTO_NONE, 64) + bytes(15) + b"\1"
    packet = EVERYBODY + address(1) + b"\x86\xdd" + header
    packet += socket.inet_pton(socket.AF_INET6, target)

    assert leads_to_the_loopback(memoryview(packet)) == is_loopback


def passts(uplink: int) -> list[int]:
    """The children of an uplink."""
    return [int(pid) for pid in Path(f"/proc/{uplink}/task/{uplink}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_forwards_are_read() -> None:
    assert networks.read_forwards("") == ()
    assert networks.read_forwards("tcp:8080:80+udp:0.0.0.0:53:5353+tcp:[::1]:1:65535") == (
        Forward("tcp", "127.0.0.1", 8080, 80),
        Forward("udp", "0.0.0.0", 53, 5353),
        Forward("tcp", "::1", 1, 65535),
    )


# ── what cannot be ────────────────────────────────────────────────────────────────────────


def fails(capsys: pytest.CaptureFixture[str], option: str) -> str:
    """What is said of a machine with this ``--net``, which is bad input."""
    binary = str(Path(__file__).parents[1] / "kernels" / "x86_64_hello_mmio.raw")
    assert cli.main(["run", "--binary", binary, "--entry", "0x100000", f"--net={option}"]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("", "connected to what?"),
        ("wifi", "backend: 'wifi' is not one of user"),
        ("tap=a/b", "tap: 'a/b' is no name of an interface"),
        ("tap=x,mac=1:2", "mac: '1:2' is no address"),
        ("tap=x,mtu=9", "mtu: 9 is not 68 to 65535"),
        ("tap=x,bw=1", "bw: 1 bytes in a second"),
        ("tap=x,forward=tcp:1:1", "forward: goes with user"),
        ("join=/nowhere/lan", "--net: join: /nowhere/lan: No such file or directory"),
        ("join=/dev/null", "--net: join: /dev/null: Not a directory"),
    ],
)
def test_bad_input_is_told_with_the_key(
    capsys: pytest.CaptureFixture[str], option: str, complaint: str
) -> None:
    assert complaint in fails(capsys, option)


@needs_passt
@pytest.mark.parametrize(
    "forward",
    ["80:80", "tcp:80", "tcp:0:80", "tcp:80:65536", "sctp:1:1", "tcp:1.2.3.4.5:1:1", "tcp:1:1+"],
)
def test_forwards_that_are_none_are_told(capsys: pytest.CaptureFixture[str], forward: str) -> None:
    assert "--net: forward: " in fails(capsys, f"user,forward={forward}")


@needs_passt
def test_a_port_that_is_taken_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        said = fails(capsys, f"user,forward=tcp:{port}:80")

    assert f"--net: forward: tcp:127.0.0.1:{port}: Address already in use" in said


def test_passt_that_is_missing_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    assert "--net: user: passt is not installed; Debian: apt-get" in fails(capsys, "user")


@needs_root
def test_a_tap_that_is_busy_or_none_is_told() -> None:
    with Namespace() as host:
        host.ip("tuntap add tun0 mode tun")
        first, second = Networks(lambda path: None), Networks(lambda path: None)
        fds.close_all(host.call(first.descriptors, "net0", "tap", "tap0", 0).values())

        with pytest.raises(BadInput, match="tap0: is in use: by another process"):
            host.call(second.descriptors, "net0", "tap", "tap0", 0)
        with pytest.raises(BadInput, match="tun0: this interface is no tap"):
            host.call(second.descriptors, "net0", "tap", "tun0", 0)

        first.close()
        assert "tap0" not in host.run("ip", "link").stdout


@needs_root
def test_a_tap_that_is_absent_takes_root() -> None:
    child = os.fork()
    if child == 0:
        jail.keep_capabilities(0)
        try:
            Networks(lambda path: None).descriptors("net0", "tap", "vibe77", 0)
        except BadInput as error:
            os._exit("there is no such interface, and making one takes root" not in str(error))
        os._exit(2)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
