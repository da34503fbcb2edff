"""What cannot be, end to end: one clear line naming the option, status 2, nothing started."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher import cli, run
from protocol.vhost_user import Request
from tests.support import boot_files, ordinary_user
from tests.support.daemons import Puppet

Run = Callable[..., str]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def refused(runtime: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs ``vibevmm run`` with options that are wrong; the line that it says."""

    def run(*options: str) -> str:
        assert cli.main(["run", *options]) == 2
        printed = capfd.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1
        assert printed.err.startswith("vibevmm: ")
        assert list(runtime.iterdir()) == []
        return printed.err.removeprefix("vibevmm: ").rstrip()

    return run


@pytest.fixture
def guest(binary: str) -> tuple[str, ...]:
    """Options that are right."""
    return ("--binary", binary, "--entry", "0x10000")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """An image of one MiB."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


def test_missing_kernel(refused: Run) -> None:
    assert refused("--kernel", "/nowhere") == "--kernel: /nowhere: No such file or directory"


def test_missing_initrd(refused: Run, binary: str) -> None:
    line = refused("--kernel", binary, "--initrd", "/nowhere")

    assert line == "--initrd: /nowhere: No such file or directory"


@pytest.mark.root
def test_unreadable_kernel_of_an_ordinary_user(tmp_path: Path) -> None:
    kernel = tmp_path / "secret"
    kernel.write_bytes(b"\xf4")
    kernel.chmod(0)
    ordinary_user.let_in(tmp_path)

    done = ordinary_user.vibevmm("run", "--kernel", str(kernel))

    assert done.returncode == 2
    assert done.stderr == f"vibevmm: --kernel: {kernel}: Permission denied\n"


def test_folder_as_kernel(refused: Run, tmp_path: Path) -> None:
    assert refused("--kernel", str(tmp_path)).startswith("--kernel: ")


def test_text_as_kernel(refused: Run, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("I am no kernel\n" * 100)

    assert refused("--kernel", "text").startswith("--kernel: text: this is not a kernel")


def test_32_bit_elf(refused: Run, tmp_path: Path) -> None:
    (tmp_path / "elf32").write_bytes(boot_files.elf32())

    line = refused("--kernel", "elf32")

    assert line.startswith("--kernel: ")
    assert "32" in line


def test_kernel_too_large_for_low_memory(refused: Run, tmp_path: Path) -> None:
    with open(tmp_path / "bzImage", "wb") as file:
        file.write(boot_files.BzImage(code=bytes(20 << 20)).build())

    assert refused("--kernel", "bzImage", "--mem", "16M").startswith("--kernel: ")


def test_initrd_too_large_for_low_memory(refused: Run, tmp_path: Path) -> None:
    (tmp_path / "bzImage").write_bytes(boot_files.BzImage().build())
    with open(tmp_path / "initrd", "wb") as file:
        file.truncate(100 << 20)

    line = refused("--kernel", "bzImage", "--initrd", "initrd", "--mem", "64M")

    assert line.startswith("--initrd: initrd: its 100M do not fit in low RAM")


def test_binary_too_large_for_memory(refused: Run, tmp_path: Path) -> None:
    with open(tmp_path / "large", "wb") as file:
        file.truncate(20 << 20)

    line = refused("--binary", "large", "--entry", "0x100000", "--mem", "16M")

    assert line.startswith("--entry: ")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("0x7fffffff0000", "outside of memory"),
        ("0xa00000", "virtio window"),
        ("here", "not a number"),
        ("٣", "not a number"),
        ("0b100", "not a number"),
        ("1_000_000", "not a number"),
        (" 4096", "not a number"),
        ("9" * 5000, "64 bits"),
        ("-1", "64 bits"),
    ],
)
def test_entry_that_is_no_place(refused: Run, binary: str, entry: str, words: str) -> None:
    line = refused("--binary", binary, "--entry", entry)

    assert line.startswith("--entry: ")
    assert words in line


def test_binary_without_entry(refused: Run, binary: str) -> None:
    assert refused("--binary", binary).startswith("--entry: ")


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ("0", "0 is none"),
        ("-64M", "negative"),
        ("64X", "ends in 'X'"),
        ("64MB", "ends in 'B'"),
        ("lots", "ends in 'S'"),
        ("1M", "less than the least"),
        ("16777217", "multiple of 4K"),
        ("8192G", "of this host"),
        ("", "is not a size"),
        ("9" * 5000, "5000 digits"),
    ],
)
def test_memory_that_cannot_be(refused: Run, binary: str, size: str, words: str) -> None:
    line = refused("--binary", binary, "--entry", "0x10000", "--mem", size)

    assert line.startswith("--mem: ")
    assert words in line


@pytest.mark.parametrize("count", ["0", "9", "-1", "two", "1.5", "٣", "9" * 5000])
def test_number_of_cpus_that_cannot_be(refused: Run, guest: tuple[str, ...], count: str) -> None:
    line = refused(*guest, "--cpus", count)

    # A long line is cut.
    assert f"--cpus: {count!r} is not a number from 1 to 8".startswith(line)
    assert line.startswith(f"--cpus: {count[:9]!r}"[:-1])


def test_reboot_that_is_neither(refused: Run, guest: tuple[str, ...]) -> None:
    line = refused(*guest, "--on-reboot", "rset")

    assert line == "--on-reboot: 'rset' is none; did you mean 'reset'?"


def test_sixteenth_device(refused: Run, guest: tuple[str, ...]) -> None:
    line = refused(*guest, *["--device", "rng"] * 16)

    assert line.startswith("--device: this is virtio device number 16")


@pytest.mark.parametrize(
    ("one", "other", "line"),
    [
        ("id=a", "process=a", "--device: process: a is taken"),
        ("process=vmm", "id=b", "--device: process: vmm is taken"),
        (
            "id=a,process=p",
            "id=b,process=p,isolation=none",
            "--device: isolation: none of b is not jail of a, in whose process it is to be (p)",
        ),
        (
            "id=a,process=p,isolation=jail+strict",
            "id=b,process=p",
            "--device: isolation: jail of b is not jail+strict of a, "
            "in whose process it is to be (p)",
        ),
        (
            "id=a,process=p",
            "id=b,process=p,on-violation=log",
            "--device: on-violation: log of b is not kill of a, in whose process it is to be (p)",
        ),
        (
            "id=a,process=p,on-death=stop-vm",
            "id=b,process=p",
            "--device: on-death: restart of b is not stop-vm of a, "
            "in whose process it is to be (p)",
        ),
    ],
)
def test_processes_that_cannot_be_shared(
    refused: Run, guest: tuple[str, ...], one: str, other: str, line: str
) -> None:
    assert refused(*guest, "--device", f"rng,{one}", "--device", f"rng,{other}") == line


def test_unknown_kind_of_device(refused: Run, guest: tuple[str, ...]) -> None:
    line = refused(*guest, "--device", "blkk")

    assert line.startswith("--device: ")
    assert "did you mean blk?" in line


def test_unknown_key_of_a_device(refused: Run, guest: tuple[str, ...]) -> None:
    line = refused(*guest, "--disk", "a.img,readnoly=on")

    assert line == "--disk: blk has no key 'readnoly'; did you mean 'readonly'?"


def test_duplicated_id(refused: Run, guest: tuple[str, ...]) -> None:
    line = refused(*guest, "--device", "rng,id=a", "--device", "rng,id=a")

    assert line == "--device: id=a is taken"


@pytest.mark.parametrize("queues", ["0", "17"])
def test_a_disk_with_no_queue_or_too_many(
    refused: Run, guest: tuple[str, ...], disk: Path, queues: str
) -> None:
    line = refused(*guest, "--disk", f"{disk},queues={queues}")

    assert line == f"--disk: queues: {queues} is not 1 to 16"


def test_missing_disk(refused: Run, guest: tuple[str, ...]) -> None:
    line = refused(*guest, "--disk", "/nowhere.img")

    assert line.startswith("--disk: path: /nowhere.img: ")


def test_locked_disk(refused: Run, guest: tuple[str, ...], disk: Path) -> None:
    with open(disk, "r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        assert "is in use" in refused(*guest, "--disk", str(disk))


def test_same_disk_twice(refused: Run, guest: tuple[str, ...], disk: Path) -> None:
    assert "is in use" in refused(*guest, "--disk", str(disk), "--disk", str(disk))


@pytest.mark.parametrize("size", [0, 100, 513])
def test_truncated_disk(refused: Run, guest: tuple[str, ...], disk: Path, size: int) -> None:
    disk.write_bytes(bytes(size))

    assert refused(*guest, "--disk", str(disk)).startswith("--disk: path: ")


def test_unknown_key_in_a_toml_file(refused: Run, tmp_path: Path) -> None:
    (tmp_path / "vm.toml").write_text('kernal = "bzImage"\n')

    line = refused("--config", "vm.toml")

    assert line == "--config: vm.toml: unknown key 'kernal'; did you mean 'kernel'?"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cpus = ", "Invalid value"),
        ("cpus = [1]", "list is not expected"),
        ("mem = true", "bool is not expected"),
        ("[[device]]\nid = 'a'", "needs the key 'kind'"),
        ('kernel = "a\\u0000b"', "null byte"),
        ('[[disk]]\npath = "a\\u0000b"', "null byte"),
        ("cpus = " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("cpus = " + "9" * 5000, "4300 digits"),
        ("cpus = 0x" + "f" * 5000, "4300 digits"),
        ("[[device]]\nkind = 'rng'\nmax_bytes = 0x" + "f" * 5000, "4300 digits"),
        ("#" + "x" * (1 << 20), "at most 1 MiB"),
        # tomllib would take ten seconds, and of one that is as long as a file may be an hour.
        ("cpus = 1\n" + "a." * 20_000 + "a = 1", "vm.toml: line 2 has more than 100 dots"),
    ],
    ids=lambda value: value[:20],
)
def test_toml_file_that_is_wrong(refused: Run, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "vm.toml").write_text(text)

    assert words in refused("--config", "vm.toml")


def test_config_that_is_no_regular_file_is_not_waited_for(refused: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")

    assert refused("--config", "fifo") == "--config: fifo: this is not a regular file"
    assert "Is a directory" in refused("--config", str(tmp_path))
    assert "not a regular file" in refused("--config", "/dev/zero")


@pytest.mark.parametrize(
    "option",
    [
        *("--kernel", "--initrd", "--cmdline", "--name", "--disk", "--console", "--device"),
        *("--serial", "--config", "--log-file", "--stats", "--trace", "--log", "--mem"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_what_is_no_text_is_refused_whatever_it_is_for(
    refused: Run, guest: tuple[str, ...], option: str, more: list[str]
) -> None:
    line = refused(*guest, option, os.fsdecode(b"\xff\x1b"), *more)

    assert line == rf"{option}: b'\xff\x1b' is not UTF-8"


def test_runtime_directory_that_is_no_text(
    refused: Run, guest: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "check_kvm", lambda: None)
    monkeypatch.setenv("XDG_RUNTIME_DIR", os.fsdecode(b"/tmp/\xff"))

    assert refused(*guest) == r"XDG_RUNTIME_DIR: b'/tmp/\xff' is not UTF-8"


def test_socket_in_a_folder_whose_name_is_no_text(
    refused: Run, guest: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    monkeypatch.chdir(folder)

    line = refused(*guest, "--console", "backend=socket,path=s")

    assert line == "--console: path: s: the directory that it is in is not UTF-8"
    assert list(folder.iterdir()) == []


def test_path_with_what_a_terminal_must_not_see_is_shown(refused: Run) -> None:
    assert refused("--kernel", "a\x1b[2J b") == (r"--kernel: a\x1b[2J b: No such file or directory")


@pytest.mark.root
@pytest.mark.kvm
@pytest.mark.skipif(
    not os.path.exists("/dev/kvm") or bool(os.stat("/dev/kvm").st_mode & 0o006),
    reason="there is no /dev/kvm that is not everybody's",
)
def test_no_permission_on_kvm(binary: str, tmp_path: Path) -> None:
    ordinary_user.let_in(tmp_path)

    done = ordinary_user.vibevmm(
        "run", "--hypervisor", "kvm", "--binary", binary, "--entry", "0x10000"
    )

    assert done.returncode == 2
    assert done.stderr.startswith("vibevmm: /dev/kvm: no permission")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--kernal", "x"], "--kernal: no such option; did you mean --kernel?"),
        (["--mem"], "--mem: needs a value: SIZE"),
        (["--dry-run=yes"], "--dry-run: takes no value"),
        (["bzImage"], "'bzImage': what is this? Every argument belongs to an option"),
        ([], "--kernel: what is to run? Give a kernel, or --binary with a raw binary"),
        (
            ["--kernel", "a", "--binary", "b"],
            "--binary: goes without --kernel: one machine runs one of them",
        ),
        (
            ["--kernel", "a", "--entry", "1"],
            "--entry: goes with --binary; a kernel says where it wants to be",
        ),
        (["--kernel", "a", "--log", "5"], "--log: '5' is not a level from 0 to 4"),
        (["--kernel", "a", "--timeout", "1_0"], "--timeout: '1_0' is not a number of seconds"),
        (["--kernel", "a", "--timeout", "0"], "--timeout: '0' is not a number of seconds above 0"),
        (["--kernel", "a", "--name", "../x"], "--name: '../x' is not letters, digits, - and _"),
        (["--kernel", "a", "--serial", "printer"], "--serial: 'printer' is not terminal, none"),
        (["--help-device", "bulk"], "--help-device: 'bulk' is not a kind of device"),
    ],
)
def test_command_line_that_makes_no_sense(refused: Run, options: list[str], line: str) -> None:
    assert refused(*options).startswith(line)


@pytest.mark.parametrize("option", ["--trace", "--log-file", "--stats"])
def test_output_file_that_cannot_be_written(
    refused: Run, guest: tuple[str, ...], option: str
) -> None:
    line = refused(*guest, option, "/nowhere/file")

    assert line == f"{option}: /nowhere/file: No such file or directory"


@pytest.mark.parametrize("option", ["--trace", "--log-file", "--stats", "--serial=file"])
def test_output_is_never_what_the_run_reads(
    refused: Run, binary: str, disk: Path, option: str
) -> None:
    guest = ("--binary", binary, "--entry", "0x10000", "--disk", str(disk))
    os.link(disk, "link")
    before = disk.read_bytes(), Path(binary).read_bytes()

    name = option.partition("=")[0]
    assert refused(*guest, f"{option}={binary}") == (
        f"{name}: {binary}: this is the file of --binary, too"
    )
    assert refused(*guest, f"{option}=link") == (
        f"{name}: link: this is the file of --disk (blk0), too"
    )
    assert (disk.read_bytes(), Path(binary).read_bytes()) == before


def test_outputs_are_different_files(refused: Run, guest: tuple[str, ...]) -> None:
    line = refused(*guest, "--log-file", "same", "--trace", "./same")

    assert line == "--trace: ./same: this is the file of --log-file, too"
    assert not os.path.exists("same")


def test_initrd_is_no_output_either(refused: Run, tmp_path: Path) -> None:
    (tmp_path / "bzImage").write_bytes(boot_files.BzImage().build())
    (tmp_path / "initrd").write_bytes(b"x")

    line = refused("--kernel", "bzImage", "--initrd", "initrd", "--stats", "initrd")

    assert line == "--stats: initrd: this is the file of --initrd, too"


@pytest.mark.parametrize("option", ["--trace", "--log-file", "--stats", "--serial=file"])
def test_output_that_would_be_waited_for(
    refused: Run, guest: tuple[str, ...], tmp_path: Path, option: str
) -> None:
    os.mkfifo(tmp_path / "fifo")
    reading = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)

    assert "fifo: neither a regular file nor" in refused(*guest, f"{option}=fifo")
    os.close(reading)
    assert "fifo: neither a regular file nor" in refused(*guest, f"{option}=fifo")


def test_serial_file_that_cannot_be_written(refused: Run, guest: tuple[str, ...]) -> None:
    line = refused(*guest, "--serial", "file=/nowhere/file")

    assert line == "--serial: /nowhere/file: No such file or directory"


def test_log_level_of_a_process_that_there_will_not_be(
    refused: Run, guest: tuple[str, ...]
) -> None:
    line = refused(*guest, "--device", "rng", "--log", "rgn0=4")

    assert line == "--log: no process is called 'rgn0'; did you mean 'rng0'?"


# Devices of others.


@pytest.mark.parametrize(
    ("device", "line"),
    [
        ("type=blk,socket=/nowhere", "--device: socket: /nowhere: No such file or directory"),
        ("type=blk,socket=/", "--device: socket: /: is no socket"),
        ("type=tape,socket=/", "--device: type: 'tape' is not one of blk, console, fs, net, rng"),
        ("type=blk", "--device: vhost-user needs socket=…"),
        ("type=fs,socket=/", "--device: tag: '' is not 1 to 36 bytes"),
        ("type=blk,socket=/,iops=9", "--device: vhost-user has no key 'iops'"),
        (
            "type=blk,socket=/,on-death=fail-io",
            "--device: on-death: fail-io: what answers requests is another program",
        ),
        (
            "type=blk,socket=/,process=one",
            "--device: process: vhost-user has a process of its own: it ends with its back-end",
        ),
    ],
)
def test_another_programs_device(
    refused: Run, guest: tuple[str, ...], device: str, line: str
) -> None:
    assert refused(*guest, "--device", f"vhost-user,{device}").startswith(line)


def test_another_programs_device_that_is_none(
    refused: Run, guest: tuple[str, ...], tmp_path: Path
) -> None:
    with Puppet(tmp_path / "socket", {Request.GET_CONFIG: lambda _: b""}):
        line = refused(*guest, "--device", "vhost-user,type=blk,socket=socket")

    assert line == "--device: socket: socket: GET_CONFIG of 60 bytes: 0 in reply"


def test_another_programs_device_by_hand(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["device", "run", "vhost-user", "--attach", "m/blk0"]) == 2
    said = "vibevmm: device run: vhost-user is another program's device: name it to a run\n"
    assert capfd.readouterr().err == said
