"""Runs a command in the lab: a QEMU machine with nested AMD SVM and an emulated IOMMU.

``python -m tests.lab.run [options] -- COMMAND`` boots the machine (L1), in which ``/dev/kvm`` is
the real kvm_amd, and runs the shell command there, in this checkout, on this host's files
(changes stay in L1's memory). Output streams here; the exit status is the command's own, or 124
when the lab's deadline ended it, 125 when L1 died. QEMU dies with this process.
"""

from __future__ import annotations

import argparse
import os
import selectors
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from protocol.errors import HostError
from tests.support import initramfs, linux
from tests.support.kernels import Kernel, debian
from tests.support.packages import PROJECT

TIMED_OUT, DIED = 124, 125

BEAT = b"alive"
# Seconds; L1 boots in 5 to 40, and under the heaviest load seen it was never silent for 30.
MAX_SILENCE = 45.0
# How often one is started, should it lock up. Arbitrary: five of six did so one evening, and each
# goes on where the one before ended.
ATTEMPTS = 8

# Arbitrary: several times what the whole suite takes in the lab.
DEFAULT_TIMEOUT = 1500.0

MODULES = (
    "virtio_pci",
    "virtio_console",
    "qemu_fw_cfg",
    "9pnet_virtio",
    "9p",
    "overlay",
    "kvm-amd",
    "vfio-pci",
    "vfio_iommu_type1",
    "tun",
    "nvme",
    "virtio_net",
    "virtio_blk",
)

# tsc=reliable: the emulated clock sources drift against each other, and Linux would fall back to
# one that exits on each read. iommu=nopt: devices are translated before VFIO takes them.
KERNEL_COMMAND_LINE = (
    "console=ttyS0 panic=-1 quiet mitigations=off tsc=reliable intel_iommu=on iommu=nopt"
)


class LabDied(HostError):
    """L1 ended without saying how its command ended."""


class LabTimedOut(HostError):
    """The deadline came before the command's end."""


class LabLockedUp(HostError):
    """L1's own kernel makes no progress any more."""


class Heartbeat:
    """Whether L1 lives: its userland says so on the console, every five seconds.

    QEMU's TCG loses itself now and then in the interrupts of nested SVM (measured with 7.2: in
    two of six runs of all tests); L1's kernel then reports soft lockups, and nothing runs in it.
    """

    def __init__(self, console: Path, silence: float = MAX_SILENCE) -> None:
        self._console = console
        self._silence = silence
        self._beats = 0
        self._heard = time.monotonic()

    def check(self) -> None:
        """Raises LabLockedUp when there was nothing new for too long."""
        beats = self._console.read_bytes().count(BEAT) if self._console.exists() else 0
        if beats != self._beats:
            self._beats, self._heard = beats, time.monotonic()
        elif time.monotonic() - self._heard > self._silence:
            raise LabLockedUp(f"the lab's machine was silent for {self._silence:g} s: it locked up")


def run(
    command: str,
    *,
    timeout: float = DEFAULT_TIMEOUT,
    qemu_arguments: Sequence[str] = (),
    output: Callable[[bytes], object],
    passed: Path = Path(os.devnull),
) -> int:
    """Run the shell command in a fresh L1, ``output`` getting what it prints; its exit status.

    ``passed`` is for tests.lab.resume. It outlives L1.
    Raises LabTimedOut after ``timeout`` seconds, LabLockedUp when L1 makes no progress, and
    LabDied with the console's last lines.
    """
    kernel = debian("amd64")
    with tempfile.TemporaryDirectory(prefix="lab-") as folder:
        scratch = Path(folder)
        (scratch / "command").write_text(_script(command, kernel, passed))
        reader, writer = os.pipe()
        with (scratch / "qemu").open("wb") as complaints, open(reader, "rb", 0):
            try:
                machine = subprocess.Popen(
                    [*_qemu(kernel, scratch, writer, passed), *qemu_arguments],
                    stdin=subprocess.DEVNULL,
                    stderr=complaints,
                    pass_fds=[writer],
                    # A Ctrl-C is for this process, which then ends QEMU.
                    start_new_session=True,
                )
            finally:
                os.close(writer)
            try:
                heartbeat = Heartbeat(scratch / "console")
                _relay(reader, time.monotonic() + timeout, output, heartbeat)
                machine.wait(timeout=10)
            except TimeoutError:
                raise LabTimedOut(f"the lab did not end within {timeout:g} s") from None
            finally:
                machine.kill()
                machine.wait()
        status = scratch / "status"
        if status.exists() and status.read_text().strip():
            return int(status.read_text())
        raise LabDied("the lab's machine died; its last words:\n" + _last_words(scratch))


def _script(command: str, kernel: Kernel, passed: Path) -> str:
    # What runs in L1, in the host's root. The modules of L1's kernel are mounted where modprobe
    # looks, for what its initramfs did not load.
    modules = shlex.quote(str(kernel.root / "lib" / "modules"))
    path = ":".join([str(PROJECT / ".venv" / "bin"), "/usr/sbin", "/usr/bin", "/sbin", "/bin"])
    return f"""
        export VIBE_LAB=1 VIBE_LAB_PASSED={shlex.quote(str(passed))}
        export HOME=/root PATH={shlex.quote(path)} LANG=C.UTF-8
        mkdir -p /lib/modules && mount --bind {modules} /lib/modules
        cd {shlex.quote(str(PROJECT))} || exit {DIED}
        {command}
    """


def _qemu(kernel: Kernel, scratch: Path, output: int, passed: Path) -> list[str]:
    emulator = shutil.which("qemu-system-x86_64")
    if emulator is None:
        raise HostError("qemu-system-x86_64 is missing; run `make setup`")
    here = Path(__file__).parent
    init = (here / "l1_init.sh").read_text()
    image = initramfs.build(kernel, init, MODULES, {"inside": here / "l1_inside.sh"})
    # fmt: off
    return [
        # QEMU dies with this process, even when that is killed.
        "setpriv", "--pdeathsig", "KILL", emulator,
        "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "4G",
        "-nodefaults", "-display", "none", "-no-reboot",
        "-kernel", str(kernel.image), "-initrd", str(image), "-append", KERNEL_COMMAND_LINE,
        "-serial", f"file:{scratch / 'console'}",
        "-device", "intel-iommu,intremap=on",
        # Without remap, folders on other file systems answer ENOTDIR.
        "-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap",
        "-device", "virtio-9p-pci,fsdev=host,mount_tag=host",
        "-fw_cfg", f"name=opt/lab/command,file={scratch / 'command'}",
        "-device", "virtio-serial-pci",
        "-add-fd", f"fd={output},set=1",
        "-chardev", "file,id=output,path=/dev/fdset/1,append=on",
        "-device", "virtserialport,chardev=output,nr=1",
        "-chardev", f"file,id=status,path={scratch / 'status'}",
        "-device", "virtserialport,chardev=status,nr=2",
        "-chardev", f"file,id=passed,path={passed},append=on",
        "-device", "virtserialport,chardev=passed,nr=3",
    ]
    # fmt: on


def _relay(
    reader: int, deadline: float, output: Callable[[bytes], object], heartbeat: Heartbeat
) -> None:
    # Until QEMU, the pipe's last writer, ends.
    with selectors.DefaultSelector() as selector:
        selector.register(reader, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            heartbeat.check()
            if not selector.select(min(left, 5.0)):
                continue
            data = os.read(reader, 65536)
            if not data:
                return
            output(data)


def _last_words(scratch: Path) -> str:
    lines = []
    for name in ("qemu", "console"):
        file = scratch / name
        if file.exists():
            words = file.read_text(errors="replace").splitlines()
            lines += [line for line in words if line.strip() != BEAT.decode()][-20:]
    return "\n".join(lines)


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="lab", description="Run a command in the lab.")
    parser.add_argument("--timeout", type=float, default=DEFAULT_TIMEOUT, metavar="SECONDS")
    parser.add_argument(
        "--qemu", default="", metavar="ARGUMENTS", help="further arguments of QEMU, in one string"
    )
    parser.add_argument("command", nargs="+", help="a shell command; its words are joined")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    try:
        # The lab has no network, so the guest's kernel is fetched out here; and it has a slow
        # CPU, so what is made of it is made out here.
        linux.initrd()
        linux.vmlinux()
        with tempfile.NamedTemporaryFile(prefix="lab-passed-") as passed:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    return run(
                        " ".join(options.command),
                        timeout=options.timeout,
                        qemu_arguments=shlex.split(options.qemu),
                        output=_write,
                        passed=Path(passed.name),
                    )
                except LabLockedUp as error:
                    print(f"\nlab: {error} (attempt {attempt} of {ATTEMPTS})", file=sys.stderr)
        return DIED
    except LabTimedOut as error:
        print(f"lab: {error}", file=sys.stderr)
        return TIMED_OUT
    except HostError as error:
        print(f"lab: {error}", file=sys.stderr)
        return DIED
    except KeyboardInterrupt:
        return 130
    finally:
        print(f"lab: {time.monotonic() - started:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
