"""A run, from a plan that is right to its processes: what can still be wrong, then the start.

What is not needed before the children start is imported after it: their interpreters are what
takes the longest, and they run beside us.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

from launcher.backend import KVM
from launcher.files import OutputFiles
from launcher.loop import Loop
from launcher.nursery import Nursery
from launcher.output import Output
from launcher.plan import Plan
from launcher.rundir import RunDirectory
from launcher.signals import Signals
from launcher.spawn import keep_descriptors, start
from launcher.startup import Startup
from protocol.errors import HostError
from protocol.jail import cgroup
from vmm.hypervisor import detect

VMM = "vmm"
"""The name of the VMM's process."""

SCREEN, MESSAGES = 1, 2

_VMM_MODULE, ZYGOTE_MODULE = "vmm.entry", "devices.runtime.zygote"


def run(plan: Plan, loop: Loop, signals: Signals) -> int:
    """Run what ``plan`` says; the exit status. Errors before anything is started are raised.

    ``signals`` have been coming to ``loop`` since before the plan was made.
    """
    startup = Startup()
    with ExitStack() as resources:
        outputs = Outputs(plan, loop, signals, resources)
        if plan.backend.name == KVM:
            check_kvm()
        directory = resources.enter_context(RunDirectory(plan.options.name))
        groups = _groups(plan, directory.name, resources)
        startup.mark("checked")
        signals.check()
        keep_descriptors()
        vmm = start(VMM, _VMM_MODULE)
        resources.callback(vmm.close)
        nursery = None
        if plan.devices:
            made = groups.groups if isinstance(groups, cgroup.Machine) else None
            nursery = Nursery(ZYGOTE_MODULE, made)
            resources.callback(nursery.close)
        startup.mark("spawned")

        from launcher.session import Session

        session = Session(plan, startup, loop, outputs, directory, groups, vmm, nursery, resources)
        signals.on_signal = session.on_signal
        plan.name_files()
        outputs.begin()
        return session.run()


def _groups(plan: Plan, name: str, resources: ExitStack) -> cgroup.Machine | HostError:
    # Or why there are none.
    if all(device.is_free for device in plan.devices):
        return HostError("no device is jailed")
    try:
        made = cgroup.Machine(name, cgroup.Tree())
    except HostError as error:
        return error
    resources.callback(made.close)
    return made


def check_kvm() -> None:
    """BadInput or HostError, saying what to do, if /dev/kvm cannot be opened."""
    # The backend takes longer to import than a process to start: only to say what is wrong.
    if not detect.kvm_opens():
        from vmm.hypervisor.kvm import Kvm

        Kvm().close()


class Outputs:
    """Where the guest's output, messages, log, statistics and trace go; BadInput if a file cannot
    be written. Files are as they were until :meth:`begin`."""

    def __init__(self, plan: Plan, loop: Loop, signals: Signals, resources: ExitStack) -> None:
        options = plan.options
        self._loop = loop
        self._signals = signals
        self._resources = resources
        files = OutputFiles(_inputs(plan))
        resources.callback(files.close)
        self.begin = files.begin
        self.screen = self._output(SCREEN)
        self.messages = self.log = self._output(MESSAGES)
        if options.log_file is not None:
            self.log = self._output(files.open("--log-file", options.log_file))
        self.stats = files.open("--stats", options.stats) if options.stats else None
        self.trace = files.open("--trace", options.trace) if options.trace is not None else None
        kind, _, path = options.serial.partition("=")
        self.serial = self.screen if kind == "terminal" else None
        """None: what the serial port prints is dropped."""
        if kind == "file":
            self.serial = self._output(files.open("--serial", path))

    def _output(self, fd: int) -> Output:
        made = Output(fd, self._loop)
        # Whoever stops us while a reader takes its time does not want to wait for it.
        is_enough = partial(_is_stopped, self._signals)
        self._resources.callback(made.close, is_enough=is_enough)
        return made


def _is_stopped(signals: Signals) -> bool:
    return signals.ending is not None


def _inputs(plan: Plan) -> Iterator[tuple[str, int]]:
    yield ("--kernel" if plan.options.binary is None else "--binary"), plan.kernel
    if plan.initrd is not None:
        yield "--initrd", plan.initrd
    for device in plan.devices:
        for fd in device.fds.values():
            yield f"{device.option} ({device.name})", fd
