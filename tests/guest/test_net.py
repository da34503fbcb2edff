"""Stock Linux on our network interface: a tap on the host, TCP with offloads, a death midway."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from launcher.api import VM
from tests.support import initramfs
from tests.support.kernels import debian
from tests.support.netns import Namespace, needs_root
from tests.support.peers import QEMU, UML, Program, Served, lacks, qemu, user_mode_linux
from tests.support.skips import unless_there_is_a_kernel

pytest.importorskip("unicorn", reason="the Unicorn engine is not installed")

# Seconds. A boot takes some ten; on a busy machine several times that.
DEADLINE = 100.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * DEADLINE), needs_root]

MODULES = ("virtio_mmio", "virtio_net")
MAC = "02:00:00:00:00:17"
SIZE = 8 << 20

BEGIN = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in /modules/*; do insmod "$module"; done
say() { echo "linux: $*"; }
"""
END = """
stty cs8 # waits until the serial port has sent all that
poweroff -f
"""

ON_A_TAP = """
say "eth0 $(cat /sys/class/net/eth0/address), mtu $(cat /sys/class/net/eth0/mtu)"
say "features $(cat /sys/class/net/eth0/device/features)"
ifconfig eth0 10.9.0.2 netmask 255.255.255.0 up
ping -c 3 -W 5 10.9.0.1 | sed -n 's/^.* packets transmitted/linux: ping &/p'
wget -q -O /tmp/file http://10.9.0.1:8000/file
say "downloaded $(sha256sum /tmp/file | cut -d ' ' -f 1)"
nc 10.9.0.1 8001 </tmp/file
before=$(cat /sys/class/net/eth0/statistics/tx_packets)
receives() { iperf3 -c 10.9.0.1 -n 8M $* | sed -n 's/^.*receiver$/linux: iperf3 &/p'; }
receives
say "$(($(cat /sys/class/net/eth0/statistics/tx_packets) - before)) packets"
receives -R
say "measured"
while [ "$(cat /sys/class/net/eth0/carrier 2>/dev/null)" != 0 ]; do usleep 10000; done
say "no carrier"
while [ "$(cat /sys/class/net/eth0/carrier 2>/dev/null)" != 1 ]; do usleep 10000; done
say "carrier"
"""

# The first is reached by the host through passt, and by the second through their Ethernet.
LEASE = """#!/bin/sh
[ "$1" = bound ] || exit 0
ifconfig "$interface" "$ip" netmask "$subnet"
route add default gw "${router%% *}"
"""
SERVER = (
    f"""
mkdir /tmp/www
cat >/tmp/lease <<'SCRIPT'
{LEASE}SCRIPT
chmod +x /tmp/lease
"""
    """
ifconfig eth0 up
udhcpc -q -n -i eth0 -s /tmp/lease >/dev/null 2>&1
say "address $(ifconfig eth0 | sed -n 's/.*inet addr:\\([0-9.]*\\) .*/\\1/p')"
ifconfig eth1 10.7.0.1 netmask 255.255.255.0 up
wget -q -O /tmp/www/file http://198.51.100.1:8000/file
say "downloaded $(sha256sum /tmp/www/file | cut -d ' ' -f 1)"
httpd -p 80 -h /tmp/www
until netstat -ltn | grep -q ':80 '; do usleep 10000; done
say "serving"
read -r word </dev/ttyS0
"""
)
CLIENT = """
ifconfig eth0 10.7.0.2 netmask 255.255.255.0 up
until wget -q -O /tmp/file http://10.7.0.1/file; do usleep 100000; done
ping -c 3 -W 5 10.7.0.1 | sed -n 's/^.* packets transmitted/linux: ping &/p'
say "downloaded $(sha256sum /tmp/file | cut -d ' ' -f 1)"
read -r word </dev/ttyS0
"""


@pytest.fixture
def host() -> Iterator[Namespace]:
    """A host with a tap on which it has an address."""
    with Namespace() as made:
        made.ip("tuntap add vibe0 mode tap")
        made.ip("address add 10.9.0.1/24 dev vibe0")
        made.ip("link set vibe0 up mtu 1500")
        yield made


def boot(host: Namespace, script: str, *nets: str, programs: Sequence[str] = ()) -> VM:
    """A machine there whose guest does what ``script`` says, with interfaces to ``nets`` and
    ``programs`` of this host."""
    with unless_there_is_a_kernel():
        kernel = debian("cloud-amd64")
        files = initramfs.programs(*programs)
        initrd = initramfs.build(kernel, BEGIN + script + END, MODULES, files)
    return host.call(
        VM,
        kernel=str(kernel.image),
        initrd=str(initrd),
        hypervisor="software",
        cmdline="console=ttyS0 quiet panic=-1",
        on_reboot="exit",
        net=nets,
    )


def take_all(listener: socket.socket, into: list[bytes]) -> None:
    """All that the first who connects sends."""
    connection, _ = listener.accept()
    with connection:
        while data := connection.recv(1 << 16):
            into.append(data)


def lines(console: socket.socket, text: bytearray, until: str) -> str:
    """What the guest says, up to a line that ``until`` matches."""
    while not re.search(rf"^linux: {until}\r?\n", text.decode(errors="replace"), re.MULTILINE):
        data = console.recv(1 << 16)
        assert data, text.decode(errors="replace")
        text += data
    return text.decode(errors="replace")


@pytest.mark.skipif(bool(lacks("iperf3")), reason=lacks("iperf3"))
def test_linux_moves_files_over_a_tap_whatever_becomes_of_the_device(
    host: Namespace, tmp_path: Path
) -> None:
    content = os.urandom(SIZE)
    (tmp_path / "file").write_bytes(content)
    uploaded: list[bytes] = []
    listener = host.call(socket.create_server, ("10.9.0.1", 8001))
    taking = threading.Thread(target=take_all, args=(listener, uploaded))
    taking.start()
    serving = (sys.executable, "-m", "http.server", "8000", "--bind", "10.9.0.1")
    servers = [
        host.popen(*serving, "--directory", str(tmp_path)),
        host.popen("iperf3", "--server", "--interval", "0"),
    ]
    try:
        with boot(host, ON_A_TAP, f"tap=vibe0,mac={MAC}", programs=["iperf3"]) as machine:
            machine.wait_ready()
            console, said = machine.attach(), bytearray()
            console.settimeout(DEADLINE)
            lines(console, said, "ping .*")
            machine.restart("net0")
            machine.kill("net0")
            text = lines(console, said, "downloaded .*")
            taking.join(DEADLINE)
            lines(console, said, "measured")
            machine.link("net0", up=False)
            lines(console, said, "no carrier")
            machine.link("net0", up=True)
            text = lines(console, said, "carrier")
            assert machine.wait(DEADLINE) == 0
            console.close()
    finally:
        for server in servers:
            server.kill()
            server.wait()
        listener.close()

    assert f"linux: eth0 {MAC}, mtu 1500" in text
    assert "3 packets received" in text
    assert f"downloaded {hashlib.sha256(content).hexdigest()}" in text
    assert hashlib.sha256(b"".join(uploaded)).digest() == hashlib.sha256(content).digest()
    # With offloads TCP sends packets larger than the interface's: fewer than there would be else.
    (packets,) = re.findall(r"^linux: (\d+) packets\r", text, re.MULTILINE)
    assert int(packets) < SIZE // 1460
    # Of 8.00 what iperf3's receivers, here and there, had counted when they were told of the end.
    received = re.findall(r"^linux: iperf3 .* ([\d.]+) MBytes .*receiver", text, re.MULTILINE)
    assert len(received) == 2
    assert min(map(float, received)) > 7


@pytest.mark.skipif(not os.path.exists("/usr/bin/passt"), reason="passt is not installed")
def test_two_linuxes_are_on_one_ethernet_and_one_of_them_on_the_hosts_network(
    host: Namespace, tmp_path: Path
) -> None:
    host.ip("tuntap add up0 mode tap")  # what leads to the world, if there were any
    host.ip("address add 192.0.2.1/24 dev up0")
    host.ip("address add 198.51.100.1/32 dev lo")  # the guest has the other one, too
    host.ip("link set up0 up")
    host.ip("route add default via 192.0.2.254")
    content = os.urandom(SIZE // 8)
    (tmp_path / "file").write_bytes(content)
    serving = (sys.executable, "-m", "http.server", "8000", "--bind", "198.51.100.1")
    served = host.popen(*serving, "--directory", str(tmp_path))
    lan = f"join={tmp_path / 'lan'}"
    try:
        with (
            boot(host, SERVER, "user,forward=tcp:8080:80", lan) as first,
            boot(host, CLIENT, lan) as second,
        ):
            first.wait_ready()
            second.wait_ready()
            with first.attach() as one, second.attach() as two:
                for console in (one, two):
                    console.settimeout(DEADLINE)
                text = lines(one, bytearray(), "serving")
                heard = lines(two, bytearray(), "downloaded .*")
                fetched = host.run(
                    "busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:8080/file", text=False
                )
                for console in (one, two):
                    console.sendall(b"enough\n")
            assert second.wait(DEADLINE) == 0
            assert first.wait(DEADLINE) == 0
    finally:
        served.kill()
        served.wait()

    digest = hashlib.sha256(content).hexdigest()
    assert "linux: address 192.0.2.1" in text
    assert f"downloaded {digest}" in text
    assert hashlib.sha256(fetched.stdout).hexdigest() == digest
    assert "3 packets received" in heard
    assert f"downloaded {digest}" in heard


def skips_without(program: str) -> pytest.MarkDecorator:
    """Where ``program`` cannot be had."""
    return pytest.mark.skipif(bool(lacks(program)), reason=lacks(program))


def in_user_mode_linux(folder: Path, init: str) -> Program:
    """Stock Linux as a process, on the interface that is served at ``folder / "net"``."""
    modules = ("failover", "net_failover", "virtio_net")
    return user_mode_linux(folder, init, [f"{folder / 'net'}:1"], modules)


def in_qemu(folder: Path, init: str) -> Program:
    """The same under QEMU, which has the address in its own keeping."""
    return qemu(init, "microvm,acpi=on", [(f"virtio-net-device,mac={MAC}", folder / "net")])


@pytest.mark.parametrize(
    "peer",
    [
        pytest.param(in_user_mode_linux, marks=skips_without(UML), id="user-mode-linux"),
        pytest.param(in_qemu, marks=skips_without(QEMU), id="qemu"),
    ],
)
def test_linux_elsewhere_moves_a_file_over_vhost_user_there_and_back(
    host: Namespace, tmp_path: Path, peer: Callable[[Path, str], Program]
) -> None:
    content = os.urandom(SIZE)
    (tmp_path / "file").write_bytes(content)
    uploaded: list[bytes] = []
    listener = host.call(socket.create_server, ("10.9.0.1", 8001))
    taking = threading.Thread(target=take_all, args=(listener, uploaded))
    taking.start()
    script = """
ifconfig eth0 10.9.0.2 netmask 255.255.255.0 up
say "eth0 $(cat /sys/class/net/eth0/address)"
ping -c 3 -W 5 10.9.0.1 | sed -n 's/^.* packets transmitted/linux: ping &/p'
wget -q -O /tmp/file http://10.9.0.1:8000/file
say "downloaded $(sha256sum /tmp/file | cut -d ' ' -f 1)"
nc 10.9.0.1 8001 </tmp/file
poweroff -f
"""
    serving = (sys.executable, "-m", "http.server", "8000", "--bind", "10.9.0.1")
    server = host.popen(*serving, "--directory", str(tmp_path))
    try:
        with host.call(Served, tmp_path / "net", "net", "tap=vibe0", f"mac={MAC}") as served:
            with peer(tmp_path, BEGIN + script) as linux:
                assert linux.wait() == 0, linux.said
            taking.join(DEADLINE)
            assert served.end() == 128 + signal.SIGINT
    finally:
        server.kill()
        server.wait()
        listener.close()

    assert f"linux: eth0 {MAC}" in linux.said
    assert "3 packets received" in linux.said
    assert f"linux: downloaded {hashlib.sha256(content).hexdigest()}" in linux.said
    assert b"".join(uploaded) == content
