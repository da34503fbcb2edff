"""Front-ends that nobody here wrote: stock Linux under QEMU, and as a process, user-mode Linux; and
`vibevmm device run --vhost-user`, which serves them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from tests.support import initramfs
from tests.support.kernels import Kernel, debian
from tests.support.leaks import named, started_as
from tests.support.packages import PROJECT

# Seconds: a boot takes two to eight, on a machine with nothing else to do.
DEADLINE = 90.0

MEMORY = 256 << 20

UML = "linux.uml"
QEMU = "qemu-system-x86_64"

_UML_MODULES = Path("/usr/lib/uml/modules")
_QEMU_MODULES = (
    *("virtio_mmio", "virtio_pci", "virtio_blk", "virtio_console", "virtio-rng", "virtio_net"),
)


def lacks(program: str) -> str:
    """Why ``program`` cannot be had; empty if it can."""
    return "" if shutil.which(program) else f"needs {program}, of `make setup`"


class Program:
    """A process whose output is ``said``; killed at the end."""

    def __init__(self, command: Sequence[str], folder: Path | None = None) -> None:
        self.said = ""
        self.process = subprocess.Popen(
            command,
            cwd=folder or PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def waits_for(self, words: str, deadline: float = DEADLINE) -> None:
        """Until it has said that."""
        until = time.monotonic() + deadline
        with self._changed:
            while words not in self.said:
                left = until - time.monotonic()
                assert self._reader.is_alive(), f"it ended without {words!r}: {self.said}"
                assert left > 0, f"no {words!r} in {self.said}"
                self._changed.wait(min(left, 0.5))

    def wait(self, deadline: float = DEADLINE) -> int:
        """Its exit status, once all it said is there."""
        status = self.process.wait(deadline)
        self._reader.join()
        return status

    def _read(self) -> None:
        assert self.process.stdout is not None
        while data := os.read(self.process.stdout.fileno(), 65536):
            with self._changed:
                self.said += data.decode(errors="replace").replace("\r", "")
                self._changed.notify()

    def close(self) -> None:
        """End it, and whoever it has started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Served(Program):
    """`vibevmm device run` with ``words``, at the socket ``path``, which is there."""

    def __init__(self, path: Path, *words: str) -> None:
        launcher = [sys.executable, "-m", "launcher"]
        super().__init__([*launcher, "device", "run", *words, "--vhost-user", str(path)])
        try:
            self.waits_for("waits for a front-end")
        except BaseException:
            self.close()
            raise

    def device(self, name: str) -> int:
        """The pid of the process that serves the front-end that is there now."""
        return self._child(lambda: named(name, self.process.pid), name)

    def child(self, module: str) -> int:
        """The pid of the one that runs ``module``."""
        return self._child(lambda: started_as(module, self.process.pid), module)

    def _child(self, found: Callable[[], list[int]], wanted: str) -> int:
        until = time.monotonic() + DEADLINE
        while time.monotonic() < until:
            if pids := found():
                return pids[0]
            time.sleep(0.01)
        raise AssertionError(f"no {wanted}: {self.said}")

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """Its exit status after ``number``."""
        self.process.send_signal(number)
        return self.wait()


def user_mode_linux(
    folder: Path,
    init: str,
    devices: Sequence[str],
    names: Sequence[str] = ("virtio_blk", "virtio_console"),
) -> Program:
    """Stock Linux as a process, running ``init``; ``devices`` are SOCKET:ID, ``names`` the modules
    that it has, in their order."""
    modules = next(_UML_MODULES.iterdir())
    needed = [next(modules.rglob(f"{name}.ko")) for name in names]
    files = {f"modules/{at}-{path.name}": path for at, path in enumerate(needed)}
    kernel = Kernel(f"uml-{modules.name}", modules, "amd64")
    # What lies between the program and its heap, at random, its kernel takes for memory: with some
    # hundred MB there it can make no thread.
    command = [
        *("setarch", "--addr-no-randomize", UML),
        "mem=64M",
        f"initrd={initramfs.build(kernel, init, (), files)}",
        *("con=null", "con0=null,fd:1", "ssl=null", "panic=-1"),
        f"uml_dir={folder}",
        *(f"virtio_uml.device={device}" for device in devices),
    ]
    return Program(command, folder)


def qemu(
    init: str,
    machine: str,
    devices: Sequence[tuple[str, Path]],
    chardev: str = "",
    cpus: int = 1,
) -> Program:
    """Stock Linux under QEMU without KVM, running ``init``; ``devices`` are a device's name and
    its socket. ``chardev`` is what else there is to say of that. A network interface is QEMU's own,
    virtio-net-…, and only its queues are served."""
    kernel = debian("cloud-amd64")
    arguments: list[str] = []
    for number, (device, path) in enumerate(devices):
        arguments += ["-chardev", f"socket,id=c{number},path={path}{chardev}"]
        leads_to = f"chardev=c{number}"
        if device.startswith("virtio-net"):
            arguments += ["-netdev", f"vhost-user,id=n{number},{leads_to}"]
            leads_to = f"netdev=n{number}"
        arguments += ["-device", f"{device},{leads_to}"]
    # Time by instructions: on a busy host microvm's kernel cannot tell how fast its clock is, and
    # waits for ever. A PC has a second one to compare it with.
    clock = ("-icount", "shift=1") if machine.startswith("microvm") else ()
    command = [
        *(QEMU, "-M", machine, "-global", "virtio-mmio.force-legacy=false"),
        *("-accel", "tcg", *clock),
        *("-m", f"{MEMORY >> 20}M", "-smp", str(cpus), "-machine", "memory-backend=mem"),
        *("-object", f"memory-backend-memfd,id=mem,size={MEMORY},share=on"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"),
        *("-kernel", str(kernel.image)),
        *("-initrd", str(initramfs.build(kernel, init, _QEMU_MODULES))),
        *("-append", "console=ttyS0 quiet panic=-1"),
        *arguments,
    ]
    return Program(command)
