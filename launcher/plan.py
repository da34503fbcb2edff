"""What a run will be, complete and checked, before anything is started.

Everything that can be wrong with the input is found here: files are opened, disks locked, the
kernel looked at, devices given names, slots and interrupt lines. A plan that was made can be
printed (``--dry-run``), started, or closed again without a trace.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from devices import kinds
from launcher import model
from launcher.backend import SOFTWARE, Backend, choose
from launcher.config import RunOptions
from launcher.device_options import Request
from launcher.host import Host, Streams
from launcher.locks import Locks
from launcher.model import Model, Place
from launcher.options import suggestion
from launcher.policy import OnDeath
from protocol import fds
from protocol.errors import BadInput, HostError
from protocol.specs import JAIL, BootSpec, Isolation, OnViolation, Part
from vmm import arm64_map, memory_map
from vmm.boot import architecture
from vmm.boot.architecture import Found
from vmm.boot.hardware import Hardware, VirtioMmio

if TYPE_CHECKING:
    from vmm.boot.arm64 import Arm64Plan
    from vmm.boot.plan import BootPlan

# The seed's map: the first console, block and network device have slots of their own.
_FIRST_OF_KIND = {"console": 0, "blk": 1, "net": 2}

# Names of processes and streams that are not devices'.
_RESERVED = frozenset({"vmm", "launcher", "serial", "zygote", "spare", "hand"})


# Descriptors of a launcher at its fullest, beyond those that it is started with, and of each
# device: 31 and 7 to 16 were counted, the most for a console on a socket, with a client; two more
# with --allow-inject. A successor has some of its own, too. Clients of the control interface come
# on top, 64 at most (protocol.service.MOST_CLIENTS).
_DESCRIPTORS, _DEVICE_DESCRIPTORS = 44 + 64, 20
# Of each queue beyond those of a console, in the VMM: the first's kick, those of the two dead that
# it keeps, of who serves, and of a successor (vmm.seating): 675 in all for 8 disks of 16 queues.
_USUAL_QUEUES, _QUEUE_DESCRIPTORS = 2, 5


@dataclass(frozen=True, slots=True)
class PlannedDevice:
    """A device with its place in the machine; ``fds`` are what its kind opened, by name. One that
    is ``is_mediated`` works on rings of its own, for it keeps no journal; as all that are on copies
    do, and all on a CPU in software."""

    name: str
    kind: str
    option: str
    model: Model
    slot: int
    on_death: OnDeath = OnDeath.RESTART
    isolation: Isolation = JAIL
    on_violation: OnViolation = "kill"
    process: str | None = None
    is_mediated: bool = False
    fds: dict[str, int] = field(default_factory=dict)

    def close(self) -> None:
        """Close what its kind opened."""
        fds.close_all(self.fds.values())
        self.fds.clear()

    @property
    def process_name(self) -> str:
        """What its process is called; others that have the same are in it, too."""
        return self.process or self.name

    @property
    def is_bounced(self) -> bool:
        """Whether it works on copies, in memory of its own, and has no guest memory."""
        return self.isolation.level == "bounce"

    @property
    def is_free(self) -> bool:
        """Whether nothing holds its process."""
        return self.isolation.level == "none"

    @property
    def gsi(self) -> int:
        """Its interrupt line."""
        return memory_map.VIRTIO_GSIS[self.slot]

    def place(self, backend: Backend) -> Place:
        """Which another one may take, on a machine of ``backend``."""
        mediated = self.is_mediated or self.is_bounced or backend.name == SOFTWARE
        return Place(self.name, self.model.device_id, self.queues, self.model.settings, mediated)

    @property
    def queues(self) -> tuple[int, ...]:
        """The most entries of each of its virtqueues."""
        return self.model.sizes

    @property
    def owing(self) -> tuple[int, ...]:
        """Those that owe progress (devices.runtime.device.virtqueue)."""
        return tuple(queue.index for queue in self.model.queues if queue.owes)

    @property
    def threads(self) -> int:
        """How many of them have threads of their own: of several that are alike all but one."""
        return sum(queue.number is not None and queue.number > 1 for queue in self.model.queues)

    @property
    def bells(self) -> tuple[str, ...]:
        """The names of its doorbells."""
        return ("call", *(f"kick{queue.index}" for queue in self.model.queues))


@dataclass(frozen=True, slots=True)
class Plan:
    """A run that can be started: its files are open, its disks locked, until :meth:`close`."""

    options: RunOptions
    backend: Backend
    architecture: Found
    boot: BootSpec
    boot_plan: BootPlan | Arm64Plan
    devices: tuple[PlannedDevice, ...]
    kernel: int
    initrd: int | None
    streams: Streams
    locks: Locks
    _resources: ExitStack

    def close(self) -> None:
        """Give back all that is held, and remove what devices asked to have removed."""
        self._resources.close()

    def name_files(self) -> None:
        """Give the files that were made for devices their names, now that all else is right, or
        BadInput; unless they are settled, too, they go with the plan (launcher.locks)."""
        for device in self.devices:
            self.locks.name(device.name, device.option)

    @property
    def processes(self) -> dict[str, list[PlannedDevice]]:
        """The devices, by the process that serves them: mostly one in each."""
        found: dict[str, list[PlannedDevice]] = {}
        for device in self.devices:
            found.setdefault(device.process_name, []).append(device)
        return found

    def is_strict(self, process: str) -> bool:
        """Whether a device of that process is to have a whole jail or none."""
        return any(device.isolation.strict for device in self.processes.get(process, ()))

    def journal_sizes(self, name: str) -> tuple[int, ...]:
        """Of the queues of device ``name``: what its journal is laid out for, whoever serves it."""
        return next(device.queues for device in self.devices if device.name == name)

    def text(self) -> str:
        """For people: what would be started, and where everything would lie."""
        lines = architecture.describe(self.boot_plan)
        lines.insert(1, f"architecture: {self.architecture}")
        if self.boot.cmdline:
            lines.insert(1, f"command line: {self.boot.cmdline}")
        lines += ["", "devices:"]
        for device in self.devices:
            address = memory_map.slot_address(device.slot)
            lines.append(
                f"  {device.name:<10} {device.kind:<8} slot {device.slot:<2} at {address:#x}, "
                f"GSI {device.gsi}, {len(device.queues)} queue(s), {device.model.shown}"
            )
        lines += self._consoles()
        names = ", ".join(["vmm", *map(_with_devices, self.processes.items())])
        lines += [
            "",
            f"processes: {names}",
            f"CPUs: {self.options.cpus}, hypervisor: {self.backend}",
        ]
        return "\n".join(lines)

    def _consoles(self) -> list[str]:
        serial, at = self.options.serial, f"at {memory_map.MMIO_CONSOLE:#x}"
        if self.architecture.name == architecture.ARM64:
            return [f"  {'serial':<10} {'16550':<8} {at}, GSI {arm64_map.CONSOLE_GSI}, {serial}"]
        return [
            f"  {'serial':<10} {'16550':<8} port 0x3f8, GSI 4, {serial}",
            f"  {'mmio':<10} {'console':<8} {at}",
        ]


def make(options: RunOptions, check: Callable[[], object] = lambda: None) -> Plan:
    """Check everything and open what is named; BadInput, with nothing left open, if it is wrong.
    Where this waits for somebody else's code it calls ``check``, which may raise."""
    check_descriptors(len(options.devices))
    with ExitStack() as resources:
        planned = _place(options.devices, options.isolation, check)
        more = sum(max(0, len(device.queues) - _USUAL_QUEUES) for device in planned)
        check_descriptors(len(planned), more)
        check_log_names(options, planned)
        if options.binary is not None:
            kernel = _open(resources, "--binary", options.binary)
        else:
            kernel = _open(resources, "--kernel", options.kernel or "")
        initrd = None
        if options.initrd is not None:
            initrd = _open(resources, "--initrd", options.initrd)
        found = _find_architecture(options, kernel)
        check_isolation(options.isolation, planned)
        boot = BootSpec(
            options.binary is not None, options.cmdline, options.entry, options.load, found.name
        )
        wiring = tuple(VirtioMmio(device.slot, device.gsi) for device in planned)
        hardware = Hardware(options.memory, options.cpus, wiring)
        boot_plan = _plan_boot(options, boot, kernel, initrd, hardware)
        streams, locks = Streams(), Locks()
        resources.callback(streams.close)
        resources.callback(locks.close)
        for device in planned:
            open_device(device, streams, locks, check)
            resources.callback(device.close)
        backend = choose(
            options.hypervisor,
            architecture=found.name,
            kernel=options.binary is None,
            cpus=options.cpus,
        )
        return Plan(
            options,
            backend,
            found,
            boot,
            boot_plan,
            planned,
            kernel,
            initrd,
            streams,
            locks,
            resources.pop_all(),
        )


def check_descriptors(devices: int, queues: int = 0) -> None:
    """Raise the limit of open files to what a machine with ``devices`` takes, of which some have so
    many ``queues`` more than usual; HostError if this process may not."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len(os.listdir("/proc/self/fd")) + _DESCRIPTORS + devices * _DEVICE_DESCRIPTORS
    needed += queues * _QUEUE_DESCRIPTORS
    if 0 <= most < needed:
        raise HostError(
            f"this machine needs {needed} open files, and {most} are allowed: "
            f"ulimit -n {max(needed, 1024)}"
        )
    if 0 <= limit < needed:  # which many hosts have at 1024, and far more for who asks
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, most))


def check_isolation(machine: Isolation, devices: Iterable[PlannedDevice]) -> None:
    """BadInput if a device, or by ``machine`` the VMM, is to have a whole jail, and this host has
    not all of it."""
    strict = [device for device in devices if device.isolation.strict]
    if not strict and not machine.strict:
        return
    from protocol.jail import probe  # for those only
    from vmm import seal

    lacks = probe.lacks()
    if strict and lacks:
        device = strict[0]
        what = f"isolation={device.isolation} ({device.name})"
        raise BadInput(device.option, f"{what}: this host lacks {_listed(lacks)}")
    mine = {part: why for part, why in lacks.items() if part in seal.parts()}
    if machine.strict and mine:
        raise BadInput("--isolation", f"{machine} (vmm): this host lacks {_listed(mine)}")


def _listed(lacks: Mapping[Part, str]) -> str:
    return ", ".join(f"{part} ({why})" for part, why in lacks.items())


def check_log_names(options: RunOptions, devices: Iterable[PlannedDevice]) -> None:
    """BadInput if --log names a process that there will not be."""
    known = ["vmm", "launcher", *dict.fromkeys(device.process_name for device in devices)]
    for process, _ in options.log.by_process:
        if process not in known:
            raise BadInput("--log", f"no process is called {process!r}{suggestion(process, known)}")


def _place(
    requests: Sequence[Request], isolation: Isolation, check: Callable[[], object]
) -> tuple[PlannedDevice, ...]:
    chosen: list[tuple[Request, Model]] = []
    for number, request in enumerate(requests, 1):
        if number > memory_map.MAX_VIRTIO_DEVICES:
            raise BadInput(
                request.option,
                f"this is virtio device number {number}; a machine has interrupt lines for "
                f"{memory_map.MAX_VIRTIO_DEVICES}",
            )
        chosen.append((request, _look(request, check)))
    names = _names(chosen)
    slots = _slots([request.kind for request in requests])
    planned = tuple(
        PlannedDevice(
            name,
            request.kind,
            request.option,
            found,
            slot,
            OnDeath(found.on_death),
            found.isolation or isolation,
            found.on_violation,
            found.process,
            not found.journals,
        )
        for (request, found), name, slot in zip(chosen, names, slots, strict=True)
    )
    _check_processes(planned)
    return planned


def _check_processes(devices: Iterable[PlannedDevice]) -> None:
    # What is done to a process is done to every device in it.
    firsts: dict[str, PlannedDevice] = {}
    for device in devices:
        first = firsts.setdefault(device.process_name, device)
        for key, ours, theirs in (
            ("on-death", device.on_death.value, first.on_death.value),
            ("isolation", str(device.isolation), str(first.isolation)),
            ("on-violation", device.on_violation, first.on_violation),
        ):
            if ours != theirs:
                raise BadInput(
                    f"{device.option}: {key}",
                    f"{ours} of {device.name} is not {theirs} of {first.name}, "
                    f"in whose process it is to be ({device.process})",
                )


def _look(request: Request, check: Callable[[], object]) -> Model:
    if kinds.is_ours(request.kind):
        return model.look(request, request.option)
    from launcher import scout  # a machine with none but ours does not wait for its import

    return scout.ask_now(scout.looking(request, request.option), check)[0]


def _names(chosen: Sequence[tuple[Request, Model]]) -> list[str]:
    # Names that were asked for come first, so that none made up here takes one of them.
    taken = set(_RESERVED)
    for request, found in chosen:
        if found.name in taken:
            raise BadInput(request.option, f"id={found.name} is taken")
        if found.name is not None:
            taken.add(found.name)
    for request, found in chosen:
        if found.process in taken:
            raise BadInput(f"{request.option}: process", f"{found.process} is taken")
    taken.update(found.process for _, found in chosen if found.process)
    names: list[str] = []
    for _, found in chosen:
        free = (f"{found.label}{number}" for number in range(len(taken) + 1))
        name = found.name or next(name for name in free if name not in taken)
        taken.add(name)
        names.append(name)
    return names


def _with_devices(process: tuple[str, list[PlannedDevice]]) -> str:
    name, devices = process
    if devices[0].process is None:
        return name
    return f"{name} ({', '.join(device.name for device in devices)})"


def _slots(kinds_in_order: Sequence[str]) -> list[int]:
    slots: list[int] = []
    preferred = [slot for slot in range(memory_map.MAX_VIRTIO_DEVICES) if slot > 2] + [0, 1, 2]
    # The slots of first devices are theirs even if those come last on the command line.
    kept = {_FIRST_OF_KIND[kind] for kind in kinds_in_order if kind in _FIRST_OF_KIND}
    for kind in kinds_in_order:
        own = _FIRST_OF_KIND.get(kind)
        if own is not None and own not in slots:
            slots.append(own)
        else:
            slots.append(next(s for s in preferred if s not in slots and s not in kept))
    return slots


def _open(resources: ExitStack, option: str, path: str) -> int:
    try:
        # Not held up by a FIFO without a writer; that it is no regular file is found out next.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise BadInput(option, f"{path}: {why}") from error
    resources.callback(os.close, fd)
    return fd


def _find_architecture(options: RunOptions, kernel: int) -> Found:
    if options.architecture is not None:
        return Found(options.architecture, "as asked for")
    with _naming_files(options):
        return architecture.detect(
            kernel, options.entry, options.load, binary=options.binary is not None
        )


def _plan_boot(
    options: RunOptions, boot: BootSpec, kernel: int, initrd: int | None, hardware: Hardware
) -> BootPlan | Arm64Plan:
    with _naming_files(options):
        return architecture.plan(boot, kernel, initrd, hardware)


@contextmanager
def _naming_files(options: RunOptions) -> Iterator[None]:
    # Only we know what the descriptors that boot looks at are called.
    paths = {
        "--kernel": options.kernel,
        "--binary": options.binary,
        "--initrd": options.initrd,
    }
    try:
        yield
    except BadInput as error:
        if (path := paths.get(error.where)) is None:
            raise
        raise BadInput(error.where, f"{path}: {error.why}") from error


def open_device(
    device: PlannedDevice, streams: Streams, locks: Locks, check: Callable[[], object]
) -> None:
    """Open what ``device`` names, until it is closed; BadInput if that cannot be."""
    config, host = device.model.config, Host(device.name, streams, locks)
    if kinds.is_ours(device.kind) and not device.model.connects:
        opened = model.open_files(device.kind, config, device.option, host)
    else:
        from launcher import scout

        waits = device.model.connects
        question = scout.opening(device.kind, config, device.option, host, waits=waits)
        opened = scout.ask_now(question, check)[1]
    device.fds.update(opened)
