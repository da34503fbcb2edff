"""A run, from a plan that is right to its processes: what can still be wrong, then the start.

What is not needed before the children start is imported after it: their interpreters are what
takes the longest, and they run beside us.
"""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack

from launcher.config import RunOptions
from launcher.loop import Loop
from launcher.output import Output
from launcher.plan import Plan
from launcher.rundir import RunDirectory
from launcher.signals import Signals
from launcher.spawn import Child, keep_descriptors
from launcher.startup import Startup
from protocol.errors import BadInput

VMM = "vmm"
"""The name of the VMM's process."""

SCREEN, MESSAGES = 1, 2

_VMM_MODULE, _DEVICE_MODULE = "vmm.entry", "devices.runtime.entry"
_SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGCONT,
)


def run(plan: Plan) -> int:
    """Run what ``plan`` says; the exit status. Errors before anything is started are raised."""
    startup, loop = Startup(), Loop()
    with ExitStack() as resources:
        outputs = Outputs(plan.options, loop, resources)
        check_kvm()
        directory = resources.enter_context(RunDirectory(plan.options.name))
        startup.mark("checked")
        signals = resources.enter_context(Signals(loop, _SIGNALS))
        keep_descriptors()
        children: dict[str, Child] = {}
        for name, module in [
            (VMM, _VMM_MODULE),
            *((device.name, _DEVICE_MODULE) for device in plan.devices),
        ]:
            children[name] = Child(name, module)
            resources.callback(children[name].close)
        startup.mark("spawned")

        from launcher.session import Session

        session = Session(plan, startup, loop, outputs, directory, children, resources)
        signals.on_signal = session.on_signal
        return session.run()


def check_kvm() -> None:
    """BadInput or HostError, saying what to do, if /dev/kvm cannot be opened."""
    # The backend takes longer to import than a process to start: only to say what is wrong.
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        from vmm.hypervisor.kvm import Kvm

        Kvm().close()


class Outputs:
    """Where the guest's output, messages, log, statistics and trace go; BadInput if a file cannot
    be written."""

    def __init__(self, options: RunOptions, loop: Loop, resources: ExitStack) -> None:
        self._loop = loop
        self._resources = resources
        self.screen = self._output(SCREEN)
        self.messages = self.log = self._output(MESSAGES)
        if options.log_file is not None:
            self.log = self._output(self._open("--log-file", options.log_file))
        self.stats = self._open("--stats", options.stats) if options.stats else None
        self.trace = self._open("--trace", options.trace) if options.trace is not None else None
        kind, _, path = options.serial.partition("=")
        self.serial = self.screen if kind == "terminal" else None
        """None: what the serial port prints is dropped."""
        if kind == "file":
            self.serial = self._output(self._open("--serial", path))

    def _output(self, fd: int) -> Output:
        made = Output(fd, self._loop)
        self._resources.callback(made.close)
        return made

    def _open(self, option: str, path: str) -> int:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
            fd = os.open(path, flags, 0o666)
        except OSError as error:
            raise BadInput(option, f"{path}: {error.strerror}") from error
        self._resources.callback(os.close, fd)
        return fd
