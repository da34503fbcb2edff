"""Targets ``config`` and ``devices``: what a user writes, in a file and on the command line.

It is options, or a BadInput that can be printed. A device's options, written as a device string,
are the same options.
"""

from __future__ import annotations

import os

from devices.kinds import KINDS, find
from launcher import config, device_options
from launcher.device_options import Request
from protocol.errors import BadInput

_file = os.memfd_create("options")


def run_config(data: bytes) -> None:
    """A TOML file."""
    os.ftruncate(_file, 0)
    os.pwrite(_file, data, 0)
    _read(["--config", f"/proc/self/fd/{_file}"])


def run_devices(data: bytes) -> None:
    """A byte that chooses the option, and its value, as a shell would pass it."""
    option = ("--disk", "--console", "--device")[(data[0] if data else 0) % 3]
    # The system would not pass a null byte; whoever calls from Python may.
    _read(["--kernel", "k", option, os.fsdecode(data[1:])])


def _read(argv: list[str]) -> None:
    try:
        read = config.read(argv)
        # Other kinds are modules, and would be imported.
        known = [request for request in read.devices if request.kind in KINDS]
        kinds = [find(request.kind).config_type for request in known]
        made = [device_options.configure(*pair)[1] for pair in zip(known, kinds, strict=True)]
    except BadInput as error:
        str(error).encode("utf-8", "backslashreplace")
        return
    assert "\\x00" not in repr(read)
    for request, kind, configured in zip(known, kinds, made, strict=True):
        _write_again(request, kind, configured)


def _write_again(request: Request, kind: type, made: object) -> None:
    written = device_options.settings(made)
    text = ",".join(f"{key}={device_options.quoted(value)}" for key, value in written.items())
    again = device_options.parse("--device", f"{request.kind},{text}" if text else request.kind)
    assert device_options.configure(again, kind)[1] == made, (made, text)
    assert device_options.changed(Request("--impl", request.kind, ()), kind, written) == made


CONFIG_SEEDS = {
    "whole": b"""kernel = "vmlinuz"
cmdline = "console=ttyS0"
cpus = 2
mem = "1G"
hang-after = 2.5
stats = true
disk = ["a.img", {path = "b.img", readonly = true, id = "b"}]
console = {backend = "socket", path = "s"}
device = ["rng,max_bytes=0x10", {kind = "null"}, {kind = "blk", path = "c", block-size = 4096}]
[log]
vmm = "debug"
""",
    "binary": b'binary = "a.raw"\nentry = 0x100000\nload = 4096\nisolation = "bounce+strict"\n',
    "deep": b"a = " + b"[" * 1500 + b"]" * 1500,
    "dates": b"timeout = 1979-05-27T07:32:00Z\nname = 'x'\nmem = 1e3\ncpus = inf\n",
    "text": b'log = "vmm=debug"\nserial = """file=\\u00e9\\\n"""\n',
}
DEVICES_SEEDS = {
    "disk": b"\x00a.img,readonly,block-size=4096,serial=x",
    "commas": b"\x00a,,b.img,id=d0,on-death=fail-io",
    "levels": b"\x02rng,isolation=bounce+strict,on-violation=errno,process=p",
    "console": b"\x01backend=socket,path=/tmp/s,cols=80",
    "rng": b"\x02rng,max_bytes=64K",
    "mapped": b"\x02blk-mapped,path=a=b",
    "twice": b"\x02null,id=a,id=b",
    "hexadecimal": b"\x02rng,max-bytes=0xffffffffffffffff",
}
