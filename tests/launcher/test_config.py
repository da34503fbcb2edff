"""Command line and TOML file together."""

from __future__ import annotations

from pathlib import Path

from launcher.config import DEFAULT_CMDLINE, read
from protocol.log import Level

FILE = """
kernel = "bzImage"
mem = "1G"
cpus = 2
timeout = 1.5
on-reboot = "exit"
stats = true
disk = ["a.img,readonly=on", { path = "b,c.img", id = "second" }]
console = "terminal"
log = { default = 3 }

[[device]]
kind = "rng"
max_bytes = 512
"""


def config_file(tmp_path: Path, text: str = FILE) -> str:
    path = tmp_path / "vm.toml"
    path.write_text(text.replace("log = { default = 3 }", 'log = ["info", "blk0=4"]'))
    return str(path)


def test_file_says_the_same_as_the_flags(tmp_path: Path) -> None:
    from_file = read(["--config", config_file(tmp_path)])
    from_flags = read(
        [
            *("--kernel", "bzImage", "--mem", "1G", "--cpus", "2", "--timeout", "1.5", "--stats"),
            *("--disk", "a.img,readonly=on", "--disk", "path=b,,c.img,id=second"),
            *("--console", "backend=terminal", "--device", "rng,max_bytes=512"),
            *("--log", "info", "--log", "blk0=4", "--on-reboot", "exit"),
        ]
    )

    assert from_file.memory == from_flags.memory == 1 << 30
    assert from_file.log == from_flags.log
    assert [device.kind for device in from_file.devices] == ["blk", "blk", "console", "rng"]
    assert from_file.devices[:2] == from_flags.devices[:2]
    assert from_file.devices[3] == from_flags.devices[3]
    assert from_file.on_reboot == from_flags.on_reboot == "exit"
    assert (from_file.cpus, from_file.timeout, from_file.stats) == (2, 1.5, "")


def test_flag_replaces_what_the_file_says(tmp_path: Path) -> None:
    options = read(["--config", config_file(tmp_path), "--mem", "64M", "--disk", "other.img"])

    assert options.memory == 64 << 20
    assert options.kernel == "bzImage"
    disks = [device for device in options.devices if device.kind == "blk"]
    assert [device.settings for device in disks] == [((None, "other.img"),)]


def test_kernel_alone_is_enough() -> None:
    options = read(["--kernel", "bzImage"])

    assert options.cmdline == DEFAULT_CMDLINE
    assert (options.memory, options.cpus, options.devices) == (512 << 20, 1, ())
    assert options.serial == "terminal"


def test_command_line_may_be_empty_and_a_binary_has_none() -> None:
    assert read(["--kernel", "bzImage", "--cmdline", ""]).cmdline == ""
    assert read(["--binary", "x", "--entry", "0x1000"]).cmdline == ""


def test_levels_have_names_and_numbers_for_all_and_for_one() -> None:
    log = read(["--kernel", "k", "--log", "1", "--log", "blk0=debug", "--log", "vmm=0"]).log

    assert log.of("rng0") is Level.ERROR
    assert log.of("blk0") is Level.DEBUG
    assert log.of("vmm") is Level.NONE


def test_table_of_log_levels_names_processes(tmp_path: Path) -> None:
    path = config_file(tmp_path, 'kernel = "k"\nlog = { vmm = "debug", blk0 = 1 }\n')

    log = read(["--config", path]).log

    assert (log.of("vmm"), log.of("blk0"), log.of("other")) == (
        Level.DEBUG,
        Level.ERROR,
        Level.WARN,
    )
